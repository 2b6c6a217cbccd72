"""The policy of an endpoint: how often, how long, how much at once."""

from dataclasses import asdict, dataclass, fields
from typing import Any

MAX_RETRIES = 16
MAX_RETRY_DELAY_SECONDS = 86_400
MIN_TIMEOUT_SECONDS = 1
MAX_TIMEOUT_SECONDS = 30
MAX_IN_FLIGHT = 100
RETRY = "retry"
HOLD = "hold"
WHEN_FAILING = (RETRY, HOLD)


@dataclass(frozen=True, slots=True)
class Policy:
    """Defaults are those that the product promises."""

    retry_schedule: tuple[int, ...] = (10, 30, 120, 600, 1800)  # seconds after the failure before
    timeout_seconds: int = 15
    rate_limit: dict[str, int] | None = None  # {"count", "seconds"}
    max_in_flight: int = 10
    when_failing: str = RETRY

    def stored(self) -> dict[str, Any]:
        """Give the form in which it is kept and shown."""
        return {**asdict(self), "retry_schedule": list(self.retry_schedule)}


def read_policy(stored: dict[str, Any]) -> Policy:
    """Read the kept form; what it lacks has its default."""
    known = {field.name for field in fields(Policy)}
    values = {name: value for name, value in stored.items() if name in known}
    if "retry_schedule" in values:
        values["retry_schedule"] = tuple(values["retry_schedule"])
    return Policy(**values)
