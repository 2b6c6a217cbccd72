"""Queries of deliveries and attempts for people; the engine's own are in engine_repository.py."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import ColumnElement, delete, func, literal_column, or_, select, tuple_, update
from sqlalchemy.orm import Session

from app.core.database import utc_now
from app.core.ids import first_id_at
from app.core.pagination import MAX_SEARCHED, PageRequest
from app.deliveries.filters import AttemptFilter
from app.deliveries.models import (
    ATTEMPT_PREFIX,
    Attempt,
    Delivery,
    DeliveryStatus,
    PendingDelivery,
    PendingTest,
    RenderedBody,
)
from app.endpoints.models import Endpoint
from app.events.models import Event

# The body that was sent is the event's; an event that is gone leaves its attempts.
_WITH_BODY = select(Attempt, Event.body, Event.payload_expunged_at).join(
    Event, Event.id == Attempt.event_id, isouter=True
)
# In the words of the partial index: neither database would use it for a parameter.
_IS_FAILED = Attempt.status == literal_column("'failed'")
_SUCCESSFUL_CODES = range(200, 300)


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
) -> tuple[Sequence[Delivery], str | None]:
    """Give up to one more than a page of deliveries, newest first, and where the search for them ended if it did."""
    where = [Delivery.workspace_id == workspace_id]
    if page.before:
        where.append(Delivery.id < page.before)
    if endpoint_id:
        where.append(Delivery.endpoint_id == endpoint_id)
    if event_id:
        where.append(Delivery.event_id == event_id)
    searched = [Delivery.status.in_(statuses)] if statuses is not None else []
    searched_to = None
    if searched and not event_id:  # an event has few
        pending = _few_pending(session, workspace_id, page, endpoint_id) if statuses == ["pending"] else None
        if pending is not None:
            where.append(tuple_(Delivery.event_id, Delivery.endpoint_id).in_(pending))
        elif searched_to := _end_of_search(session, Delivery.id, where):
            where.append(Delivery.id >= searched_to)
    query = select(Delivery).where(*where, *searched).order_by(Delivery.id.desc()).limit(page.limit + 1)
    return session.scalars(query).all(), searched_to


def _few_pending(
    session: Session, workspace_id: str, page: PageRequest, endpoint_id: str | None
) -> Sequence[tuple[str, str]] | None:
    """Give the keys of a page of pending deliveries; None where there are so many that a search finds them soon."""
    scope = select(Endpoint.id).where(Endpoint.workspace_id == workspace_id)
    if endpoint_id:
        scope = scope.where(Endpoint.id == endpoint_id)
    pending = PendingDelivery.endpoint_id.in_(scope)
    if session.execute(select(PendingDelivery.event_id).where(pending).offset(MAX_SEARCHED).limit(1)).first():
        return None
    query = (
        select(PendingDelivery.event_id, PendingDelivery.endpoint_id)
        .where(pending)
        .order_by(PendingDelivery.delivery_id.desc())
        .limit(page.limit + 1)
    )
    if page.before:
        query = query.where(PendingDelivery.delivery_id < page.before)
    return [(row.event_id, row.endpoint_id) for row in session.execute(query)]


def _end_of_search(session: Session, column: Any, where: Sequence[ColumnElement[bool]]) -> str | None:
    """Give the id of the last row that a search looks at; None where there are not so many."""
    return session.scalar(select(column).where(*where).order_by(column.desc()).offset(MAX_SEARCHED).limit(1))


def list_of_event(session: Session, workspace_id: str, event_id: str) -> Sequence[Delivery]:
    """Give all deliveries of an event, oldest first."""
    return session.scalars(
        select(Delivery)
        .where(Delivery.workspace_id == workspace_id, Delivery.event_id == event_id)
        .order_by(Delivery.id)
    ).all()


def find_attempt(session: Session, workspace_id: str, attempt_id: str) -> Any:
    """Give (attempt, the event's body, when its payload was expunged), or None."""
    return session.execute(
        _WITH_BODY.where(Attempt.workspace_id == workspace_id, Attempt.id == attempt_id)
    ).first()


def list_attempts_of_delivery(session: Session, workspace_id: str, delivery_id: str) -> Sequence[Any]:
    """Give (attempt, the event's body, when its payload was expunged) of a delivery, in their order."""
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
    filters: AttemptFilter,
) -> tuple[Sequence[Any], str | None]:
    """Give the log of an endpoint, newest first, and where the search for it ended if it did.

    Its rows are (attempt, the event's body, when its payload was expunged), up to one more than a page.
    """
    where = _within_index(workspace_id, endpoint_id, page, filters)
    searched = _beside_index(filters)
    searched_to = None
    if filters.event_id:
        delivery = select(Delivery.id).where(
            Delivery.workspace_id == workspace_id,
            Delivery.event_id == filters.event_id,
            Delivery.endpoint_id == endpoint_id,
        )
        # By itself, so that no planner looks for it along the whole log; it has few attempts.
        where.append(Attempt.delivery_id == session.scalar(delivery))
    elif searched:
        searched_to = _end_of_search(session, Attempt.id, where)
        if searched_to:
            where.append(Attempt.id >= searched_to)
    query = _WITH_BODY.where(*where, *searched).order_by(Attempt.id.desc()).limit(page.limit + 1)
    return session.execute(query).all(), searched_to


