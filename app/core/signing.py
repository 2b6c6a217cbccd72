"""Signatures of deliveries: two families over the same bytes, under every live secret.

`X-BotBat-Signature` follows Stripe's rule (https://docs.stripe.com/webhooks#verify-manually), `webhook-signature`
Standard Webhooks (https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md).
"""

import base64
import binascii
import hashlib
import hmac
import secrets
from collections.abc import Sequence
from dataclasses import dataclass

SECRET_PREFIX = "whsec_"  # noqa: S105 - a prefix, not a secret
_SECRET_BYTES = 33


@dataclass(frozen=True, slots=True)
class Scheme:
    """How receivers verify one family; `{…}` stands for a value."""

    name: str
    signature_header: str
    timestamp_header: str | None  # None: the timestamp is in the signature's header
    id_header: str | None  # None: the id is not signed
    signature_format: str
    signed_content: str
    key: str
    encoding: str
    algorithm: str = "HMAC-SHA256"
    tolerance_seconds: int = 300  # how old a timestamp receivers should accept, by both rules


SCHEMES = (
    Scheme(
        name="botbat",
        signature_header="X-BotBat-Signature",
        timestamp_header=None,
        id_header=None,
        signature_format="t={timestamp},v1={signature}[,v1={signature under the previous secret}]",
        signed_content="{timestamp}.{body}",
        key="The UTF-8 bytes of the whole secret, its prefix whsec_ included.",
        encoding="hex",
    ),
    Scheme(
        name="standard-webhooks",
        signature_header="webhook-signature",
        timestamp_header="webhook-timestamp",
        id_header="webhook-id",
        signature_format="v1,{signature}[ v1,{signature under the previous secret}]",
        signed_content="{id}.{timestamp}.{body}",
        key="The bytes that the base64 after whsec_ stands for; of a secret in another form, its UTF-8 bytes.",
        encoding="base64",
    ),
)


@dataclass(frozen=True, slots=True)
class SigningKey:
    """The two HMAC keys that one secret stands for."""

    whole: bytes
    standard: bytes


def generate_secret() -> str:
    """Make a signing secret: `whsec_` and 33 random bytes in standard base64 (no padding needed)."""
    return SECRET_PREFIX + base64.b64encode(secrets.token_bytes(_SECRET_BYTES)).decode()


def signing_key(secret: str) -> SigningKey:
    """Give the keys of a secret. One of another form than `whsec_<base64>` is its UTF-8 bytes in both families."""
    whole = secret.encode()
    if secret.startswith(SECRET_PREFIX):
        try:
            decoded = base64.b64decode(secret.removeprefix(SECRET_PREFIX), validate=True)
        except binascii.Error:
            decoded = b""
        if decoded:
            return SigningKey(whole, decoded)
    return SigningKey(whole, whole)


def sign(keys: Sequence[SigningKey], message_id: str, timestamp: int, body: bytes) -> tuple[str, str]:
    """Give the values of `X-BotBat-Signature` and `webhook-signature`, with one signature per key, newest first."""
    stripe_content = b"%d." % timestamp + body
    standard_content = f"{message_id}.{timestamp}.".encode() + body
    ours = ",".join([f"v1={hmac.digest(key.whole, stripe_content, hashlib.sha256).hex()}" for key in keys])
    standard = " ".join(
        [
            "v1," + base64.b64encode(hmac.digest(key.standard, standard_content, hashlib.sha256)).decode()
            for key in keys
        ]
    )
    return f"t={timestamp},{ours}", standard
