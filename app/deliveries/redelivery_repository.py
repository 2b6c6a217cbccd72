"""Queries of redelivery: what restarts deliveries, and the jobs that restart many.

Whoever restarts deliveries holds the queues of their endpoints until the commit (`queues.wake`), as recording,
canceling and fan-out do: what one statement here has seen is so still for the next one.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import case, func, insert, literal, select, text, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from app.core.database import utc_now
from app.core.ids import first_id_at
from app.core.pagination import PageRequest
from app.core.unit_of_work import UnitOfWork
from app.deliveries.models import (
    DELIVERY_PREFIX,
    Delivery,
    DeliveryStatus,
    PendingDelivery,
    Recovery,
    RecoveryStatus,
    Trigger,
)
from app.events.models import Event

# Written out, and not as a parameter, so that the partial index serves.
_RUNNING = text(f"status = '{RecoveryStatus.RUNNING}'")
FINISHED = (DeliveryStatus.SUCCEEDED, DeliveryStatus.FAILED)  # and may be restarted


@dataclass(frozen=True, slots=True)
class Scanned:
    """What a step of a recovery has looked at, oldest first."""

    failed: Sequence[tuple[str, str]]  # (delivery id, event id) of those that can be restarted
    last_id: str | None  # of the last delivery of any status; None: these were all


def hasten(session: Session, event_ids: Collection[str], endpoint_ids: Collection[str]) -> None:
    """Have pending deliveries attempted now because somebody asks, instead of whenever they would have been.

    The caller has found them in its own workspace.
    """
    session.execute(
        update(PendingDelivery)
        .where(PendingDelivery.event_id.in_(event_ids), PendingDelivery.endpoint_id.in_(endpoint_ids))
        .values(
            trigger=Trigger.MANUAL.value,
            is_retry=False,  # else it would stand in line with all other retries
            # What is due keeps its place.
            next_attempt_at=case(
                (PendingDelivery.next_attempt_at > utc_now(), utc_now()),
                else_=PendingDelivery.next_attempt_at,
            ),
        )
        .execution_options(synchronize_session=False)
    )


def restart(
    session: Session,
    workspace_id: str,
    event_ids: Collection[str],
    endpoint_ids: Collection[str],
    *,
    statuses: Collection[DeliveryStatus] = FINISHED,
    is_retry: bool = False,
) -> int:
    """Make finished deliveries pending again and due now, their numbers going on; gives how many."""
    finished = (
        Delivery.workspace_id == workspace_id,
        Delivery.event_id.in_(event_ids),
        Delivery.endpoint_id.in_(endpoint_ids),
        Delivery.status.in_(statuses),
        Delivery.is_test.is_(False),
    )
    copied = ("event_id", "endpoint_id", "delivery_id", "attempt_count", "is_retry", "trigger")
    session.execute(
        insert(PendingDelivery).from_select(
            copied,
            select(
                Delivery.event_id,
                Delivery.endpoint_id,
                Delivery.id,
                Delivery.attempt_count,
                literal(is_retry),
                literal(Trigger.MANUAL.value),
            ).where(*finished),
        )
    )
    restarted = session.execute(
        update(Delivery)
        .where(*finished)
        .values(status=DeliveryStatus.PENDING.value, finished_at=None)
        .returning(Delivery.id)
        .execution_options(synchronize_session=False)
    )
    return len(restarted.all())


def add_recovery(uow: UnitOfWork, row: dict[str, Any]) -> bool:
    """Add a job; False when one of the same endpoint is running."""
    dialect = sqlite if uow.is_sqlite else postgresql
    added = uow.session.execute(
        dialect.insert(Recovery)
        .values(row)
        .on_conflict_do_nothing(
            index_elements=["endpoint_id"],
            index_where=_RUNNING,
        )
        .returning(Recovery.id)
    )
    return added.first() is not None


def find_recovery(
    session: Session, workspace_id: str, endpoint_id: str, recovery_id: str, *, lock: bool = False
) -> Recovery | None:
    """Give a job, or None; `lock` waits for a step of it that is under way, and keeps further ones off."""
    query = select(Recovery).where(
        Recovery.workspace_id == workspace_id,
        Recovery.endpoint_id == endpoint_id,
        Recovery.id == recovery_id,
    )
    return session.scalar(query.with_for_update() if lock else query)


def list_recoveries(
    session: Session, workspace_id: str, endpoint_id: str, page: PageRequest
) -> Sequence[Recovery]:
    """Give up to one more than a page of an endpoint's jobs, newest first."""
    query = (
        select(Recovery)
        .where(Recovery.workspace_id == workspace_id, Recovery.endpoint_id == endpoint_id)
        .order_by(Recovery.id.desc())
        .limit(page.limit + 1)
    )
    if page.before:
        query = query.where(Recovery.id < page.before)
    return session.scalars(query).all()


