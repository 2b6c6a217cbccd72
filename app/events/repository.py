"""Every query of events and event types."""

from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import delete, insert, select, text
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from app.core.database import NULL, copy_in, read_rows
from app.core.ids import first_id_at
from app.core.pagination import PageRequest
from app.core.unit_of_work import UnitOfWork
from app.events.models import ID_PREFIX, CustomEventType, Event, EventExternalId, FanOut

_EVENT_COLUMNS = "id, workspace_id, type, external_id, occurred_at, created_at, body"
_COPY_EVENTS = f"COPY events ({_EVENT_COLUMNS}) FROM STDIN"
_COPY_FAN_OUTS = "COPY fan_outs (workspace_id, event_id, event_type) FROM STDIN"
# One statement each, which needs no transaction around it.
_INSERT_ONE = f"""
WITH event AS (
    INSERT INTO events ({_EVENT_COLUMNS})
    VALUES (%(id)s, %(workspace_id)s, %(type)s, NULL, %(occurred_at)s, %(created_at)s, %(body)s)
)
INSERT INTO fan_outs (workspace_id, event_id, event_type) VALUES (%(workspace_id)s, %(id)s, %(type)s)
RETURNING event_id
"""
_INSERT_ONE_ONCE = f"""
WITH own AS (
    INSERT INTO event_external_ids (workspace_id, external_id, event_id)
    VALUES (%(workspace_id)s, %(external_id)s, %(id)s) ON CONFLICT DO NOTHING RETURNING event_id
), event AS (
    INSERT INTO events ({_EVENT_COLUMNS})
    SELECT event_id, %(workspace_id)s, %(type)s, %(external_id)s, %(occurred_at)s, %(created_at)s, %(body)s FROM own
)
INSERT INTO fan_outs (workspace_id, event_id, event_type) SELECT %(workspace_id)s, event_id, %(type)s FROM own
RETURNING event_id
"""


def _insert_once(dialect: Any) -> Any:
    return dialect.insert(EventExternalId).on_conflict_do_nothing().returning(EventExternalId.event_id)


_INSERT_ONCE = {True: _insert_once(sqlite), False: _insert_once(postgresql)}


def insert_new(uow: UnitOfWork, rows: list[dict[str, Any]]) -> set[str]:
    """Insert events and the duty to fan them out; gives the ids of those that are new.

    The others have an `external_id` of an earlier one.
    """
    connection = uow.connection
    if len(rows) == 1 and not uow.is_sqlite:
        one = _INSERT_ONE if rows[0]["external_id"] is None else _INSERT_ONE_ONCE
        return {row[0] for row in read_rows(connection, one, rows[0])}
    new = {row["id"] for row in rows if row["external_id"] is None}
    # In one order everywhere: two batches with the same ids would else wait for each other in a circle.
    own = sorted(
        (row for row in rows if row["external_id"] is not None), key=lambda row: str(row["external_id"])
    )
    if own:
        once = [
            {
                "workspace_id": row["workspace_id"],
                "external_id": row["external_id"],
                "event_id": row["id"],
            }
            for row in own
        ]
        new |= set(connection.scalars(_INSERT_ONCE[uow.is_sqlite], once))
    fresh = [row for row in rows if row["id"] in new]
    if fresh and uow.is_sqlite:
        connection.execute(insert(Event), fresh)
        add_fan_outs(uow, [(row["workspace_id"], row["id"], row["type"]) for row in fresh])
    elif fresh:
        # COPY costs a fifth of INSERT.
        copy_in(connection, _COPY_EVENTS, "".join(map(_copy_line, fresh)))
        add_fan_outs(uow, [(row["workspace_id"], row["id"], row["type"]) for row in fresh])
    return new


def add_fan_outs(uow: UnitOfWork, rows: Sequence[tuple[str, str, str]]) -> None:
    """Note that these events are to be fanned out: (workspace id, event id, type)."""
    if uow.is_sqlite:
        columns = ("workspace_id", "event_id", "event_type")
        uow.connection.execute(insert(FanOut), [dict(zip(columns, row, strict=True)) for row in rows])
    else:
        copy_in(uow.connection, _COPY_FAN_OUTS, "".join(f"{row[0]}\t{row[1]}\t{row[2]}\n" for row in rows))


