"""When a failed delivery is attempted again: pure rules."""

from collections.abc import Sequence
from datetime import datetime
from email.utils import parsedate_to_datetime

from app.core.clock import jittered

# Retries of many deliveries that failed together are spread a little; the promised delay is never cut short.
JITTER = 0.1
MAX_RETRY_AFTER_SECONDS = 3600


def delay_after(
    schedule: Sequence[int], attempt_number: int, *, retry_after_seconds: float = 0, jitter: float = JITTER
) -> float | None:
    """Give the seconds between the failure of attempt `attempt_number` (from 1) and the next one, or None: no more.

    A `Retry-After` can only push the next attempt later, by at most an hour.
    """
    if attempt_number > len(schedule):
        return None
    delay = jittered(schedule[attempt_number - 1], jitter)
    return max(delay, min(retry_after_seconds, MAX_RETRY_AFTER_SECONDS))


def read_retry_after(value: str, moment: datetime) -> float:
    """Give the seconds that a `Retry-After` header asks for (RFC 9110, section 10.2.3); 0 when it makes no sense."""
    value = value.strip()
    if value.isascii() and value.isdigit():
        return float(value[:9])
    try:
        wanted = parsedate_to_datetime(value)
    except (ValueError, OverflowError):  # the latter for numbers that no C integer holds
        return 0
    if wanted.tzinfo is None:
        return 0
    return max(0.0, (wanted - moment).total_seconds())
