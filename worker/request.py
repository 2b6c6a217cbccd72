"""From a due delivery to the request that is sent, and from what came back to the rows that are recorded."""

from dataclasses import dataclass
from datetime import UTC, datetime

import orjson

from app.core.ids import new_id
from app.core.signing import sign
from app.deliveries.models import ATTEMPT_PREFIX, AttemptStatus, DeliveryStatus
from app.deliveries.rendering import TEMPLATE_FAILED
from app.deliveries.retries import delay_after, read_retry_after
from app.deliveries.work import DueDelivery, NewAttempt
from app.deliveries.work import Outcome as DeliveryOutcome
from app.endpoints.headers import MASK
from app.endpoints.service import Target
from worker.local_queue import LocalQueue
from worker.sender import Outcome, Outgoing

USER_AGENT = "BotBat-Webhooks/1"


@dataclass(slots=True)
class InFlight:
    """What the sender hands back with an outcome."""

    attempt_id: str
    queue: LocalQueue
    delivery: DueDelivery
    target: Target
    signatures: tuple[str, str]
    timestamp: int


def build(queue: LocalQueue, delivery: DueDelivery, target: Target, moment: datetime) -> Outgoing:
    """Sign a delivery for this moment."""
    timestamp = int(moment.timestamp())
    signatures = sign(target.keys_at(moment), delivery.event_id, timestamp, delivery.body)
    headers = [
        f"Content-Type: {delivery.content_type}",
        f"User-Agent: {USER_AGENT}",
        f"X-BotBat-Event: {delivery.event_type}",
        f"X-BotBat-Delivery: {delivery.id}",
        f"X-BotBat-Signature: {signatures[0]}",
        f"webhook-id: {delivery.event_id}",
        f"webhook-timestamp: {timestamp}",
        f"webhook-signature: {signatures[1]}",
    ]
    headers += [f"{name}: {value}" for name, value in target.headers]
    return Outgoing(
        url=target.url,
        headers=headers,
        body=delivery.body,
        timeout_ms=target.policy.timeout_seconds * 1000,
        tag=InFlight(new_id(ATTEMPT_PREFIX), queue, delivery, target, signatures, timestamp),
    )


def refuse(queue: LocalQueue, delivery: DueDelivery, target: Target, moment: datetime) -> Outcome:
    """Give the outcome of a delivery that has no body: nothing is sent, and nothing would be in a retry."""
    return Outcome(
        tag=InFlight(new_id(ATTEMPT_PREFIX), queue, delivery, target, ("", ""), 0),
        started_at=moment.timestamp(),
        duration_ms=0,
        status_code=None,
        error_code=TEMPLATE_FAILED,
        error_detail=delivery.error,
        response_headers=[],
        response_body=b"",
        response_truncated=False,
    )


def conclude(outcome: Outcome, sent: InFlight) -> tuple[NewAttempt, DeliveryOutcome]:
    """Give the log row of an attempt, and what it means for its delivery."""
    delivery, target = sent.delivery, sent.target
    number = delivery.attempt_count + 1
    delay = None
    if outcome.error_code is None:
        status, delivery_status = AttemptStatus.SUCCESS, DeliveryStatus.SUCCEEDED
    elif delivery.error is not None:
        status, delivery_status = AttemptStatus.FAILED, DeliveryStatus.FAILED
    else:
        asked = next(
            (value for name, value in outcome.response_headers if name.lower() == "retry-after"), None
        )
        delay = delay_after(
            target.policy.retry_schedule,
            number,
            retry_after_seconds=read_retry_after(asked, datetime.now(UTC)) if asked else 0,
        )
        status = AttemptStatus.FAILED
        delivery_status = DeliveryStatus.FAILED if delay is None else DeliveryStatus.PENDING
    attempt = NewAttempt(
        id=sent.attempt_id,
        workspace_id=delivery.workspace_id,
        delivery_id=delivery.id,
        event_id=delivery.event_id,
        event_type=delivery.event_type,
        endpoint_id=delivery.endpoint_id,
        number=number,
        trigger=delivery.trigger,
        status=status.value,
        status_code=outcome.status_code,
        duration_ms=outcome.duration_ms,
        error_code=outcome.error_code,
        error_detail=outcome.error_detail,
        started_at=datetime.fromtimestamp(outcome.started_at, UTC),
        url=target.url,
        request_headers=_logged_headers(sent) if delivery.error is None else "[]",
        response_headers=orjson.dumps(outcome.response_headers).decode(),
        response_body=outcome.response_body,
        response_truncated=outcome.response_truncated,
    )
    return attempt, DeliveryOutcome(
        delivery.event_id, delivery.endpoint_id, delivery.trigger, delivery_status, number, delay
    )


def _logged_headers(sent: InFlight) -> str:
    """Give the request's headers as JSON, by hand: every value is one of ours, and none has what JSON would escape."""
    return (
        f'[["Content-Type","{sent.delivery.content_type}"],["User-Agent","{USER_AGENT}"]'
        f',["X-BotBat-Event","{sent.delivery.event_type}"],["X-BotBat-Delivery","{sent.delivery.id}"]'
        f',["X-BotBat-Signature","{sent.signatures[0]}"],["webhook-id","{sent.delivery.event_id}"]'
        f',["webhook-timestamp","{sent.timestamp}"],["webhook-signature","{sent.signatures[1]}"]'
        + "".join(f',["{name}","{MASK}"]' for name, _ in sent.target.headers)
        + "]"
    )
