"""Queries of deliveries and attempts for people; the engine's own are in engine_repository.py."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import delete, select, update
from sqlalchemy.orm import Session

from app.core.database import utc_now
from app.core.ids import first_id_at
from app.core.pagination import PageRequest
from app.deliveries.models import ATTEMPT_PREFIX, Attempt, Delivery, DeliveryStatus, PendingDelivery
from app.events.models import Event

# The body that was sent is the event's; an event that is gone leaves its attempts.
_WITH_BODY = select(Attempt, Event.body).join(Event, Event.id == Attempt.event_id, isouter=True)


def find(session: Session, workspace_id: str, delivery_id: str) -> Delivery | None:
    """Give a delivery, or None."""
    return session.scalar(
        select(Delivery).where(Delivery.workspace_id == workspace_id, Delivery.id == delivery_id)
    )


def list_page(
    session: Session,
    workspace_id: str,
    page: PageRequest,
    *,
    endpoint_id: str | None,
    event_id: str | None,
    statuses: Sequence[str] | None,
) -> Sequence[Delivery]:
    """Give up to one more than a page of deliveries, newest first."""
    query = (
        select(Delivery)
        .where(Delivery.workspace_id == workspace_id)
        .order_by(Delivery.id.desc())
        .limit(page.limit + 1)
    )
    if page.before:
        query = query.where(Delivery.id < page.before)
    if endpoint_id:
        query = query.where(Delivery.endpoint_id == endpoint_id)
    if event_id:
        query = query.where(Delivery.event_id == event_id)
    if statuses is not None:
        query = query.where(Delivery.status.in_(statuses))
    return session.scalars(query).all()


def list_of_event(session: Session, workspace_id: str, event_id: str) -> Sequence[Delivery]:
    """Give all deliveries of an event, oldest first."""
    return session.scalars(
        select(Delivery)
        .where(Delivery.workspace_id == workspace_id, Delivery.event_id == event_id)
        .order_by(Delivery.id)
    ).all()


def find_attempt(session: Session, workspace_id: str, attempt_id: str) -> Any:
    """Give (attempt, the event's body), or None."""
    return session.execute(
        _WITH_BODY.where(Attempt.workspace_id == workspace_id, Attempt.id == attempt_id)
    ).first()


def list_attempts_of_delivery(session: Session, workspace_id: str, delivery_id: str) -> Sequence[Any]:
    """Give (attempt, the event's body) of a delivery, in their order."""
    return session.execute(
        _WITH_BODY.where(Attempt.workspace_id == workspace_id, Attempt.delivery_id == delivery_id).order_by(
            Attempt.number, Attempt.id
        )
    ).all()


def list_attempts_page(
    session: Session,
    workspace_id: str,
    endpoint_id: str,
    page: PageRequest,
    *,
    status: Sequence[str] | None,
    event_type: str | None,
    since: datetime | None,
    until: datetime | None,
) -> Sequence[Any]:
    """Give (attempt, the event's body): up to one more than a page of an endpoint's log, newest first."""
    query = (
        _WITH_BODY.where(Attempt.workspace_id == workspace_id, Attempt.endpoint_id == endpoint_id)
        .order_by(Attempt.id.desc())
        .limit(page.limit + 1)
    )
    if page.before:
        query = query.where(Attempt.id < page.before)
    if status is not None:
        query = query.where(Attempt.status.in_(status))
    if event_type:
        query = query.where(Attempt.event_type == event_type)
    # An attempt's id is made when it starts, so that a range of time is a range of the index.
    if since:
        query = query.where(Attempt.id >= first_id_at(ATTEMPT_PREFIX, since))
    if until:
        query = query.where(Attempt.id < first_id_at(ATTEMPT_PREFIX, until))
    return session.execute(query).all()


def cancel_pending(session: Session, workspace_id: str, endpoint_id: str) -> None:
    """End what is still pending for an endpoint."""
    session.execute(
        update(Delivery)
        .where(
            Delivery.workspace_id == workspace_id,
            Delivery.endpoint_id == endpoint_id,
            PendingDelivery.endpoint_id == endpoint_id,
            PendingDelivery.event_id == Delivery.event_id,
        )
        .values(status=DeliveryStatus.CANCELED.value, finished_at=utc_now())
        .execution_options(synchronize_session=False)
    )
    session.execute(delete(PendingDelivery).where(PendingDelivery.endpoint_id == endpoint_id))
