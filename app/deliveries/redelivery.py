"""Redelivery because somebody asks: one delivery once more, or an event again. Many failures: recoveries.py.

The delivery is the same: its id, its bytes, its numbers going on. What it is sent with is today's: URL, headers and
signing secret. While the endpoint is paused or disabled it waits, as any delivery does. An attempt that was asked for
and fails is followed by automatic ones only as far as the schedule is not used up, attempts of every kind counted.
"""

from collections.abc import Collection, Sequence
from typing import Any

from app.audit import service as audit
from app.core import conditions, json_body
from app.core.errors import Conflict, FieldError, Invalid, NotFound
from app.core.ids import new_id
from app.core.unit_of_work import UnitOfWork
from app.deliveries import engine, engine_repository, redelivery_repository, rendering, repository
from app.deliveries.models import DELIVERY_PREFIX, Delivery, DeliveryStatus
from app.endpoints import queues
from app.endpoints import service as endpoints
from app.endpoints.subscriptions import wants
from app.events import service as events
from app.events.models import Event
from config.wire import TaskName

MAX_CHOSEN_ENDPOINTS = 100


class DeliveryCanceled(Conflict):
    """What was canceled is not sent any more: its endpoint was deleted."""

    code = "delivery_canceled"
    title = "The delivery was canceled"


class EndpointDeleted(Conflict):
    """There is no address any more that it could be sent to."""

    code = "endpoint_deleted"
    title = "The delivery's endpoint was deleted"


class TestNotRepeatable(Conflict):
    """A test is sent once, while somebody waits for it; send another one."""

    code = "test_not_repeatable"
    title = "A test is not sent again"


def retry(uow: UnitOfWork, *, workspace_id: str, delivery_id: str) -> Delivery:
    """Attempt a delivery once more, now; a waiting automatic attempt is thereby made, and not made again.

    Asked twice before the attempt is made, it is one attempt. Raises `NotFound` or a `Conflict`.
    """
    delivery = repository.find(uow.session, workspace_id, delivery_id)
    if delivery is None:
        raise NotFound
    if delivery.is_test:
        raise TestNotRepeatable
    try:
        _hold_payload(uow, workspace_id, delivery.event_id)
    except NotFound:  # its time is over
        raise events.PayloadExpunged from None
    if not queues.wake(uow, endpoint_ids=[delivery.endpoint_id]):
        raise EndpointDeleted
    _send_again(uow, workspace_id, delivery.event_id, [delivery.endpoint_id])
    uow.session.refresh(delivery)
    if delivery.status != DeliveryStatus.PENDING:
        raise DeliveryCanceled
    audit.record(uow, workspace_id=workspace_id, action="delivery.retried", resource_id=delivery_id)
    return delivery


def replay(
    uow: UnitOfWork, *, workspace_id: str, event_id: str, endpoint_ids: Sequence[str] | None = None
) -> list[Delivery]:
    """Deliver an event again, now: to the endpoints that want it today, or to chosen ones, which need not want it.

    Gives the deliveries, restarted or made. Raises `NotFound`, a `Conflict`, or `Invalid` for ids of no endpoint.
    """
    event = _hold_payload(uow, workspace_id, event_id)
    if events.claim_fan_out(uow, workspace_id=workspace_id, event_id=event_id):
        engine.fan_out_claimed(uow, waiting=[(workspace_id, event_id, event.type)])
    subscriptions = endpoints.list_subscriptions(uow, workspace_ids=[workspace_id])
    ids = _wanting(subscriptions, event) if endpoint_ids is None else _chosen(subscriptions, endpoint_ids)
    queues.wake(uow, endpoint_ids=ids)
    # Only now: another replay of the event may have made some of them.
    existing = repository.list_of_event(uow.session, workspace_id, event_id)
    if any(delivery.is_test for delivery in existing):
        raise TestNotRepeatable
    missing = ids - {delivery.endpoint_id for delivery in existing}
    if missing:
        rows = [
            (event_id, endpoint_id, new_id(DELIVERY_PREFIX), workspace_id, event.type)
            for endpoint_id in missing
        ]
        engine_repository.insert_deliveries(uow, rows)
        rendering.prepare(uow, event_id=event_id, endpoint_ids=missing)
    _send_again(uow, workspace_id, event_id, ids)
    audit.record(uow, workspace_id=workspace_id, action="event.replayed", resource_id=event_id)
    uow.session.expire_all()
    deliveries = repository.list_of_event(uow.session, workspace_id, event_id)
    return [delivery for delivery in deliveries if delivery.endpoint_id in ids]


def _hold_payload(uow: UnitOfWork, workspace_id: str, event_id: str) -> Event:
    """Give an event whose payload stays until the commit; raises `NotFound` or `PayloadExpunged`."""
    event = events.get(uow, workspace_id=workspace_id, event_id=event_id, hold=True)
    if event.payload_expunged_at is not None:
        raise events.PayloadExpunged
    return event


def _send_again(uow: UnitOfWork, workspace_id: str, event_id: str, endpoint_ids: Collection[str]) -> None:
    rendering.renew(uow, deliveries=[(event_id, endpoint_id) for endpoint_id in endpoint_ids])
    redelivery_repository.hasten(uow.session, [event_id], endpoint_ids)
    redelivery_repository.restart(uow.session, workspace_id, [event_id], endpoint_ids)
    uow.ring(TaskName.DELIVERIES_PUMP)


def _wanting(subscriptions: Sequence[Any], event: Event) -> set[str]:
    envelope = json_body.read_stored(event.body)
    return {
        each.id
        for each in subscriptions
        if wants(each.events, event.type)
        and (each.filter is None or conditions.matches(each.filter, envelope))
    }


def _chosen(subscriptions: Sequence[Any], endpoint_ids: Sequence[str]) -> set[str]:
    known = {each.id for each in subscriptions}
    errors = [
        FieldError(f"/endpoint_ids/{index}", "unknown_endpoint", "There is no endpoint with this id.")
        for index, endpoint_id in enumerate(endpoint_ids)
        if endpoint_id not in known
    ]
    if errors:
        raise Invalid(errors[0].detail, errors=errors)
    return set(endpoint_ids)
