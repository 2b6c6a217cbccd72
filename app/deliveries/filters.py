"""What of a list is asked for."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True, slots=True)
class AttemptFilter:
    """What of the delivery log is asked for; None: whatever it is."""

    status: Sequence[str] | None = None
    # Ranges of codes, both ends included; a None among them: no answer came.
    status_code: Sequence[tuple[int, int] | None] | None = None
    event_type: str | None = None
    event_id: str | None = None
    since: datetime | None = None
    until: datetime | None = None
