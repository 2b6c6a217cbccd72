"""Signatures are those of the contract, under every live secret, and public verifiers accept them."""

import base64
import hashlib
import hmac

import pytest
import standardwebhooks
import stripe
from hypothesis import given, settings
from hypothesis import strategies as st

from app.core.signing import SigningKey, generate_secret, sign, signing_key

# The check vector of the HTTP contract.
SECRET = "whsec_AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="
EVENT_ID = "evt_01HZX0000000000000000000"
TIMESTAMP = 1767225600
BODY = b'{"id":"evt_01HZX0000000000000000000","type":"ping","data":{}}'
OURS = "7114f2483fd1033235051fa7653fab108f91a2b12736c678f180993a3892caaa"
STANDARD = "/QzC9pil2a4pfthvQBthdowX/lh+/brSojxcbz/78Rk="


def test_the_check_vector():
    assert sign([signing_key(SECRET)], EVENT_ID, TIMESTAMP, BODY) == (
        f"t={TIMESTAMP},v1={OURS}",
        f"v1,{STANDARD}",
    )


def test_every_live_secret_signs_newest_first():
    newer = "another secret of ours"
    ours, standard = sign([signing_key(newer), signing_key(SECRET)], EVENT_ID, TIMESTAMP, BODY)
    first = hmac.digest(newer.encode(), b"%d." % TIMESTAMP + BODY, hashlib.sha256).hex()
    assert ours == f"t={TIMESTAMP},v1={first},v1={OURS}"
    assert standard.split(" ")[1] == f"v1,{STANDARD}"
    for secret in (newer, SECRET):
        stripe.WebhookSignature.verify_header(BODY.decode(), ours, secret)


def test_a_generated_secret_is_33_random_bytes_in_standard_base64():
    secrets = {generate_secret() for _ in range(200)}
    assert len(secrets) == 200
    for secret in secrets:
        assert secret.startswith("whsec_")
        decoded = base64.b64decode(secret.removeprefix("whsec_"), validate=True)
        assert len(decoded) == 33
        assert signing_key(secret) == SigningKey(secret.encode(), decoded)


@pytest.mark.parametrize(
    "secret",
    [
        "sixteen letters!",
        "whsec_",
        "whsec_not base64 at all",
        "whsec_AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8",  # its padding is missing
        "whsec_AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8_",  # URL-safe letters
        "WHSEC_AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=",
        "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=",
    ],
)
def test_a_secret_of_another_form_is_its_bytes_in_both_families(secret):
    assert signing_key(secret) == SigningKey(secret.encode(), secret.encode())


@settings(deadline=None)
@given(st.binary(min_size=1, max_size=64), st.binary(max_size=200), st.integers(0, 2**40))
def test_public_verifiers_know_the_families(key, body, timestamp):
    secret = "whsec_" + base64.b64encode(key).decode()
    ours, standard = sign([signing_key(secret)], "evt_1", timestamp, body)
    signed = hmac.new(secret.encode(), f"{timestamp}.".encode() + body, "sha256").hexdigest()
    assert ours == f"t={timestamp},v1={signed}"
    expected = hmac.new(key, f"evt_1.{timestamp}.".encode() + body, "sha256").digest()
    assert standard == f"v1,{base64.b64encode(expected).decode()}"


def test_standard_webhooks_own_package_signs_the_same():
    from datetime import UTC, datetime

    moment = datetime.fromtimestamp(TIMESTAMP, UTC)
    signed = standardwebhooks.Webhook(SECRET).sign(EVENT_ID, moment, BODY.decode())
    assert signed == f"v1,{STANDARD}"
