"""What passes between the engine's steps. Not frozen: freezing triples the cost of what is made by the thousand."""

from dataclasses import dataclass
from datetime import datetime

from app.deliveries.models import DeliveryStatus
from app.endpoints.formats import JSON

# A row for fan-out: event id, endpoint id, its own id, workspace id, event type.
NewDelivery = tuple[str, str, str, str, str]


@dataclass(slots=True)
class NewAttempt:
    """A row for the delivery log; the order of fields is that of the columns."""

    id: str
    workspace_id: str
    delivery_id: str
    event_id: str
    event_type: str
    endpoint_id: str
    number: int
    trigger: str
    status: str
    status_code: int | None
    duration_ms: int
    error_code: str | None
    error_detail: str | None
    started_at: datetime
    url: str
    request_headers: str
    response_headers: str
    response_body: bytes
    response_truncated: bool


@dataclass(slots=True)
class Outcome:
    """What an attempt means for its delivery: `retry_in_seconds` is None when there is none."""

    event_id: str
    endpoint_id: str
    trigger: str  # of the attempt
    status: DeliveryStatus
    attempt_count: int
    retry_in_seconds: float | None


@dataclass(slots=True)
class DueDelivery:
    """A delivery to attempt now."""

    id: str
    endpoint_id: str
    workspace_id: str
    event_id: str
    event_type: str
    attempt_count: int
    trigger: str
    body: bytes
    is_retry: bool
    next_attempt_at: datetime
    formatted: bool = False  # whether it can have a rendered body, which takes the place of the event's
    content_type: str = JSON
    error: str | None = None  # why there is nothing to send


# Where a claim stopped: when its delivery is due, and its event's id.
Position = tuple[datetime, str]


@dataclass(slots=True)
class Quota:
    """How many due deliveries a pump has room for."""

    endpoint_id: str
    first_attempts: int
    retries: int
    # Behind these nothing is held yet; None: from the start.
    first_after: Position | None = None
    retries_after: Position | None = None
    on_hold: bool = False  # then only a probe, and what goes out all the same
