"""Every query of events and event types."""

from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import delete, insert, select, text
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from app.core.database import copy_in
from app.core.ids import first_id_at
from app.core.pagination import PageRequest
from app.core.unit_of_work import UnitOfWork
from app.events.models import ID_PREFIX, CustomEventType, Event

_TABLE = Event.__table__
_INSERT = insert(Event.__table__)  # type: ignore[arg-type]


def _insert_once(dialect: Any) -> Any:
    return (
        dialect.insert(_TABLE)
        .on_conflict_do_nothing(
            index_elements=["workspace_id", "external_id"], index_where=text("external_id IS NOT NULL")
        )
        .returning(_TABLE.c.id)
    )


_INSERT_ONCE = {True: _insert_once(sqlite), False: _insert_once(postgresql)}
_COPY = "COPY events (id, workspace_id, type, occurred_at, created_at, body) FROM STDIN"


def insert_new(uow: UnitOfWork, rows: list[dict[str, Any]]) -> set[str]:
    """Insert events; gives the ids of those that are new, the others having an `external_id` of an earlier one."""
    connection = uow.connection
    # In one order everywhere: two batches with the same ids would else wait for each other in a circle.
    own = sorted(
        (row for row in rows if row["external_id"] is not None), key=lambda row: str(row["external_id"])
    )
    plain = [row for row in rows if row["external_id"] is None]
    new = {row["id"] for row in plain}
    if len(plain) > 1 and not uow.is_sqlite:
        # COPY costs a fifth of INSERT, but knows no conflicts.
        copy_in(connection, _COPY, "".join(map(_copy_line, plain)))
    elif plain:
        connection.execute(_INSERT, plain)
    if own:
        new |= set(connection.scalars(_INSERT_ONCE[uow.is_sqlite], own))
    return new


def _copy_line(row: dict[str, Any]) -> str:
    return (
        f"{row['id']}\t{row['workspace_id']}\t{row['type']}\t{row['occurred_at'].isoformat()}"
        f"\t{row['created_at'].isoformat()}\t\\\\x{row['body'].hex()}\n"
    )


def ids_by_external_id(
    session: Session, workspace_id: str, external_ids: Collection[str]
) -> dict[str, Event]:
    """Give the events that were published with these ids of the caller's."""
    rows = session.scalars(
        select(Event).where(Event.workspace_id == workspace_id, Event.external_id.in_(external_ids))
    )
    return {str(row.external_id): row for row in rows}


def find(session: Session, workspace_id: str, event_id: str) -> Event | None:
    """Give an event, or None."""
    return session.scalar(select(Event).where(Event.workspace_id == workspace_id, Event.id == event_id))


def list_page(
    session: Session,
    workspace_id: str,
    page: PageRequest,
    *,
    event_type: str | None,
    since: datetime | None,
    until: datetime | None,
) -> Sequence[Event]:
    """Give up to one more than a page of events, newest first."""
    query = (
        select(Event)
        .where(Event.workspace_id == workspace_id)
        .order_by(Event.id.desc())
        .limit(page.limit + 1)
    )
    if page.before:
        query = query.where(Event.id < page.before)
    if event_type:
        query = query.where(Event.type == event_type)
    # Ids carry the time of their making, so that a range of time is a range of the index.
    if since:
        query = query.where(Event.id >= first_id_at(ID_PREFIX, since))
    if until:
        query = query.where(Event.id < first_id_at(ID_PREFIX, until))
    return session.scalars(query).all()


def find_types(session: Session, workspace_id: str, names: Collection[str]) -> Sequence[CustomEventType]:
    """Give the workspace's own types among `names`."""
    return session.scalars(
        select(CustomEventType).where(
            CustomEventType.workspace_id == workspace_id, CustomEventType.name.in_(names)
        )
    ).all()


def list_types(session: Session, workspace_id: str) -> Sequence[CustomEventType]:
    """Give all of the workspace's own types, by name."""
    return session.scalars(
        select(CustomEventType)
        .where(CustomEventType.workspace_id == workspace_id)
        .order_by(CustomEventType.name)
    ).all()


def put_type(uow: UnitOfWork, row: dict[str, Any]) -> None:
    """Add or replace one of the workspace's own types; the same one twice at once is one after the other."""
    dialect = sqlite if uow.is_sqlite else postgresql
    statement = dialect.insert(CustomEventType).values(row)
    changed = {name: statement.excluded[name] for name in ("description", "schema", "example")}
    uow.session.execute(
        statement.on_conflict_do_update(index_elements=["workspace_id", "name"], set_=changed)
    )


def delete_type(session: Session, workspace_id: str, name: str) -> bool:
    """Delete one of the workspace's own types; tells whether there was one."""
    result = session.execute(
        delete(CustomEventType)
        .where(CustomEventType.workspace_id == workspace_id, CustomEventType.name == name)
        .returning(CustomEventType.name)
    )
    return result.first() is not None


def claim_not_fanned_out(uow: UnitOfWork, limit: int) -> Sequence[Any]:
    """Lock up to `limit` events of all workspaces that are not fanned out, oldest first: (id, workspace_id, type).

    On SQLite the transaction itself is the lock.
    """
    query = (
        select(Event.id, Event.workspace_id, Event.type)
        .where(Event.fanned_out_at.is_(None))
        .order_by(Event.id)
        .limit(limit)
    )
    return uow.connection.execute(query.with_for_update(skip_locked=True)).all()


def mark_fanned_out(uow: UnitOfWork, event_ids: list[str]) -> None:
    """Note that these events have their deliveries."""
    if uow.is_sqlite:
        uow.connection.execute(text(_MARK_SQLITE), [{"id": event_id} for event_id in event_ids])
    else:
        uow.connection.execute(text(_MARK_POSTGRESQL), {"ids": ",".join(event_ids)})


def any_not_fanned_out(session: Session) -> bool:
    """Tell whether an event of any workspace waits for its fan-out."""
    return session.execute(select(Event.id).where(Event.fanned_out_at.is_(None)).limit(1)).first() is not None


_MARK_POSTGRESQL = "UPDATE events SET fanned_out_at = now() WHERE id = ANY(string_to_array(:ids, ','))"
_MARK_SQLITE = "UPDATE events SET fanned_out_at = strftime('%Y-%m-%d %H:%M:%f000', 'now') WHERE id = :id"
