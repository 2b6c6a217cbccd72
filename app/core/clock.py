"""Time and chance of this process. What several machines must agree on uses the database's clock instead."""

import random  # noqa: TID251 - jitter needs no secrecy, and this is the one place for it
from datetime import UTC, datetime


def now() -> datetime:
    """Give the current time, aware, in UTC."""
    return datetime.now(UTC)


def jittered(seconds: float, fraction: float) -> float:
    """Give `seconds` plus a random part of up to `fraction` of it; never less."""
    return seconds * (1 + random.random() * fraction)  # noqa: S311 - see above
