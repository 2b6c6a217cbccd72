"""Queries of queues that are held: which deliveries go out all the same, and when. Rare: both databases share them."""

from datetime import datetime
from typing import Any

from sqlalchemy import Select, exists, false, literal, literal_column, select, true, union_all, update

from app.core.clock import now
from app.core.database import utc_now
from app.core.ids import first_id_at
from app.core.unit_of_work import UnitOfWork
from app.deliveries.models import Delivery, PendingDelivery
from app.endpoints.health import HELD_AT_MOST
from app.endpoints.models import EndpointQueue
from app.events.models import ID_PREFIX as EVENT_PREFIX

_MAX_ORDERED = 10_000  # so that recording stays short
_FIRST, _RETRY = PendingDelivery.is_retry == false(), PendingDelivery.is_retry == true()


def list_due(uow: UnitOfWork, endpoint_id: str, limit: int) -> list[str]:
    """Give the events whose deliveries are due and go through a hold, and the one of the probe if that is due.

    The probe is the delivery that has been due for longest.
    """
    due = PendingDelivery.next_attempt_at <= utc_now()
    probe_due = exists().where(EndpointQueue.endpoint_id == endpoint_id, EndpointQueue.probe_at <= utc_now())
    rows = _run(
        uow,
        [(False, arm.where(due).limit(limit)) for arm in _through(endpoint_id)]
        + [(True, _pending(endpoint_id, kind, due, probe_due).limit(1)) for kind in (_FIRST, _RETRY)],
    )
    probes = sorted((row.next_attempt_at, row.event_id) for row in rows if row.is_probe)
    chosen = {row.event_id for row in rows if not row.is_probe}
    return [*chosen, *(event_id for _, event_id in probes[:1] if event_id not in chosen)]


def next_due(uow: UnitOfWork, endpoint_id: str) -> datetime | None:
    """Give when the next delivery that goes through a hold is due; None when there is none."""
    rows = _run(uow, [(False, arm.limit(1)) for arm in _through(endpoint_id)])
    return min((row.next_attempt_at for row in rows), default=None)


def order_by_age(uow: UnitOfWork, endpoint_id: str) -> None:
    """Have what waited for a retry go out with what was never attempted, oldest first.

    Most of what waited is the latter. Of retries there are those from before the hold and the probes; should there be
    more, because the policy was changed while they were waiting, the others go out as retries do.
    """
    waiting = _pending(endpoint_id, _RETRY, PendingDelivery.next_attempt_at <= utc_now()).limit(_MAX_ORDERED)
    made_at = select(Delivery.created_at).where(
        Delivery.event_id == PendingDelivery.event_id, Delivery.endpoint_id == PendingDelivery.endpoint_id
    )
    uow.connection.execute(
        update(PendingDelivery)
        .where(
            PendingDelivery.endpoint_id == endpoint_id,
            PendingDelivery.event_id.in_(select(waiting.subquery().c.event_id)),
        )
        .values(is_retry=False, next_attempt_at=made_at.scalar_subquery())
    )


def _through(endpoint_id: str) -> list[Select[str, datetime]]:
    """Give what goes through: what somebody asked for, and what has been held for as long as may be.

    What a recovery restarted stands among the retries, and waits.

    The latter is told by the age of events, so that their remaining attempts, due since a moment only, go too.
    """
    since = now() - HELD_AT_MOST
    return [
        # A literal, for the index that has only these.
        _pending(endpoint_id, _FIRST, PendingDelivery.trigger == literal_column("'manual'")),
        _pending(endpoint_id, _FIRST, PendingDelivery.next_attempt_at < since),
        _pending(endpoint_id, _RETRY, PendingDelivery.event_id < first_id_at(EVENT_PREFIX, since)),
    ]


def _pending(endpoint_id: str, *conditions: Any) -> Select[str, datetime]:
    return (
        select(PendingDelivery.event_id, PendingDelivery.next_attempt_at)
        .where(PendingDelivery.endpoint_id == endpoint_id, *conditions)
        .order_by(PendingDelivery.next_attempt_at)
    )


def _run(uow: UnitOfWork, arms: list[tuple[bool, Select[str, datetime]]]) -> list[Any]:
    # Each in a subquery of its own: SQLite takes no ORDER BY in a part of a UNION.
    parts = [select(literal(is_probe).label("is_probe"), arm.subquery()) for is_probe, arm in arms]
    return list(uow.connection.execute(union_all(*parts)))
