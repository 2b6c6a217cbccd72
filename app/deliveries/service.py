"""The rules of deliveries as people see them: lists, the log, and what deleting or pausing an endpoint means."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import orjson
from sqlalchemy.orm import class_mapper

from app.core.errors import NotFound
from app.core.pagination import MAX_LIMIT, Page, PageRequest, page_of, page_request
from app.core.unit_of_work import Resources, UnitOfWork
from app.deliveries import rendering, repository
from app.deliveries.filters import AttemptFilter
from app.deliveries.models import ATTEMPT_PREFIX, Attempt, Delivery
from app.endpoints import queues
from app.endpoints import service as endpoints
from app.endpoints.models import EndpointStatus
from app.endpoints.service import EndpointView
from app.events import service as events
from app.events.models import Event
from config.wire import TaskName

_EXPORTED_AT_ONCE = MAX_LIMIT


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
    return {**_columns(delivery), "attempts": views(uow, rows)}


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
    rows, searched_to = repository.list_page(
        uow.session, workspace_id, page, endpoint_id=endpoint_id, event_id=event_id, statuses=statuses
    )
    return page_of(rows, page, searched_to=searched_to)


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
    return views(uow, [row])[0]


def list_attempts(
    uow: UnitOfWork,
    *,
    workspace_id: str,
    endpoint_id: str,
    page: PageRequest,
    filters: AttemptFilter,
) -> Page[AttemptView]:
    """Give a page of an endpoint's delivery log, newest first; raises `NotFound`."""
    endpoints.find(uow, workspace_id=workspace_id, endpoint_id=endpoint_id)
    return _log_page(uow, workspace_id, endpoint_id, page, filters)


def export_attempts(
    uow: UnitOfWork, *, workspace_id: str, endpoint_id: str, filters: AttemptFilter
) -> Iterator[AttemptView]:
    """Give an endpoint's whole delivery log, newest first; raises `NotFound` before it gives any.

    After the first page no transaction is open while the caller takes its time.
    """
    first = list_attempts(
        uow,
        workspace_id=workspace_id,
        endpoint_id=endpoint_id,
        page=PageRequest(_EXPORTED_AT_ONCE),
        filters=filters,
    )
    return _export(uow.resources, workspace_id, endpoint_id, first, filters)


def _export(
    resources: Resources,
    workspace_id: str,
    endpoint_id: str,
    page: Page[AttemptView],
    filters: AttemptFilter,
) -> Iterator[AttemptView]:
    yield from page.items
    while page.next_cursor is not None:
        request = page_request(_EXPORTED_AT_ONCE, page.next_cursor, ATTEMPT_PREFIX)
        with resources.transaction(write=False) as uow:
            page = _log_page(uow, workspace_id, endpoint_id, request, filters)
        yield from page.items


def _log_page(
    uow: UnitOfWork, workspace_id: str, endpoint_id: str, page: PageRequest, filters: AttemptFilter
) -> Page[AttemptView]:
    rows, searched_to = repository.list_attempts_page(uow.session, workspace_id, endpoint_id, page, filters)
    return page_of(views(uow, rows), page, searched_to=searched_to)


def expunge_payload(uow: UnitOfWork, *, workspace_id: str, event_id: str) -> None:
    """Erase an event's payload wherever it is kept; what is pending of it is canceled. Raises `NotFound`.

    Again also erases what came back meanwhile for an attempt that was under way the first time.
    """
    events.expunge(uow, workspace_id=workspace_id, event_id=event_id)
    # Queues before deliveries, as a pump that records.
    pending = repository.list_pending_endpoints(uow.session, workspace_id, event_id)
    queues.wake(uow, endpoint_ids=pending)
    repository.erase_event(uow.session, workspace_id, event_id)


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


def views(uow: UnitOfWork, rows: Sequence[Any]) -> list[AttemptView]:
    """Give attempts as they are shown, out of rows that have them with their events' bodies."""
    rendered = rendering.shown_bodies(uow, attempts=[row[0] for row in rows])
    return [
        _view(attempt, rendered.get((attempt.event_id, attempt.endpoint_id), body), payload_expunged_at)
        for attempt, body, payload_expunged_at in rows
    ]


def _view(attempt: Attempt, body: bytes | None, payload_expunged_at: datetime | None) -> AttemptView:
    """Give an attempt, and the body that was sent, as they are shown.

    Once the payload is expunged neither is what was sent shown nor what came back: receivers echo.
    """
    expunged = payload_expunged_at is not None
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
            "body": None
            if body is None or expunged or attempt.error_code == rendering.TEMPLATE_FAILED
            else body.decode(),
        },
        response={
            "headers": _joined(orjson.loads(attempt.response_headers)),
            "body": None
            if expunged
            else attempt.response_body.decode("utf-8", "replace").replace("\0", "\ufffd"),
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
