"""The engine's queries, in bulk, across workspaces; each exists once per database.

PostgreSQL gets columns as one text each, taken apart by `string_to_array`, and the log by COPY: psycopg's arrays are
dumped element by element in Python and cost several times as much. SQLite gets executemany in one transaction.
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import astuple, fields
from datetime import UTC, datetime
from typing import Any

import orjson
from sqlalchemy import Boolean, bindparam, insert, select, text

from app.core.database import NULL, SQLITE_NOW, UtcDateTime, copy_in, read_rows
from app.core.unit_of_work import UnitOfWork
from app.deliveries.models import Attempt, Delivery, DeliveryStatus, PendingDelivery
from app.deliveries.work import DueDelivery, NewAttempt, NewDelivery, Outcome, Position, Quota
from app.events.models import Event

_BEFORE_ALL = datetime(1970, 1, 1, tzinfo=UTC)


def insert_deliveries(uow: UnitOfWork, rows: Sequence[NewDelivery]) -> None:
    """Insert deliveries, due now."""
    if uow.is_sqlite:
        delivery = ("event_id", "endpoint_id", "id", "workspace_id", "event_type")
        uow.connection.execute(insert(Delivery), [dict(zip(delivery, row, strict=True)) for row in rows])
        pending = ("event_id", "endpoint_id", "delivery_id")
        uow.connection.execute(
            insert(PendingDelivery), [dict(zip(pending, row, strict=False)) for row in rows]
        )
        return
    copy_in(uow.connection, _COPY_DELIVERIES, "".join(["\t".join(row) + "\n" for row in rows]))
    copy_in(uow.connection, _COPY_PENDING, "".join([f"{row[0]}\t{row[1]}\t{row[2]}\n" for row in rows]))


def list_due(uow: UnitOfWork, quotas: Sequence[Quota], held: Collection[str]) -> list[DueDelivery]:
    """Give due deliveries of leased queues, oldest first within each, without those that the pump holds already."""
    if uow.is_sqlite:
        return _list_due_sqlite(uow, quotas, held)
    rows = read_rows(
        uow.connection,
        _LIST_DUE,
        {
            "endpoint_ids": _joined(quota.endpoint_id for quota in quotas),
            "first_attempts": _joined(quota.first_attempts for quota in quotas),
            "retries": _joined(quota.retries for quota in quotas),
            **_after("first", [quota.first_after for quota in quotas]),
            **_after("retries", [quota.retries_after for quota in quotas]),
            "held": _joined(held),
        },
    )
    return [DueDelivery(*row) for row in rows]


def list_by_events(uow: UnitOfWork, endpoint_id: str, event_ids: Collection[str]) -> list[DueDelivery]:
    """Give an endpoint's pending deliveries of these events, due or not."""
    parameters = {"endpoint_id": endpoint_id, "event_ids": list(event_ids)}
    return [DueDelivery(*row) for row in uow.connection.execute(_LIST_BY_EVENTS, parameters)]


def _after(name: str, positions: Sequence[Position | None]) -> dict[str, str]:
    return {
        f"{name}_at": ",".join(each[0].isoformat() if each else "-infinity" for each in positions),
        f"{name}_id": ",".join(each[1] if each else "" for each in positions),
    }


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
    """Move deliveries on. One that was canceled meanwhile stays so.

    One whose last attempt has failed goes on if somebody has asked for another while that was under way.
    """
    find_by_index(uow)
    failed = [outcome for outcome in outcomes if outcome.status != DeliveryStatus.SUCCEEDED]
    kept = _retry(uow, failed) if failed else set()
    finished: list[Outcome] = []
    retried: list[Outcome] = []
    for outcome in outcomes:
        goes_on = outcome.status == DeliveryStatus.PENDING or (outcome.event_id, outcome.endpoint_id) in kept
        (retried if goes_on else finished).append(outcome)
    if uow.is_sqlite:
        _update_sqlite(uow, finished, retried)
        return
    if finished:
        keys = _keys(finished)
        uow.connection.execute(_DELETE_PENDING, keys)
        statuses = {"statuses": _joined(outcome.status.value for outcome in finished)}
        uow.connection.execute(_FINISH, keys | statuses | _counts(finished))
    if retried:
        uow.connection.execute(_COUNT, _keys(retried) | _counts(retried))


