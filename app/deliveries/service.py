"""The rules of deliveries as people see them: lists, the log, and what deleting or pausing an endpoint means."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import orjson
from sqlalchemy.orm import class_mapper

from app.core.errors import NotFound
from app.core.pagination import Page, PageRequest, page_of
from app.core.unit_of_work import UnitOfWork
from app.deliveries import repository
from app.deliveries.models import Attempt, Delivery
from app.endpoints import queues
from app.endpoints import service as endpoints
from app.endpoints.models import EndpointStatus
from app.endpoints.service import EndpointView
from app.events import service as events
from app.events.models import Event
from config.wire import TaskName


@dataclass(frozen=True, slots=True)
class AttemptView:
    """An attempt as it is shown: what was sent and what came back."""

    id: str
    delivery_id: str
    event_id: str
    event_type: str
    endpoint_id: str
    number: int
    trigger: str
    status: str
    status_code: int | None
    duration_ms: int
    error: dict[str, str | None] | None
    started_at: datetime
    request: dict[str, Any]
    response: dict[str, Any] | None


def get(uow: UnitOfWork, *, workspace_id: str, delivery_id: str) -> dict[str, Any]:
    """Give a delivery's fields and its `attempts`; raises `NotFound`."""
    delivery = repository.find(uow.session, workspace_id, delivery_id)
    if delivery is None:
        raise NotFound
    rows = repository.list_attempts_of_delivery(uow.session, workspace_id, delivery_id)
    return {**_columns(delivery), "attempts": [_view(attempt, body) for attempt, body in rows]}


def list_deliveries(
    uow: UnitOfWork,
    *,
    workspace_id: str,
    page: PageRequest,
    endpoint_id: str | None = None,
    event_id: str | None = None,
    statuses: Sequence[str] | None = None,
) -> Page[Delivery]:
    """Give a page of deliveries, newest first."""
    rows = repository.list_page(
        uow.session, workspace_id, page, endpoint_id=endpoint_id, event_id=event_id, statuses=statuses
    )
    return page_of(rows, page)


def get_event(uow: UnitOfWork, *, workspace_id: str, event_id: str) -> dict[str, Any]:
    """Give an event's fields and its `deliveries`; raises `NotFound`."""
    event = events.get(uow, workspace_id=workspace_id, event_id=event_id)
    deliveries = repository.list_of_event(uow.session, workspace_id, event_id)
    return {**_columns(event), "deliveries": deliveries}


def get_attempt(uow: UnitOfWork, *, workspace_id: str, attempt_id: str) -> AttemptView:
    """Give an attempt; raises `NotFound`."""
    row = repository.find_attempt(uow.session, workspace_id, attempt_id)
    if row is None:
        raise NotFound
    return _view(*row)


def list_attempts(
    uow: UnitOfWork,
    *,
    workspace_id: str,
    endpoint_id: str,
    page: PageRequest,
    status: Sequence[str] | None = None,
    event_type: str | None = None,
    since: datetime | None = None,
    until: datetime | None = None,
) -> Page[AttemptView]:
    """Give a page of an endpoint's delivery log, newest first; raises `NotFound`."""
    endpoints.find(uow, workspace_id=workspace_id, endpoint_id=endpoint_id)
    rows = repository.list_attempts_page(
        uow.session,
        workspace_id,
        endpoint_id,
        page,
        status=status,
        event_type=event_type,
        since=since,
        until=until,
    )
    return page_of([_view(attempt, body) for attempt, body in rows], page)


def delete_endpoint(uow: UnitOfWork, *, workspace_id: str, endpoint_id: str) -> None:
    """Delete an endpoint; what is pending for it is canceled. Raises `NotFound`."""
    endpoints.delete(uow, workspace_id=workspace_id, endpoint_id=endpoint_id)
    repository.cancel_pending(uow.session, workspace_id, endpoint_id)


def pause_endpoint(uow: UnitOfWork, *, workspace_id: str, endpoint_id: str) -> EndpointView:
    """Stop sending to an endpoint; its deliveries wait. Raises `NotFound`."""
    view = endpoints.set_status(
        uow, workspace_id=workspace_id, endpoint_id=endpoint_id, status=EndpointStatus.PAUSED
    )
    queues.rest(uow, endpoint_id=endpoint_id)
    return view


def resume_endpoint(uow: UnitOfWork, *, workspace_id: str, endpoint_id: str) -> EndpointView:
    """Send again, what has waited first. Raises `NotFound`."""
    view = endpoints.set_status(
        uow, workspace_id=workspace_id, endpoint_id=endpoint_id, status=EndpointStatus.ACTIVE
    )
    queues.wake(uow, endpoint_ids=[endpoint_id])
    uow.ring(TaskName.DELIVERIES_PUMP)
    return view


def _columns(row: Delivery | Event) -> dict[str, Any]:
    return {attribute.key: getattr(row, attribute.key) for attribute in class_mapper(type(row)).column_attrs}


def _view(attempt: Attempt, body: bytes | None) -> AttemptView:
    return AttemptView(
        id=attempt.id,
        delivery_id=attempt.delivery_id,
        event_id=attempt.event_id,
        event_type=attempt.event_type,
        endpoint_id=attempt.endpoint_id,
        number=attempt.number,
        trigger=attempt.trigger,
        status=attempt.status,
        status_code=attempt.status_code,
        duration_ms=attempt.duration_ms,
        error={"code": attempt.error_code, "detail": attempt.error_detail} if attempt.error_code else None,
        started_at=attempt.started_at,
        request={
            "url": attempt.url,
            "headers": dict(orjson.loads(attempt.request_headers)),
            "body": None if body is None else body.decode(),
        },
        response={
            "headers": _joined(orjson.loads(attempt.response_headers)),
            "body": attempt.response_body.decode("utf-8", "replace").replace("\0", "\ufffd"),
            "truncated": attempt.response_truncated,
        }
        if attempt.status_code is not None
        else None,
    )


def _joined(pairs: list[list[str]]) -> dict[str, str]:
    # A header that came several times is shown as one line, as RFC 9110 lets any recipient combine them.
    joined: dict[str, str] = {}
    for name, value in pairs:
        joined[name] = f"{joined[name]}, {value}" if name in joined else value
    return joined
