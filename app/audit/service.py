"""The rules of the audit log."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from app.audit import repository
from app.audit.models import ID_PREFIX, AuditEntry
from app.core import json_body
from app.core.clock import now
from app.core.ids import new_id
from app.core.pagination import Page, PageRequest, page_of
from app.core.unit_of_work import UnitOfWork


def record(
    uow: UnitOfWork, *, workspace_id: str, action: str, resource_id: str, changed: Sequence[str] = ()
) -> None:
    """Record a change in the transaction that makes it, so that there is neither without the other.

    `action` is `noun.verbed`, its noun the resource's type; `changed` has names of fields, never their values.
    """
    moment = now()
    repository.add(
        uow.connection,
        {
            "id": new_id(ID_PREFIX),
            "workspace_id": workspace_id,
            "action": action,
            "actor_type": uow.actor.kind,
            "actor_id": uow.actor.id,
            "resource_id": resource_id,
            "changed": list(changed),
            "address": uow.actor.address,
            "request_id": uow.actor.request_id,
            "created_at": moment,
        },
    )


def changed_fields(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Give the names in `after` whose values are not those of `before`, as JSON: to Python, 1 and True are equal."""
    return sorted(
        name for name, value in after.items() if json_body.dumps(value) != json_body.dumps(before[name])
    )


def list_entries(
    uow: UnitOfWork,
    *,
    workspace_id: str,
    page: PageRequest,
    actor: str | None = None,
    action: str | None = None,
    resource: str | None = None,
    since: datetime | None = None,
    until: datetime | None = None,
) -> Page[dict[str, Any]]:
    """Give a page of entries as they are shown, newest first.

    `actor` is an id, or a kind such as `cli`; `resource` is an id.
    """
    rows = page_of(
        repository.list_page(
            uow.session,
            workspace_id,
            page,
            actor=actor,
            action=action,
            resource=resource,
            since=since,
            until=until,
        ),
        page,
    )
    return Page([_view(row) for row in rows.items], rows.next_cursor)


def _view(row: AuditEntry) -> dict[str, Any]:
    return {
        "id": row.id,
        "action": row.action,
        "actor": {"type": row.actor_type, "id": row.actor_id},
        "resource": {"type": row.action.partition(".")[0], "id": row.resource_id},
        "changed": row.changed,
        "address": row.address,
        "request_id": row.request_id,
        "created_at": row.created_at,
    }
