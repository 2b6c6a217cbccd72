"""Every query of pending tests. The workers' own go across workspaces; rows are few, since somebody waits for each."""

from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import delete, insert, select, update
from sqlalchemy.orm import Session

from app.core.database import utc_now
from app.deliveries.models import Delivery, DeliveryStatus, PendingTest
from app.events.models import Event

# What the functions below give of a test.
_COLUMNS = (
    PendingTest.delivery_id,
    PendingTest.workspace_id,
    PendingTest.event_id,
    PendingTest.endpoint_id,
    PendingTest.created_at,
    PendingTest.claimed_at,
)


def insert_test(session: Session, row: dict[str, str]) -> None:
    """Insert a delivery that no pump takes, and that a worker is to send as a test."""
    session.execute(insert(Delivery), {**row, "is_test": True})
    names = ("workspace_id", "event_id", "endpoint_id")
    session.execute(insert(PendingTest), {"delivery_id": row["id"], **{name: row[name] for name in names}})


def find_test(session: Session, workspace_id: str, delivery_id: str) -> Any:
    """Give (claimed_at,) of a test that is not finished, or None."""
    return session.execute(
        select(PendingTest.claimed_at).where(
            PendingTest.workspace_id == workspace_id, PendingTest.delivery_id == delivery_id
        )
    ).first()


def withdraw_test(session: Session, workspace_id: str, delivery_id: str) -> Any:
    """Take back a test that no worker has claimed; None where one has."""
    return session.execute(
        delete(PendingTest)
        .where(
            PendingTest.workspace_id == workspace_id,
            PendingTest.delivery_id == delivery_id,
            PendingTest.claimed_at.is_(None),
        )
        .returning(*_COLUMNS)
        .execution_options(synchronize_session=False)
    ).first()


def database_time(session: Session) -> Any:
    """Give the time by the database's clock."""
    return session.scalar(select(utc_now()))


def list_claims_all_workspaces(session: Session) -> Sequence[Any]:
    """Give (claimed_at, the database's time) of all tests that are not finished."""
    return session.execute(select(PendingTest.claimed_at, utc_now())).all()


def take_stale_all_workspaces(
    session: Session, *, unclaimed_since: datetime, claimed_since: datetime
) -> Sequence[Any]:
    """Take the tests that have waited, or been claimed, for too long; nobody else gets them."""
    return session.execute(
        delete(PendingTest)
        .where(
            (PendingTest.claimed_at < claimed_since)
            | (PendingTest.claimed_at.is_(None) & (PendingTest.created_at < unclaimed_since))
        )
        .returning(*_COLUMNS)
        .execution_options(synchronize_session=False)
    ).all()


def claim_all_workspaces(session: Session, limit: int) -> Sequence[Any]:
    """Claim up to `limit` tests, oldest first; nobody else gets them."""
    waiting = (
        select(PendingTest.delivery_id)
        .where(PendingTest.claimed_at.is_(None))
        .order_by(PendingTest.created_at)
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    return session.execute(
        update(PendingTest)
        .where(PendingTest.delivery_id.in_(waiting), PendingTest.claimed_at.is_(None))
        .values(claimed_at=utc_now())
        .returning(*_COLUMNS)
        .execution_options(synchronize_session=False)
    ).all()


def list_events_all_workspaces(session: Session, event_ids: Collection[str]) -> dict[str, Any]:
    """Give (id, type, body) of the events of claimed tests by id, but of none that has been expunged."""
    rows = session.execute(
        select(Event.id, Event.type, Event.body).where(
            Event.id.in_(event_ids), Event.payload_expunged_at.is_(None)
        )
    )
    return {row.id: row for row in rows}


def take_claimed_all_workspaces(session: Session, delivery_ids: Collection[str]) -> set[str]:
    """Take claimed tests that have ended; gives those that were still there to be taken."""
    return set(
        session.scalars(
            delete(PendingTest)
            .where(PendingTest.delivery_id.in_(delivery_ids))
            .returning(PendingTest.delivery_id)
            .execution_options(synchronize_session=False)
        )
    )


def give_back_all_workspaces(session: Session, delivery_ids: Collection[str]) -> None:
    """Let claimed tests of which nothing was sent be claimed once more."""
    if delivery_ids:
        session.execute(
            update(PendingTest)
            .where(PendingTest.delivery_id.in_(delivery_ids))
            .values(claimed_at=None)
            .execution_options(synchronize_session=False)
        )


def cancel(session: Session, test: Any) -> None:
    """End the delivery of a test that nobody sends."""
    session.execute(
        update(Delivery)
        .where(
            Delivery.event_id == test.event_id,
            Delivery.endpoint_id == test.endpoint_id,
            Delivery.workspace_id == test.workspace_id,
            Delivery.status == DeliveryStatus.PENDING,
        )
        .values(status=DeliveryStatus.CANCELED.value, finished_at=utc_now())
        .execution_options(synchronize_session=False)
    )
