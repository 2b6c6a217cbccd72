"""The form of an API key: `bbat_live_`, 43 base62 characters (256 bits), 6 base62 of the CRC-32 of all before.

The checksum lets secret scanners and this service tell a mistyped key from a real one without a database.
https://github.blog/engineering/behind-githubs-new-authentication-token-formats/
"""

import re
import secrets
import zlib

ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
KEY_PREFIX = "bbat_live_"
SHOWN_CHARACTERS = 16
_RANDOM_CHARACTERS = 43
_CHECKSUM_CHARACTERS = 6
_FORM = re.compile(rf"{KEY_PREFIX}[0-9A-Za-z]{{{_RANDOM_CHARACTERS + _CHECKSUM_CHARACTERS}}}", re.ASCII)


def generate() -> str:
    """Make a key."""
    body = KEY_PREFIX + _base62(secrets.randbits(256), _RANDOM_CHARACTERS)
    return body + checksum(body)


def checksum(body: str) -> str:
    """Give the last six characters of a key that starts with `body`."""
    return _base62(zlib.crc32(body.encode()), _CHECKSUM_CHARACTERS)


def is_well_formed(key: str) -> bool:
    """Tell whether this can be a key of ours: its form and its checksum are right."""
    if not _FORM.fullmatch(key):
        return False
    return checksum(key[:-_CHECKSUM_CHARACTERS]) == key[-_CHECKSUM_CHARACTERS:]


def _base62(number: int, width: int) -> str:
    digits = []
    for _ in range(width):
        number, digit = divmod(number, 62)
        digits.append(ALPHABET[digit])
    return "".join(reversed(digits))
