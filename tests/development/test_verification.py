"""The receiver believes a request only when both signatures are those of a secret that it knows."""

import pytest

from app.core import signing
from app.development.verification import verify

SECRET = "whsec_AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="
OTHER = "a secret of the customer's own"
EVENT = "evt_01HZX0000000000000000000"
AT = 1767225600
BODY = b'{"id":"evt_01HZX0000000000000000000","type":"ping","data":{}}'
# The check vector of the HTTP contract.
HEADERS = {
    "x-botbat-signature": f"t={AT},v1=7114f2483fd1033235051fa7653fab108f91a2b12736c678f180993a3892caaa",
    "webhook-id": EVENT,
    "webhook-timestamp": str(AT),
    "webhook-signature": "v1,/QzC9pil2a4pfthvQBthdowX/lh+/brSojxcbz/78Rk=",
}
KNOWN = {"ep_1": OTHER, "ep_2": SECRET}


def signed(*secrets: str) -> dict[str, str]:
    """Give the headers of a request that is signed under each of `secrets`."""
    ours, standard = signing.sign([signing.signing_key(secret) for secret in secrets], EVENT, AT, BODY)
    return {**HEADERS, "x-botbat-signature": ours, "webhook-signature": standard}


def test_the_check_vector_is_verified():
    verdict = verify(KNOWN, HEADERS, BODY, at=AT)
    assert (verdict.verified, verdict.endpoint_id, verdict.reason) == (True, "ep_2", None)


@pytest.mark.parametrize("secrets", [[OTHER], [SECRET, "old"], ["new", OTHER], ["new", SECRET, "old"]])
def test_any_of_several_signatures_counts(secrets):
    assert verify(KNOWN, signed(*secrets), BODY, at=AT).verified


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"x-botbat-signature": ""}, "not signed"),
        ({"webhook-signature": ""}, "not signed"),
        ({"webhook-timestamp": ""}, "the timestamps are missing or differ"),
        ({"webhook-timestamp": str(AT + 1)}, "the timestamps are missing or differ"),
        ({"webhook-timestamp": "soon"}, "the timestamps are missing or differ"),
        ({"x-botbat-signature": f"t={AT},v1=00"}, "only one of the two signatures is right"),
        ({"webhook-signature": "v1,AA=="}, "only one of the two signatures is right"),
        ({"webhook-id": "evt_other"}, "only one of the two signatures is right"),
        ({"x-botbat-signature": f"t={AT},v1=é", "webhook-signature": "v1"}, "no known secret signed this"),
    ],
)
def test_what_is_wrong_is_said(change, reason):
    verdict = verify(KNOWN, {**HEADERS, **change}, BODY, at=AT)
    assert (verdict.verified, verdict.reason) == (False, reason)


def test_absent_headers_are_not_signed():
    assert verify(KNOWN, {}, BODY).reason == "not signed"


def test_another_body_or_secret_is_not_verified():
    assert verify(KNOWN, HEADERS, BODY + b" ", at=AT).reason == "no known secret signed this"
    assert verify({"ep_1": OTHER}, HEADERS, BODY, at=AT).reason == "no known secret signed this"
    assert not verify({}, HEADERS, BODY, at=AT).verified


@pytest.mark.parametrize(("off", "verified"), [(300, True), (-300, True), (301, False), (-301, False)])
def test_old_requests_are_not_verified(off, verified):
    assert verify(KNOWN, HEADERS, BODY, at=AT + off).verified is verified
