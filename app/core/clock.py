"""Time and chance of this process. What several machines must agree on uses the database's clock instead."""

import random  # noqa: TID251 - jitter needs no secrecy, and this is the one place for it
from datetime import UTC, datetime


def now() -> datetime:
    """Give the current time, aware, in UTC."""
    return datetime.now(UTC)


def format_time(moment: datetime) -> str:
    """Write a time as the API does: RFC 3339, UTC, milliseconds, `Z`."""
    return moment.astimezone(UTC).isoformat(timespec="milliseconds")[:-6] + "Z"


def jittered(seconds: float, fraction: float) -> float:
    """Give `seconds` plus a random part of up to `fraction` of it; never less."""
    return seconds * (1 + random.random() * fraction)  # noqa: S311 - see above
