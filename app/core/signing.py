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