def find_by_index(uow: UnitOfWork) -> None:
    """Have the rest of this transaction find rows one by one, whatever the planner makes of its tables.

    They grew by thousands since they were analysed: a scan, per batch, costs more than all else.
    """
    if not uow.is_sqlite:
        uow.connection.execute(_BY_INDEX)


def _retry(uow: UnitOfWork, failed: Sequence[Outcome]) -> set[tuple[str, str]]:
    """Put off what is to be retried; gives (event id, endpoint id) of what is not and yet goes on."""
    if uow.is_sqlite:
        last = [outcome for outcome in failed if outcome.retry_in_seconds is None]
        if rows := [_parameters(outcome) for outcome in failed if outcome.retry_in_seconds is not None]:
            uow.connection.execute(_RETRY_SQLITE, rows)
        return {
            (outcome.event_id, outcome.endpoint_id)
            for outcome in last
            if uow.connection.execute(_RETRY_SQLITE, _parameters(outcome)).rowcount
        }
    kept = uow.connection.execute(
        _RETRY,
        _keys(failed)
        | _counts(failed)
        | {
            "triggers": _joined(outcome.trigger for outcome in failed),
            "retry_in": _joined(outcome.retry_in_seconds for outcome in failed),
        },
    )
    return {(row.event_id, row.endpoint_id) for row in kept}


def _keys(outcomes: Sequence[Outcome]) -> dict[str, str]:
    return {
        "event_ids": _joined([outcome.event_id for outcome in outcomes]),
        "endpoint_ids": _joined([outcome.endpoint_id for outcome in outcomes]),
    }


def _counts(outcomes: Sequence[Outcome]) -> dict[str, str]:
    return {"counts": _joined(outcome.attempt_count for outcome in outcomes)}


def _update_sqlite(uow: UnitOfWork, finished: Sequence[Outcome], retried: Sequence[Outcome]) -> None:
    if finished:
        rows = [_parameters(outcome) for outcome in finished]
        uow.connection.execute(_DELETE_PENDING_SQLITE, rows)
        uow.connection.execute(_FINISH_SQLITE, rows)
    if retried:
        uow.connection.execute(_COUNT_SQLITE, [_parameters(outcome) for outcome in retried])


def _parameters(outcome: Outcome) -> dict[str, Any]:
    wait = outcome.retry_in_seconds
    return {
        "event_id": outcome.event_id,
        "endpoint_id": outcome.endpoint_id,
        "status": outcome.status.value,
        "attempt_count": outcome.attempt_count,
        "trigger": outcome.trigger,
        "retry_in": None if wait is None else f"+{wait:.3f} seconds",
    }


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
    return NULL if value is None else value


def _escaped(value: str | None) -> str:
    if value is None:
        return NULL
    if "\\" in value:
        value = value.replace("\\", "\\\\")
    return value.replace("\t", "\\t").replace("\n", "\\n").replace("\r", "\\r")


def _list_due_sqlite(uow: UnitOfWork, quotas: Sequence[Quota], held: Collection[str]) -> list[DueDelivery]:
    connection = uow.connection
    held_json = orjson.dumps(list(held)).decode()
    due = []
    for quota in quotas:
        for is_retry, limit, after in (
            (0, quota.first_attempts, quota.first_after),
            (1, quota.retries, quota.retries_after),
        ):
            if limit > 0:
                rows = connection.execute(
                    _LIST_DUE_SQLITE,
                    {
                        "endpoint_id": quota.endpoint_id,
                        "is_retry": is_retry,
                        "limit": limit,
                        "after_at": after[0] if after else _BEFORE_ALL,
                        "after_id": after[1] if after else "",
                        "held": held_json,
                    },
                )
                due += [DueDelivery(*row) for row in rows]
    return due


_COPY_DELIVERIES = "COPY deliveries (event_id, endpoint_id, id, workspace_id, event_type) FROM STDIN"
_COPY_PENDING = "COPY pending_deliveries (event_id, endpoint_id, delivery_id) FROM STDIN"

