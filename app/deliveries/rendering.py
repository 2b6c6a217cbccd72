"""Bodies of deliveries to endpoints with another format than the default: rendered once, and sent as they were kept.

Fan-out renders with what the endpoint has then, so that a change of the format is no change of what a retry sends.
Deliveries that are made otherwise are prepared, and rendered when they are claimed. Bodies are kept encrypted, since a
format can put its secrets into them.
"""

import time
from collections.abc import Collection, Sequence
from typing import Any

import structlog

from app.core import json_body
from app.core.crypto import DecryptionError
from app.core.templates import TemplateFault
from app.core.unit_of_work import UnitOfWork
from app.deliveries import engine_repository
from app.deliveries import rendering_repository as repository
from app.deliveries.models import Attempt
from app.deliveries.work import DueDelivery
from app.endpoints import formats
from app.endpoints import service as endpoints
from app.endpoints.formats import Format

log = structlog.get_logger()

TEMPLATE_FAILED = "template_failed"
# One transaction renders for so long: templates that take their time must not hold up everybody's events.
SECONDS = 1.0


class Renderer:
    """Renders the deliveries of one transaction, and reads each endpoint's format once."""

    def __init__(self, uow: UnitOfWork) -> None:
        self._uow = uow
        self._formats: dict[str, Format | None] = {}
        self._seconds = 0.0

    @property
    def is_spent(self) -> bool:
        """Whether this transaction has rendered for long enough."""
        return self._seconds > SECONDS

    def render(self, endpoint: Any, event_id: str, envelope: Any, body: bytes) -> dict[str, Any]:
        """Give the row of a rendered body; its error says why there is none, and neither that it has to wait.

        `endpoint` is a row of `endpoints.list_subscriptions` or `endpoints.list_formats`.
        """
        row = {"event_id": event_id, "endpoint_id": endpoint.id, "format": endpoint.format}
        row |= {"body": None, "content_type": None, "error": None}
        fmt = self._format(endpoint)
        if fmt is None:
            return row
        started = time.monotonic()
        try:
            rendered = fmt.render(envelope, body)
            place = _place(event_id, endpoint.id, endpoint.workspace_id)
            sealed = self._uow.resources.secret_box.encrypt(rendered.body.decode(), *place)
            row |= {"body": sealed, "content_type": rendered.content_type}
        except TemplateFault as error:
            row["error"] = f"The template cannot be rendered for this event. {error}".replace("\0", "\ufffd")
        except Exception:
            # Raised further, it would stop the fan-out of all workspaces for ever.
            log.exception("deliveries.rendering_failed", event_id=event_id, endpoint_id=endpoint.id)
            row["error"] = f"The event cannot be put into the format {fmt.type}."
        self._seconds += time.monotonic() - started
        return row

    def _format(self, endpoint: Any) -> Format | None:
        if endpoint.id not in self._formats:
            try:
                self._formats[endpoint.id] = endpoints.open_format(self._uow, endpoint)
            except DecryptionError:
                # Its deliveries wait; those of others do not.
                log.exception("endpoint.format_unreadable", endpoint_id=endpoint.id)
                self._formats[endpoint.id] = None
        return self._formats[endpoint.id]


def keep(uow: UnitOfWork, *, rows: Sequence[dict[str, Any]]) -> None:
    """Keep what was rendered for deliveries that are being made."""
    repository.insert_rows(uow, rows)


def prepare(uow: UnitOfWork, *, event_id: str, endpoint_ids: Collection[str]) -> None:
    """Have the bodies of new deliveries of an event rendered when these are claimed; not for fan-out, which renders.

    To be called in the transaction that makes the deliveries.
    """
    rows = endpoints.list_formats(uow, endpoint_ids=endpoint_ids)
    waiting = [
        {"event_id": event_id, "endpoint_id": row.id, "format": row.format}
        for row in rows
        if row.format != formats.DEFAULT
    ]
    if waiting:
        repository.insert_rows(uow, waiting)


def renew(uow: UnitOfWork, *, deliveries: Collection[tuple[str, str]]) -> None:
    """Have what failed of these, (event id, endpoint id), rendered anew when they are claimed, as the format is then.

    To be called in the transaction that restarts the deliveries.
    """
    repository.forget_errors(uow, deliveries)


def take(uow: UnitOfWork, *, due: Sequence[DueDelivery]) -> list[DueDelivery]:
    """Put rendered bodies and errors into claimed deliveries, and render what is not rendered yet.

    Gives those that are ready. The others wait on: there was no time for them, or their format cannot be read now. One
    that was made while its endpoint had the default format is ready as it is.
    """
    engine_repository.find_by_index(uow)
    rows = repository.list_rows(uow, [(each.event_id, each.endpoint_id) for each in due])
    owners: dict[str, Any] = {}
    renderer = Renderer(uow)
    ready, fresh = [], []
    for each in due:
        row = rows.get((each.event_id, each.endpoint_id))
        if row is not None and not _put_in(uow, each, row):
            if renderer.is_spent:
                continue
            if not owners:
                found = endpoints.list_formats(uow, endpoint_ids={other.endpoint_id for other in due})
                owners = {owner.id: owner for owner in found}
            if each.endpoint_id not in owners:
                continue
            envelope = json_body.read_stored(each.body)
            row = renderer.render(owners[each.endpoint_id], each.event_id, envelope, each.body)
            if not _put_in(uow, each, row):
                continue
            fresh.append(row)
        ready.append(each)
    if fresh:
        repository.update_rows(uow, fresh)
    return ready


def shown_bodies(uow: UnitOfWork, *, attempts: Collection[Attempt]) -> dict[tuple[str, str], bytes | None]:
    """Give per (event id, endpoint id) the rendered body as it may be shown; absent where the event's own is sent."""
    workspaces = {(each.event_id, each.endpoint_id): each.workspace_id for each in attempts}
    shown: dict[tuple[str, str], bytes | None] = {}
    for key, row in repository.list_rows(uow, workspaces).items():
        body = _opened(uow, row, workspaces[key])
        shown[key] = None if body is None else formats.masked(row["format"], body)
    return shown


def _put_in(uow: UnitOfWork, delivery: DueDelivery, row: dict[str, Any]) -> bool:
    """Tell whether there was a body or an error to put into a delivery."""
    if row["error"] is not None:
        delivery.body, delivery.error = b"", row["error"]
        return True
    body = _opened(uow, row, delivery.workspace_id)
    if body is None:
        return False
    delivery.body, delivery.content_type = body, row["content_type"]
    return True


def _opened(uow: UnitOfWork, row: dict[str, Any], workspace_id: str) -> bytes | None:
    """Give a body; None where there is none, or none that can be read: it is as if it had never been rendered."""
    if row["body"] is None:
        return None
    try:
        place = _place(row["event_id"], row["endpoint_id"], workspace_id)
        return uow.resources.secret_box.decrypt(row["body"], *place).encode()
    except DecryptionError:
        log.exception("deliveries.body_unreadable", event_id=row["event_id"], endpoint_id=row["endpoint_id"])
        return None


def _place(event_id: str, endpoint_id: str, workspace_id: str) -> tuple[str, str, str, str]:
    return ("rendered_bodies", "body", f"{event_id}/{endpoint_id}", workspace_id)
