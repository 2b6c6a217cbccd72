"""Secrets at rest: AES-256-GCM for what is shown again, keyed hashes for what is only looked up.

Both use sub-keys that HKDF-SHA256 (RFC 5869) derives from the configured master keys, one per purpose. The first
master key encrypts and hashes; the others are still accepted, so that keys can be rotated.
"""

import base64
import hashlib
import hmac
import secrets
from collections.abc import Sequence

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

_NONCE_BYTES = 12
_VERSION = "v1"


class DecryptionError(Exception):
    """The ciphertext is not from this place, was changed, or its key is no longer configured."""


class SecretBox:
    """Encrypts text bound to one place: a ciphertext copied to another row, column or workspace does not open."""

    def __init__(self, master_keys: Sequence[tuple[str, bytes]]) -> None:
        self._keys = {key_id: AESGCM(_derive(key, b"secrets at rest")) for key_id, key in master_keys}
        self._current = master_keys[0][0]

    def encrypt(self, text: str, *place: str) -> str:
        """Give `v1:<key id>:<base64url of nonce and ciphertext>`; `place` is table, column, row, workspace."""
        nonce = secrets.token_bytes(_NONCE_BYTES)
        sealed = nonce + self._keys[self._current].encrypt(nonce, text.encode(), _aad(place))
        return f"{_VERSION}:{self._current}:{base64.urlsafe_b64encode(sealed).decode()}"

    def decrypt(self, stored: str, *place: str) -> str:
        """Give the text back; raises `DecryptionError`."""
        version, _, rest = stored.partition(":")
        key_id, _, encoded = rest.partition(":")
        key = self._keys.get(key_id)
        if version != _VERSION or key is None:
            raise DecryptionError(f"no key {key_id!r} for a {version!r} ciphertext")
        try:
            sealed = base64.urlsafe_b64decode(encoded)
            return key.decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], _aad(place)).decode()
        except (InvalidTag, ValueError):
            raise DecryptionError(f"ciphertext does not belong to {'|'.join(place[:3])}") from None


class KeyedHash:
    """HMAC-SHA256 under a pepper: who can only write to the database cannot plant a value that verifies."""

    def __init__(self, master_keys: Sequence[tuple[str, bytes]], purpose: str) -> None:
        self._peppers = [(key_id, _derive(key, f"hash {purpose}".encode())) for key_id, key in master_keys]

    @property
    def key_ids(self) -> list[str]:
        """The ids of the live peppers, the current one first."""
        return [key_id for key_id, _ in self._peppers]

    def current(self, text: str) -> tuple[str, bytes]:
        """Give the id of the current pepper and the hash under it: what is stored."""
        key_id, pepper = self._peppers[0]
        return key_id, hmac.digest(pepper, text.encode(), hashlib.sha256)

    def candidates(self, text: str) -> list[bytes]:
        """Give the hash under every live pepper: what a look-up compares with. The current one is first."""
        return [hmac.digest(pepper, text.encode(), hashlib.sha256) for _, pepper in self._peppers]


def _derive(master_key: bytes, purpose: bytes) -> bytes:
    return HKDF(algorithm=SHA256(), length=32, salt=None, info=b"botbat " + purpose).derive(master_key)


def _aad(place: Sequence[str]) -> bytes:
    return "|".join(place).encode()