_DUE_COLUMNS = """
p.delivery_id, p.endpoint_id, e.workspace_id, p.event_id, e.type, p.attempt_count, p.trigger, e.body,
p.is_retry, p.next_attempt_at, endpoint.format_options IS NOT NULL AS formatted
"""

_ONE_QUEUE = """
(SELECT * FROM pending_deliveries
 WHERE endpoint_id = quota.endpoint_id AND is_retry = {is_retry}
   AND next_attempt_at <= now() AND (next_attempt_at, event_id) > (quota.{after}_at, quota.{after}_id)
   AND delivery_id <> ALL(string_to_array(%(held)s, ','))
 ORDER BY next_attempt_at, event_id LIMIT quota.{limit})
"""

_LIST_DUE = f"""
SELECT {_DUE_COLUMNS}
FROM unnest(string_to_array(%(endpoint_ids)s, ','), string_to_array(%(first_attempts)s, ',')::int[],
            string_to_array(%(retries)s, ',')::int[],
            string_to_array(%(first_at)s, ',')::timestamptz[], string_to_array(%(first_id)s, ','),
            string_to_array(%(retries_at)s, ',')::timestamptz[], string_to_array(%(retries_id)s, ','))
         AS quota (endpoint_id, first_attempts, retries, first_at, first_id, retries_at, retries_id)
LEFT JOIN endpoints endpoint ON endpoint.id = quota.endpoint_id
CROSS JOIN LATERAL (
    {_ONE_QUEUE.format(is_retry="false", limit="first_attempts", after="first")}
    UNION ALL
    {_ONE_QUEUE.format(is_retry="true", limit="retries", after="retries")}
) AS p
JOIN events e ON e.id = p.event_id
"""

_LIST_DUE_SQLITE = (
    text(f"""
SELECT {_DUE_COLUMNS}
FROM pending_deliveries p JOIN events e ON e.id = p.event_id
LEFT JOIN endpoints endpoint ON endpoint.id = p.endpoint_id
WHERE p.endpoint_id = :endpoint_id AND p.is_retry = :is_retry
  AND p.next_attempt_at <= {SQLITE_NOW} AND (p.next_attempt_at, p.event_id) > (:after_at, :after_id)
  AND p.delivery_id NOT IN (SELECT value FROM json_each(:held))
ORDER BY p.next_attempt_at, p.event_id LIMIT :limit
""")
    .bindparams(bindparam("after_at", type_=UtcDateTime()))
    .columns(is_retry=Boolean(), next_attempt_at=UtcDateTime(), formatted=Boolean())
)

_LIST_BY_EVENTS = (
    text(f"""
SELECT {_DUE_COLUMNS}
FROM pending_deliveries p JOIN events e ON e.id = p.event_id
LEFT JOIN endpoints endpoint ON endpoint.id = p.endpoint_id
WHERE p.endpoint_id = :endpoint_id AND p.event_id IN :event_ids
ORDER BY p.next_attempt_at, p.event_id
""")
    .bindparams(bindparam("event_ids", expanding=True))
    .columns(is_retry=Boolean(), next_attempt_at=UtcDateTime(), formatted=Boolean())
)

_COPY_ATTEMPTS = f"COPY attempts ({', '.join(f.name for f in fields(NewAttempt))}) FROM STDIN"

_ROWS = """
unnest(string_to_array(:event_ids, ','), string_to_array(:endpoint_ids, ','){more})
    AS rows (event_id, endpoint_id{names})
"""
_WITH_COUNTS = _ROWS.format(more=", string_to_array(:counts, ',')::int[]", names=", attempt_count")

_BY_INDEX = text("""
SELECT set_config('enable_hashjoin', 'off', true), set_config('enable_mergejoin', 'off', true),
       set_config('enable_seqscan', 'off', true)
""")

_DELETE_PENDING = text(f"""
DELETE FROM pending_deliveries AS p USING {_ROWS.format(more="", names="")}
WHERE p.event_id = rows.event_id AND p.endpoint_id = rows.endpoint_id
""")

