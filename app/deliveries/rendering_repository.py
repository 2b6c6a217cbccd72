"""Every query of rendered bodies. Deliveries, as (event id, endpoint id), are the caller's to have found."""

from collections.abc import Collection, Sequence
from typing import Any

import orjson
from sqlalchemy import insert, text

from app.core.unit_of_work import UnitOfWork
from app.deliveries.models import RenderedBody


def insert_rows(uow: UnitOfWork, rows: Sequence[dict[str, Any]]) -> None:
    """Insert rendered bodies, or rows that wait for one."""
    uow.connection.execute(insert(RenderedBody), rows)


def list_rows(uow: UnitOfWork, deliveries: Collection[tuple[str, str]]) -> dict[tuple[str, str], Any]:
    """Give the rows of those deliveries that have one, with all their columns by name."""
    if not deliveries:
        return {}
    query = _LIST_SQLITE if uow.is_sqlite else _LIST
    rows = uow.connection.execute(query, _keys(uow, deliveries)).mappings()
    return {(row["event_id"], row["endpoint_id"]): dict(row) for row in rows}


def update_rows(uow: UnitOfWork, rows: Sequence[dict[str, Any]]) -> None:
    """Write what was rendered into rows that waited for it."""
    uow.connection.execute(_UPDATE, rows)


def forget_errors(uow: UnitOfWork, deliveries: Collection[tuple[str, str]]) -> None:
    """Make those of these deliveries whose rendering failed wait for another."""
    if deliveries:
        query = _FORGET_ERRORS_SQLITE if uow.is_sqlite else _FORGET_ERRORS
        uow.connection.execute(query, _keys(uow, deliveries))


def _keys(uow: UnitOfWork, deliveries: Collection[tuple[str, str]]) -> dict[str, str]:
    if uow.is_sqlite:
        return {"keys": orjson.dumps(list(deliveries)).decode()}
    return {
        "event_ids": ",".join([event_id for event_id, _ in deliveries]),
        "endpoint_ids": ",".join([endpoint_id for _, endpoint_id in deliveries]),
    }


_COLUMNS = "r.event_id, r.endpoint_id, r.format, r.body, r.content_type, r.error"
_ROWS = """
unnest(string_to_array(:event_ids, ','), string_to_array(:endpoint_ids, ',')) AS wanted (event_id, endpoint_id)
"""
_ROWS_SQLITE = """
(SELECT json_extract(value, '$[0]') AS event_id, json_extract(value, '$[1]') AS endpoint_id FROM json_each(:keys))
AS wanted
"""
_WANTED = "r.event_id = wanted.event_id AND r.endpoint_id = wanted.endpoint_id"

# The limit keeps the planner from joining in bulk: each row is looked up by itself.
_LIST = text(f"""
SELECT {_COLUMNS} FROM {_ROWS}
CROSS JOIN LATERAL (SELECT * FROM rendered_bodies r WHERE {_WANTED} LIMIT 1) AS r
""")
_LIST_SQLITE = text(f"SELECT {_COLUMNS} FROM {_ROWS_SQLITE} CROSS JOIN rendered_bodies r ON {_WANTED}")

_FORGET_ERRORS = text(f"""
UPDATE rendered_bodies AS r SET error = NULL FROM {_ROWS} WHERE {_WANTED} AND r.error IS NOT NULL
""")
_FORGET_ERRORS_SQLITE = text(f"""
UPDATE rendered_bodies AS r SET error = NULL FROM {_ROWS_SQLITE} WHERE {_WANTED} AND r.error IS NOT NULL
""")

_UPDATE = text("""
UPDATE rendered_bodies SET format = :format, body = :body, content_type = :content_type, error = :error
WHERE event_id = :event_id AND endpoint_id = :endpoint_id
""")
