"""Whether a request to the built-in receiver carries both of BotBat's signatures, and by whose secret."""

import hmac
import re
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from app.core import signing

_TOLERANCE_SECONDS = 300
_TIMESTAMP = re.compile(r"\d{1,12}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Verdict:
    """The outcome: `endpoint_id` is whose secret signed it, `reason` says why it is not verified."""

    verified: bool
    endpoint_id: str | None = None
    reason: str | None = None


def verify(
    secrets: Mapping[str, str], headers: Mapping[str, str], body: bytes, *, at: float | None = None
) -> Verdict:
    """Check both families against every secret (by endpoint id). `headers` has lower-case names."""
    ours = _values(headers.get("x-botbat-signature", ""))
    standard = headers.get("webhook-signature", "").split(" ")
    timestamp, message_id = headers.get("webhook-timestamp", ""), headers.get("webhook-id", "")
    if not ours or not standard[0]:
        return Verdict(verified=False, reason="not signed")
    if not _TIMESTAMP.fullmatch(timestamp) or ours.get("t") != {timestamp}:
        return Verdict(verified=False, reason="the timestamps are missing or differ")
    if abs((time.time() if at is None else at) - int(timestamp)) > _TOLERANCE_SECONDS:
        return Verdict(verified=False, reason="the timestamp is more than five minutes off")
    partly = None
    for endpoint_id, secret in secrets.items():
        key = signing.signing_key(secret)
        wanted_ours, wanted_standard = signing.sign([key], message_id, int(timestamp), body)
        matches = (
            _among(wanted_ours.partition("v1=")[2], ours.get("v1", set())),
            _among(wanted_standard, standard),
        )
        if all(matches):
            return Verdict(verified=True, endpoint_id=endpoint_id)
        if any(matches):
            partly = endpoint_id
    if partly:
        return Verdict(verified=False, endpoint_id=partly, reason="only one of the two signatures is right")
    return Verdict(verified=False, reason="no known secret signed this")


def _values(header: str) -> dict[str, set[str]]:
    """Give every value of each name: a header has one `v1` per live secret."""
    found: dict[str, set[str]] = {}
    for part in header.split(","):
        name, separator, value = part.strip().partition("=")
        if separator:
            found.setdefault(name, set()).add(value)
    return found


def _among(wanted: str, offered: Iterable[str]) -> bool:
    return any(hmac.compare_digest(wanted.encode(), each.encode()) for each in offered)
