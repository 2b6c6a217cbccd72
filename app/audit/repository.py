"""Every query of the audit log: entries are added and read, and nothing else."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, get_args

from sqlalchemy import Connection, insert, select
from sqlalchemy.orm import Session

from app.audit.models import ID_PREFIX, AuditEntry
from app.core.actor import ActorKind
from app.core.ids import first_id_at
from app.core.pagination import PageRequest


def add(connection: Connection, row: dict[str, Any]) -> None:
    """Add an entry."""
    connection.execute(insert(AuditEntry), row)


def list_page(
    session: Session,
    workspace_id: str,
    page: PageRequest,
    *,
    actor: str | None,
    action: str | None,
    resource: str | None,
    since: datetime | None,
    until: datetime | None,
) -> Sequence[AuditEntry]:
    """Give up to one more than a page of entries, newest first."""
    query = (
        select(AuditEntry)
        .where(AuditEntry.workspace_id == workspace_id)
        .order_by(AuditEntry.id.desc())
        .limit(page.limit + 1)
    )
    if page.before:
        query = query.where(AuditEntry.id < page.before)
    if actor:
        column = AuditEntry.actor_type if actor in get_args(ActorKind) else AuditEntry.actor_id
        query = query.where(column == actor)
    if action:
        query = query.where(AuditEntry.action == action)
    if resource:
        query = query.where(AuditEntry.resource_id == resource)
    # Ids carry the time of their making, so that a range of time is a range of the index.
    if since:
        query = query.where(AuditEntry.id >= first_id_at(ID_PREFIX, since))
    if until:
        query = query.where(AuditEntry.id < first_id_at(ID_PREFIX, until))
    return session.scalars(query).all()