def _within_index(
    workspace_id: str, endpoint_id: str, page: PageRequest, filters: AttemptFilter
) -> list[ColumnElement[bool]]:
    """Give what an index of the log leads to: a range of ids, of failures alone where it can be no other."""
    where = [Attempt.workspace_id == workspace_id, Attempt.endpoint_id == endpoint_id]
    if page.before:
        where.append(Attempt.id < page.before)
    # An attempt's id is made when it starts, so that a range of time is a range of the index.
    if filters.since:
        where.append(Attempt.id >= first_id_at(ATTEMPT_PREFIX, filters.since))
    if filters.until:
        where.append(Attempt.id < first_id_at(ATTEMPT_PREFIX, filters.until))
    if filters.status == ["failed"] or _are_failures(filters.status_code):
        where.append(_IS_FAILED)
    return where


def _beside_index(filters: AttemptFilter) -> list[ColumnElement[bool]]:
    """Give what has to be looked for row by row."""
    where: list[ColumnElement[bool]] = []
    if filters.status is not None and filters.status != ["failed"]:
        where.append(Attempt.status.in_(filters.status))
    if filters.status_code is not None:
        where.append(or_(*map(_has_code, filters.status_code)))
    if filters.event_type:
        where.append(Attempt.event_type == filters.event_type)
    return where


def _are_failures(codes: Sequence[tuple[int, int] | None] | None) -> bool:
    """Tell whether no success has one of these codes."""
    return codes is not None and not any(
        code and code[0] < _SUCCESSFUL_CODES.stop and code[1] >= _SUCCESSFUL_CODES.start for code in codes
    )


def _has_code(code: tuple[int, int] | None) -> ColumnElement[bool]:
    return Attempt.status_code.is_(None) if code is None else Attempt.status_code.between(*code)


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


def list_pending_endpoints(session: Session, workspace_id: str, event_id: str) -> Sequence[str]:
    """Give the endpoints for which an event's delivery is pending."""
    return session.scalars(
        select(PendingDelivery.endpoint_id)
        .join(Endpoint, Endpoint.id == PendingDelivery.endpoint_id)
        .where(PendingDelivery.event_id == event_id, Endpoint.workspace_id == workspace_id)
    ).all()


def erase_event(session: Session, workspace_id: str, event_id: str) -> None:
    """End what is pending of an event, and erase what was made of its payload and what receivers answered to it."""
    own = [Delivery.workspace_id == workspace_id, Delivery.event_id == event_id]
    session.execute(
        update(Delivery)
        .where(*own, Delivery.status == DeliveryStatus.PENDING)
        .values(status=DeliveryStatus.CANCELED.value, finished_at=utc_now())
        .execution_options(synchronize_session=False)
    )
    for table in (PendingDelivery, RenderedBody, PendingTest):
        session.execute(
            delete(table)
            .where(
                table.event_id == event_id, table.endpoint_id.in_(select(Delivery.endpoint_id).where(*own))
            )
            .execution_options(synchronize_session=False)
        )
    session.execute(
        update(Attempt)
        .where(
            Attempt.workspace_id == workspace_id,
            Attempt.delivery_id.in_(select(Delivery.id).where(*own)),
            func.length(Attempt.response_body) > 0,
        )
        .values(response_body=b"")
        .execution_options(synchronize_session=False)
    )