def _copy_line(row: dict[str, Any]) -> str:
    return (
        f"{row['id']}\t{row['workspace_id']}\t{row['type']}\t{row['external_id'] or NULL}"
        f"\t{row['occurred_at'].isoformat()}\t{row['created_at'].isoformat()}\t\\\\x{row['body'].hex()}\n"
    )


def ids_by_external_id(
    session: Session, workspace_id: str, external_ids: Collection[str]
) -> dict[str, Event]:
    """Give the events that were published with these ids of the caller's."""
    rows = session.scalars(
        select(Event)
        .join(EventExternalId, EventExternalId.event_id == Event.id)
        .where(EventExternalId.workspace_id == workspace_id, EventExternalId.external_id.in_(external_ids))
    )
    return {str(row.external_id): row for row in rows}


def find(session: Session, workspace_id: str, event_id: str, *, hold: bool = False) -> Event | None:
    """Give an event, or None; `hold` keeps it as it is until the end of the transaction."""
    query = select(Event).where(Event.workspace_id == workspace_id, Event.id == event_id)
    return session.scalar(query.with_for_update(read=True) if hold else query)


def find_for_update(session: Session, workspace_id: str, event_id: str) -> Event | None:
    """Give an event that nobody else changes or sends again until the end of the transaction, or None."""
    return session.scalar(
        select(Event).where(Event.workspace_id == workspace_id, Event.id == event_id).with_for_update()
    )


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


def claim_fan_outs(uow: UnitOfWork, limit: int) -> list[tuple[str, str, str]]:
    """Take up to about `limit` duties to fan out, some of each workspace: (workspace id, event id, type).

    They are deleted: the transaction that commits this has made the deliveries, and nobody else sees them meanwhile.
    """
    if not uow.is_sqlite:
        return [
            (row[0], row[1], row[2]) for row in uow.connection.execute(_CLAIM_POSTGRESQL, {"limit": limit})
        ]
    workspace_ids = uow.connection.scalars(select(FanOut.workspace_id).distinct().limit(limit)).all()
    claimed: list[tuple[str, str, str]] = []
    for workspace_id in workspace_ids:
        parameters = {"workspace_id": workspace_id, "limit": -(-limit // len(workspace_ids))}
        claimed += [(row[0], row[1], row[2]) for row in uow.connection.execute(_CLAIM_SQLITE, parameters)]
    return claimed


def claim_fan_out(session: Session, workspace_id: str, event_id: str) -> bool:
    """Take the duty to fan out one event; waits for whoever is doing so, and then tells that there is none."""
    result = session.execute(
        delete(FanOut)
        .where(FanOut.workspace_id == workspace_id, FanOut.event_id == event_id)
        .returning(FanOut.event_id)
    )
    return result.first() is not None


def any_fan_out(session: Session) -> bool:
    """Tell whether an event of any workspace waits for its fan-out."""
    return session.execute(select(FanOut.event_id).limit(1)).first() is not None


_CLAIM_SQLITE = text("""
DELETE FROM fan_outs WHERE workspace_id = :workspace_id AND event_id IN (
    SELECT event_id FROM fan_outs WHERE workspace_id = :workspace_id ORDER BY event_id LIMIT :limit
)
RETURNING workspace_id, event_id, event_type
""")

# The recursion steps from one workspace to the next, where DISTINCT would read every row.
_CLAIM_POSTGRESQL = text("""
WITH RECURSIVE waiting AS (
    (SELECT workspace_id FROM fan_outs ORDER BY workspace_id LIMIT 1)
    UNION ALL
    SELECT (SELECT workspace_id FROM fan_outs WHERE workspace_id > waiting.workspace_id
            ORDER BY workspace_id LIMIT 1)
    FROM waiting WHERE workspace_id IS NOT NULL
), share AS (
    SELECT workspace_id, ceil(CAST(:limit AS int) / (count(*) OVER ())::float)::int AS count
    FROM (SELECT workspace_id FROM waiting WHERE workspace_id IS NOT NULL LIMIT :limit) AS these
)
DELETE FROM fan_outs WHERE ctid = ANY(ARRAY(
    SELECT claimed.ctid FROM share CROSS JOIN LATERAL (
        SELECT ctid FROM fan_outs WHERE workspace_id = share.workspace_id
        ORDER BY event_id LIMIT share.count FOR UPDATE SKIP LOCKED
    ) AS claimed
))
RETURNING workspace_id, event_id, event_type
""")
