"""The engine's queries, in bulk, across workspaces; each exists once per database.

PostgreSQL gets columns as one text each, taken apart by `string_to_array`, and the log by COPY: psycopg's arrays are
dumped element by element in Python and cost several times as much. SQLite gets executemany in one transaction.
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import astuple, fields
from datetime import datetime
from typing import Any

import orjson
from sqlalchemy import bindparam, insert, select, text
from sqlalchemy.dialects import sqlite

from app.core.database import UtcDateTime, copy_in, utc_now
from app.core.unit_of_work import UnitOfWork
from app.deliveries.models import Attempt, Delivery, DeliveryStatus, Trigger
from app.deliveries.work import DueDelivery, NewAttempt, NewDelivery, Outcome, Quota
from app.events.models import Event


def insert_deliveries(uow: UnitOfWork, rows: Sequence[NewDelivery]) -> None:
    """Insert deliveries, due now; those that exist already are left alone."""
    if uow.is_sqlite:
        statement = (
            sqlite.insert(Delivery)
            .values(
                status=DeliveryStatus.PENDING.value,
                attempt_count=0,
                is_retry=False,
                trigger=Trigger.AUTO.value,
                next_attempt_at=utc_now(),
                created_at=utc_now(),
            )
            .on_conflict_do_nothing()
        )
        uow.connection.execute(
            statement,
            [dict(zip((f.name for f in fields(NewDelivery)), astuple(row), strict=True)) for row in rows],
        )
        return
    uow.connection.execute(
        _INSERT_DELIVERIES,
        {f.name: _joined(getattr(row, f.name) for row in rows) for f in fields(NewDelivery)},
    )


def list_due(uow: UnitOfWork, quotas: Sequence[Quota], held: Collection[str]) -> list[DueDelivery]:
    """Give due deliveries of leased queues, oldest first within each, without those that the pump holds already."""
    if uow.is_sqlite:
        return _list_due_sqlite(uow, quotas, held)
    rows = uow.connection.execute(
        _LIST_DUE,
        {
            "endpoint_ids": _joined(quota.endpoint_id for quota in quotas),
            "first_attempts": _joined(quota.first_attempts for quota in quotas),
            "retries": _joined(quota.retries for quota in quotas),
            "held": _joined(held),
        },
    )
    return [DueDelivery(*row) for row in rows.all()]


def insert_attempts(uow: UnitOfWork, rows: Sequence[NewAttempt]) -> None:
    """Append to the delivery log."""
    if uow.is_sqlite:
        names = [f.name for f in fields(NewAttempt)]
        uow.connection.execute(insert(Attempt), [dict(zip(names, astuple(row), strict=True)) for row in rows])
        return
    copy_in(uow.connection, _COPY_ATTEMPTS, "".join(map(_copy_line, rows)))


def has_attempt(uow: UnitOfWork, attempt_id: str) -> bool:
    """Tell whether an attempt is in the log."""
    return uow.connection.execute(select(Attempt.id).where(Attempt.id == attempt_id)).first() is not None


def update_deliveries(uow: UnitOfWork, outcomes: Sequence[Outcome]) -> None:
    """Move deliveries on. One that was canceled meanwhile stays so."""
    if uow.is_sqlite:
        uow.connection.execute(
            _UPDATE_SQLITE,
            [
                {
                    "id": outcome.delivery_id,
                    "status": outcome.status.value,
                    "attempt_count": outcome.attempt_count,
                    "retry_in": None
                    if outcome.retry_in_seconds is None
                    else f"+{outcome.retry_in_seconds:.3f} seconds",
                }
                for outcome in outcomes
            ],
        )
        return
    uow.connection.execute(
        _UPDATE_DELIVERIES,
        {
            "ids": _joined(outcome.delivery_id for outcome in outcomes),
            "statuses": _joined(outcome.status.value for outcome in outcomes),
            "counts": _joined(outcome.attempt_count for outcome in outcomes),
            "retry_in": _joined(outcome.retry_in_seconds for outcome in outcomes),
        },
    )


def next_due(uow: UnitOfWork, endpoint_ids: Sequence[str]) -> dict[str, datetime]:
    """Give per endpoint when its earliest pending delivery is due; those without one are absent."""
    ids: Any = list(endpoint_ids) if uow.is_sqlite else _joined(endpoint_ids)
    rows = uow.connection.execute(_NEXT_DUE_SQLITE if uow.is_sqlite else _NEXT_DUE, {"ids": ids})
    return {row.endpoint_id: row.due for row in rows if row.due is not None}


def list_bodies(uow: UnitOfWork, event_ids: Collection[str]) -> dict[str, bytes]:
    """Give the bodies of events that are being fanned out."""
    rows = uow.connection.execute(select(Event.id, Event.body).where(Event.id.in_(event_ids)))
    return {row.id: row.body for row in rows}


def _joined(values: Iterable[object]) -> str:
    """Give the text that `string_to_array` takes apart; None is nothing. Ids, type names and numbers have no comma."""
    return ",".join("" if value is None else str(value) for value in values)


def _copy_line(row: NewAttempt) -> str:
    """Give a line of PostgreSQL's COPY text format. Only the last texts can hold what it would take for syntax."""
    return (
        f"{row.id}\t{row.workspace_id}\t{row.delivery_id}\t{row.event_id}\t{row.event_type}\t{row.endpoint_id}"
        f"\t{row.number}\t{row.trigger}\t{row.status}\t{_or_null(row.status_code)}\t{row.duration_ms}"
        f"\t{_or_null(row.error_code)}\t{_escaped(row.error_detail)}\t{row.started_at.isoformat()}"
        f"\t{_escaped(row.url)}\t{_escaped(row.request_headers)}\t{_escaped(row.response_headers)}"
        f"\t\\\\x{row.response_body.hex()}\t{'t' if row.response_truncated else 'f'}\n"
    )


