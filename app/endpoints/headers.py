"""Which custom headers an endpoint may add to its deliveries.

Refused are those that frame the message, route it, name its sender, or open doors inside clouds (metadata services
answer only to requests with certain headers).
"""

import re

MAX_HEADERS = 10
MAX_VALUE_LENGTH = 1024
MASK = "***"

_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_|~-]{1,64}", re.ASCII)
_VALUE = re.compile(r"[\x21-\x7e](?:[\x20-\x7e]*[\x21-\x7e])?", re.ASCII)
_FORBIDDEN = frozenset(
    {
        *(
            "host",
            "connection",
            "keep-alive",
            "te",
            "trailer",
            "transfer-encoding",
            "upgrade",
            "expect",
            "via",
        ),
        *("cookie", "user-agent", "accept-encoding", "forwarded", "x-real-ip"),
    }
)
_FORBIDDEN_PREFIXES = (
    "content-",
    "proxy-",
    "x-forwarded-",
    "metadata",
    "x-aws-",
    "x-amz-",
    "x-google-",
    "webhook-",
    "svix-",
    "x-botbat-",
)


def fault(name: str, value: str) -> str | None:
    """Say in a sentence why a header is refused, or None."""
    if not _NAME.fullmatch(name):
        return "A header name has 1 to 64 letters, digits or -_.!#$%&'*+^|~."
    lowered = name.lower()
    if lowered in _FORBIDDEN or lowered.startswith(_FORBIDDEN_PREFIXES):
        return f"The header {name} is set by the service or by HTTP itself."
    if len(value) > MAX_VALUE_LENGTH or not _VALUE.fullmatch(value):
        return f"A header value has 1 to {MAX_VALUE_LENGTH} visible ASCII characters or inner spaces."
    return None
