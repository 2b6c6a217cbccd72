"""The forms that settings may have: each function gives a value, or raises ValueError with a sentence."""

import base64
import binascii
import ipaddress
import re
from pathlib import Path

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

ENCRYPTION_KEY_BYTES = 32
MAX_PORT = 65535
MAX_RATE_LIMIT = 1_000_000
_IPV4_MAPPED = ipaddress.IPv6Network("::ffff:0:0/96")
_DEV_ORIGIN = re.compile(r"https://(?:localhost|127\.0\.0\.1|\[::1\])(?::(\d{1,5}))?", re.ASCII)
# Of a user's name or password, whatever has a meaning in a URL is percent-encoded; control characters are refused.
_USER_INFO = r"(?:[A-Za-z0-9._~!$&'()*+,;=-]|%(?!7[Ff])[2-9A-Fa-f][0-9A-Fa-f])+"
_PROXY_URL = re.compile(
    rf"https?://(?:{_USER_INFO}:{_USER_INFO}@)?(?:[A-Za-z0-9.-]+|\[[0-9A-Fa-f:.]+\]):(\d{{1,5}})", re.ASCII
)
# To the last @: a password may hold any character that the database's own parser lets through.
_URL_PASSWORD = re.compile(r"(?<=://)([^:@]*):.*@")
_QUERY_PASSWORD = re.compile(r"(?<=[?&])(\w*password)=[^&]*", re.IGNORECASE)


def split(text: str) -> list[str]:
    """Give the entries of a comma-separated list; blank ones do not count."""
    return [entry.strip() for entry in text.split(",") if entry.strip()]


def database_url(text: str) -> str:
    """Give the URL as SQLAlchemy takes it; a relative SQLite path becomes absolute."""
    scheme, _, rest = text.partition("://")
    if scheme in {"postgres", "postgresql", "postgresql+psycopg"}:
        return f"postgresql+psycopg://{rest}"
    if scheme == "sqlite":
        return absolute_sqlite(text)
    raise ValueError("must start with postgresql:// or sqlite:///")


def absolute_sqlite(url: str) -> str:
    """Make the path of a `sqlite:///` URL absolute; any other URL comes back as it is."""
    path = url.removeprefix("sqlite:///")
    relative = path != url and path and not path.startswith(("/", ":"))
    return f"sqlite:///{Path(path).absolute()}" if relative else url


def broker_url(text: str) -> str:
    """Give a Redis URL."""
    if not text.startswith(("redis://", "rediss://")):
        raise ValueError("must start with redis:// or rediss://")
    return text


def encryption_keys(text: str) -> tuple[tuple[str, bytes], ...]:
    """Give the ids and bytes of `id:base64,...`, in their order. No message quotes a key."""
    keys = tuple(_encryption_key(entry) for entry in split(text))
    if not keys:
        raise ValueError("there is no key in it")
    if len({key_id for key_id, _ in keys}) != len(keys):
        raise ValueError("two entries have the same id")
    return keys


def _encryption_key(entry: str) -> tuple[str, bytes]:
    key_id, _, encoded = entry.partition(":")
    try:
        key = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if not key_id.isalnum() or len(key) != ENCRYPTION_KEY_BYTES:
        raise ValueError(
            f"each entry must be an alphanumeric id, a colon, and {ENCRYPTION_KEY_BYTES} bytes in base64"
        )
    return key_id, key


def dev_origin(text: str) -> str:
    """Give an origin of this machine."""
    match = _DEV_ORIGIN.fullmatch(text)
    if not match or not 1 <= int(match[1] or 1) <= MAX_PORT:
        raise ValueError(f"{text!r} is not like https://localhost:9443, without a slash at its end")
    return text


def network(text: str) -> Network:
    """Give a CIDR block."""
    block = ipaddress.ip_network(text)
    if isinstance(block, ipaddress.IPv6Network) and block.subnet_of(_IPV4_MAPPED):
        raise ValueError(f"{text} must be written in its IPv4 form")
    return block


def proxy_url(text: str) -> str:
    """Give the URL of an HTTP proxy, as libcurl takes it. No message quotes it: it may have a password."""
    match = _PROXY_URL.fullmatch(text)
    if not match or not 1 <= int(match[1]) <= MAX_PORT:
        raise ValueError(
            "must be like http://proxy.example.com:3128 or https://user:password@proxy.example.com:3128, "
            "percent-encoded, without a slash at its end"
        )
    return text


def mask_url(url: str) -> str:
    """Give a URL for showing: whatever can be a password is replaced."""
    return _QUERY_PASSWORD.sub(r"\1=***", _URL_PASSWORD.sub(r"\1:***@", url))