def _or_null(value: object) -> object:
    return "\\N" if value is None else value


def _escaped(value: str | None) -> str:
    if value is None:
        return "\\N"
    if "\\" in value:
        value = value.replace("\\", "\\\\")
    return value.replace("\t", "\\t").replace("\n", "\\n").replace("\r", "\\r")


def _list_due_sqlite(uow: UnitOfWork, quotas: Sequence[Quota], held: Collection[str]) -> list[DueDelivery]:
    connection = uow.connection
    held_json = orjson.dumps(list(held)).decode()
    due = []
    for quota in quotas:
        for is_retry, limit in ((0, quota.first_attempts), (1, quota.retries)):
            if limit > 0:
                rows = connection.execute(
                    _LIST_DUE_SQLITE,
                    {
                        "endpoint_id": quota.endpoint_id,
                        "is_retry": is_retry,
                        "limit": limit,
                        "held": held_json,
                    },
                )
                due += [DueDelivery(*row) for row in rows]
    return due


_INSERT_DELIVERIES = text("""
INSERT INTO deliveries (id, workspace_id, event_id, event_type, endpoint_id,
                        status, attempt_count, is_retry, trigger, next_attempt_at, created_at)
SELECT rows.*, 'pending', 0, false, 'auto', now(), now()
FROM unnest(string_to_array(:id, ','), string_to_array(:workspace_id, ','), string_to_array(:event_id, ','),
            string_to_array(:event_type, ','), string_to_array(:endpoint_id, ',')) AS rows
ON CONFLICT (event_id, endpoint_id) DO NOTHING
""")

_DUE_COLUMNS = """
d.id, d.endpoint_id, d.workspace_id, d.event_id, d.event_type, d.attempt_count, d.trigger, e.body
"""

_ONE_QUEUE = """
(SELECT * FROM deliveries
 WHERE endpoint_id = quota.endpoint_id AND status = 'pending' AND is_retry = {is_retry}
   AND next_attempt_at <= now() AND id <> ALL(string_to_array(:held, ','))
 ORDER BY next_attempt_at LIMIT quota.{limit})
"""

_LIST_DUE = text(f"""
SELECT {_DUE_COLUMNS}
FROM unnest(string_to_array(:endpoint_ids, ','), string_to_array(:first_attempts, ',')::int[],
            string_to_array(:retries, ',')::int[])
         AS quota (endpoint_id, first_attempts, retries)
CROSS JOIN LATERAL (
    {_ONE_QUEUE.format(is_retry="false", limit="first_attempts")}
    UNION ALL
    {_ONE_QUEUE.format(is_retry="true", limit="retries")}
) AS d
JOIN events e ON e.id = d.event_id
""")

_LIST_DUE_SQLITE = text(f"""
SELECT {_DUE_COLUMNS}
FROM deliveries d JOIN events e ON e.id = d.event_id
WHERE d.endpoint_id = :endpoint_id AND d.status = 'pending' AND d.is_retry = :is_retry
  AND d.next_attempt_at <= (strftime('%Y-%m-%d %H:%M:%f', 'now') || '000')
  AND d.id NOT IN (SELECT value FROM json_each(:held))
ORDER BY d.next_attempt_at LIMIT :limit
""")

_COPY_ATTEMPTS = f"COPY attempts ({', '.join(f.name for f in fields(NewAttempt))}) FROM STDIN"

_UPDATE_DELIVERIES = text("""
UPDATE deliveries SET
    status = rows.status,
    attempt_count = rows.attempt_count,
    is_retry = true,
    trigger = 'auto',
    next_attempt_at = now() + rows.retry_in * interval '1 second',
    finished_at = CASE WHEN rows.status = 'pending' THEN NULL ELSE now() END
FROM unnest(string_to_array(:ids, ','), string_to_array(:statuses, ','), string_to_array(:counts, ',')::int[],
            string_to_array(:retry_in, ',', '')::float8[])
         AS rows (id, status, attempt_count, retry_in)
WHERE deliveries.id = rows.id AND deliveries.status = 'pending'
""")

_UPDATE_SQLITE = text("""
UPDATE deliveries SET
    status = :status,
    attempt_count = :attempt_count,
    is_retry = 1,
    trigger = 'auto',
    next_attempt_at = strftime('%Y-%m-%d %H:%M:%f', 'now', :retry_in) || '000',
    finished_at = CASE WHEN :status = 'pending' THEN NULL
                  ELSE strftime('%Y-%m-%d %H:%M:%f', 'now') || '000' END
WHERE id = :id AND status = 'pending'
""")

_NEXT_DUE = text("""
SELECT wanted.endpoint_id, d.due
FROM unnest(string_to_array(:ids, ',')) AS wanted (endpoint_id)
CROSS JOIN LATERAL (
    SELECT least(
        (SELECT next_attempt_at FROM deliveries WHERE endpoint_id = wanted.endpoint_id AND status = 'pending'
         AND NOT is_retry ORDER BY next_attempt_at LIMIT 1),
        (SELECT next_attempt_at FROM deliveries WHERE endpoint_id = wanted.endpoint_id AND status = 'pending'
         AND is_retry ORDER BY next_attempt_at LIMIT 1)
    ) AS due
) AS d
""").columns(due=UtcDateTime())

_NEXT_DUE_SQLITE = (
    text("""
SELECT endpoint_id, min(next_attempt_at) AS due FROM deliveries
WHERE endpoint_id IN :ids AND status = 'pending' GROUP BY endpoint_id
""")
    .bindparams(bindparam("ids", expanding=True))
    .columns(due=UtcDateTime())
)