def any_recovery_due(session: Session) -> bool:
    """Tell whether a job of any workspace has a step to do."""
    return (
        session.execute(
            select(Recovery.id).where(_RUNNING, Recovery.next_step_at <= utc_now()).limit(1)
        ).first()
        is not None
    )


def claim_recovery_all_workspaces(session: Session) -> tuple[Recovery, datetime] | None:
    """Give the job that has waited longest for its next step, locked until the commit, and the database's time.

    None when none is due, or all that are have a step under way elsewhere.
    """
    row = session.execute(
        select(Recovery, utc_now())
        .where(_RUNNING, Recovery.next_step_at <= utc_now())
        .order_by(Recovery.next_step_at)
        .limit(1)
        .with_for_update(skip_locked=True)
    ).first()
    return None if row is None else (row[0], row[1])


def scan(session: Session, recovery: Recovery, *, limit: int) -> Scanned:
    """Look at the next deliveries of a recovery's endpoint and span, up to `limit`."""
    rows = session.execute(
        select(Delivery.id, Delivery.event_id, Delivery.status, Delivery.is_test)
        .where(
            Delivery.workspace_id == recovery.workspace_id,
            Delivery.endpoint_id == recovery.endpoint_id,
            Delivery.id > recovery.cursor,
            # Ids carry the time of their making, so that a span of time is a range of the index.
            Delivery.id < first_id_at(DELIVERY_PREFIX, recovery.until),
        )
        .order_by(Delivery.id)
        .limit(limit)
    ).all()
    failed = [
        (row.id, row.event_id) for row in rows if row.status == DeliveryStatus.FAILED and not row.is_test
    ]
    with_payload = set(
        session.scalars(
            select(Event.id).where(
                Event.workspace_id == recovery.workspace_id,
                Event.id.in_([event_id for _, event_id in failed]),
                Event.payload_expunged_at.is_(None),
            )
        )
    )
    return Scanned(
        [each for each in failed if each[1] in with_payload], rows[-1].id if len(rows) == limit else None
    )


def hold_payloads(session: Session, workspace_id: str, event_ids: Collection[str]) -> Sequence[str]:
    """Give those of the events whose payload is there, and keep it there until the commit."""
    return session.scalars(
        select(Event.id)
        .where(
            Event.workspace_id == workspace_id, Event.id.in_(event_ids), Event.payload_expunged_at.is_(None)
        )
        .order_by(Event.id)
        .with_for_update(read=True)
    ).all()


def count_due_retries(session: Session, endpoint_id: str, *, limit: int) -> int:
    """Give how many retries of a recovery's endpoint are due and not done, counting up to `limit`."""
    due = (
        select(literal(1))
        .where(
            PendingDelivery.endpoint_id == endpoint_id,
            PendingDelivery.is_retry.is_(True),
            PendingDelivery.next_attempt_at <= utc_now(),
        )
        .limit(limit)
        .subquery()
    )
    return session.scalars(select(func.count()).select_from(due)).one()
