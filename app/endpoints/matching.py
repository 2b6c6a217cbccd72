"""Which endpoints would get an event, and why the others would not: what fan-out decides, in words."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from app.core import conditions
from app.endpoints.models import SERVED, Endpoint, EndpointStatus
from app.endpoints.policy import HOLD
from app.endpoints.subscriptions import wants


class Mismatch(StrEnum):
    """Why an endpoint would not get an event."""

    NOT_SUBSCRIBED = "not_subscribed"
    FILTER = "filter"


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether an endpoint would get an event. `reason` is None where it would."""

    endpoint_id: str
    url: str
    matches: bool
    reason: str | None
    detail: str


def judge(row: Endpoint, envelope: Any) -> Verdict:
    """Tell whether an endpoint would get the event in this envelope."""
    reason, detail = _mismatch(row, envelope)
    if reason is None and row.status not in SERVED:
        detail += f" It is {row.status}: the delivery would wait until it is resumed."
    if reason is None and row.status == EndpointStatus.FAILING and row.policy.get("when_failing") == HOLD:
        detail += " It is failing and held: the delivery would wait until a probe succeeds."
    return Verdict(row.id, row.url, reason is None, reason, detail)


def _mismatch(row: Endpoint, envelope: Any) -> tuple[str | None, str]:
    if not wants(row.events, envelope["type"]):
        return Mismatch.NOT_SUBSCRIBED.value, f"It does not subscribe to {envelope['type']}."
    if row.filter is None:
        return None, f"It subscribes to {envelope['type']}."
    if sentence := conditions.explain(row.filter, envelope):
        return Mismatch.FILTER.value, sentence
    return None, f"It subscribes to {envelope['type']}, and its filter is met."