_FINISH = text(f"""
UPDATE deliveries AS d SET
    status = CASE d.status WHEN 'pending' THEN rows.status ELSE d.status END,
    attempt_count = rows.attempt_count,
    finished_at = CASE d.status WHEN 'pending' THEN now() ELSE d.finished_at END
FROM {
    _ROWS.format(
        more=", string_to_array(:statuses, ','), string_to_array(:counts, ',')::int[]",
        names=", status, attempt_count",
    )
}
WHERE d.event_id = rows.event_id AND d.endpoint_id = rows.endpoint_id
""")

# Whoever asked for an attempt while an automatic one was under way gets it: its time is not put off.
_RETRY = text(f"""
WITH moved AS (
    UPDATE pending_deliveries AS p SET
        is_retry = p.trigger = rows.trigger,
        attempt_count = rows.attempt_count,
        next_attempt_at = CASE WHEN p.trigger = rows.trigger THEN now() + rows.retry_in * interval '1 second'
                          ELSE p.next_attempt_at END,
        trigger = CASE WHEN p.trigger = rows.trigger THEN 'auto' ELSE p.trigger END
    FROM {
    _ROWS.format(
        more=", string_to_array(:counts, ',')::int[], string_to_array(:triggers, ','), "
        "string_to_array(:retry_in, ',', '')::float8[]",
        names=", attempt_count, trigger, retry_in",
    )
}
    WHERE p.event_id = rows.event_id AND p.endpoint_id = rows.endpoint_id
      AND (rows.retry_in IS NOT NULL OR p.trigger <> rows.trigger)
    RETURNING p.event_id, p.endpoint_id, rows.retry_in
)
SELECT event_id, endpoint_id FROM moved WHERE retry_in IS NULL
""")

_COUNT = text(f"""
UPDATE deliveries AS d SET attempt_count = rows.attempt_count FROM {_WITH_COUNTS}
WHERE d.event_id = rows.event_id AND d.endpoint_id = rows.endpoint_id
""")

_THIS = "event_id = :event_id AND endpoint_id = :endpoint_id"
_DELETE_PENDING_SQLITE = text(f"DELETE FROM pending_deliveries WHERE {_THIS}")
_FINISH_SQLITE = text(f"""
UPDATE deliveries SET
    status = CASE status WHEN 'pending' THEN :status ELSE status END,
    attempt_count = :attempt_count,
    finished_at = CASE status WHEN 'pending' THEN {SQLITE_NOW} ELSE finished_at END
WHERE {_THIS}
""")
_RETRY_SQLITE = text(f"""
UPDATE pending_deliveries SET
    is_retry = (trigger = :trigger),
    attempt_count = :attempt_count,
    next_attempt_at = CASE WHEN trigger = :trigger
                      THEN strftime('%Y-%m-%d %H:%M:%f', 'now', :retry_in) || '000' ELSE next_attempt_at END,
    trigger = CASE WHEN trigger = :trigger THEN 'auto' ELSE trigger END
WHERE {_THIS} AND (:retry_in IS NOT NULL OR trigger <> :trigger)
""")
_COUNT_SQLITE = text(f"""
UPDATE deliveries SET attempt_count = :attempt_count WHERE {_THIS}
""")

_NEXT_DUE = text("""
SELECT wanted.endpoint_id, p.due
FROM unnest(string_to_array(:ids, ',')) AS wanted (endpoint_id)
CROSS JOIN LATERAL (
    SELECT least(
        (SELECT next_attempt_at FROM pending_deliveries WHERE endpoint_id = wanted.endpoint_id
         AND NOT is_retry ORDER BY next_attempt_at LIMIT 1),
        (SELECT next_attempt_at FROM pending_deliveries WHERE endpoint_id = wanted.endpoint_id
         AND is_retry ORDER BY next_attempt_at LIMIT 1)
    ) AS due
) AS p
""").columns(due=UtcDateTime())

_NEXT_DUE_SQLITE = (
    text("""
SELECT endpoint_id, min(next_attempt_at) AS due FROM pending_deliveries
WHERE endpoint_id IN :ids GROUP BY endpoint_id
""")
    .bindparams(bindparam("ids", expanding=True))
    .columns(due=UtcDateTime())
)
