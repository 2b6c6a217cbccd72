"""Leases of endpoint queues: which pump serves which endpoint. Queries and rules are one here.

Lock order: rows are locked by ascending endpoint id, so that pumps and fan-outs never wait for each other in a circle.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import bindparam, select, text, update

from app.core.database import SQLITE_NOW, UtcDateTime, utc_now
from app.core.unit_of_work import UnitOfWork
from app.endpoints.models import Endpoint, EndpointQueue, EndpointStatus

# Longer than the longest timeout of a policy, so that a lease can only be lost by a process that is stuck.
LEASE_SECONDS = 45


@dataclass(frozen=True, slots=True)
class LeasedQueue:
    """A queue that this pump serves from now on."""

    endpoint_id: str
    rate_limited_until: datetime | None


class LeaseLost(Exception):  # noqa: N818 - what happened, not a fault of ours
    """These queues were taken over: nothing of theirs may be recorded."""

    def __init__(self, endpoint_ids: set[str]) -> None:
        super().__init__(f"{len(endpoint_ids)} leases lost")
        self.endpoint_ids = endpoint_ids


def lease_due(uow: UnitOfWork, *, lease_id: str, limit: int) -> list[LeasedQueue]:
    """Lease up to `limit` queues of all workspaces that have something due, longest due first."""
    rows = uow.session.execute(
        text(_LEASE_SQLITE if uow.is_sqlite else _LEASE_POSTGRESQL).columns(rate_limited_until=UtcDateTime()),
        {"lease_id": lease_id, "limit": limit},
    )
    return [LeasedQueue(row.endpoint_id, row.rate_limited_until) for row in rows]


def any_due(uow: UnitOfWork) -> bool:
    """Tell whether a queue of any workspace has something due that no pump serves."""
    query = text(_ANY_DUE_SQLITE if uow.is_sqlite else _ANY_DUE_POSTGRESQL)
    return uow.session.execute(query).first() is not None


def renew(uow: UnitOfWork, *, lease_id: str, endpoint_ids: Collection[str]) -> set[str]:
    """Prolong leases; gives those that are still held."""
    if not endpoint_ids:
        return set()
    held = _lock(uow, endpoint_ids, lease_id)
    uow.session.execute(
        text(_RENEW_SQLITE if uow.is_sqlite else _RENEW_POSTGRESQL).bindparams(
            bindparam("ids", expanding=True)
        ),
        {"ids": held},
    )
    return set(held)


def fence(
    uow: UnitOfWork,
    *,
    lease_id: str,
    attempted: dict[str, tuple[datetime, datetime | None]],
) -> None:
    """Note each endpoint's last attempt and last success, and hold its queue until the commit.

    Raises `LeaseLost` when another pump has taken one over meanwhile: then nothing may be committed.
    """
    held = _lock(uow, attempted, lease_id)
    lost = set(attempted) - set(held)
    if lost:
        raise LeaseLost(lost)
    _write_rows(
        uow,
        "last_attempt_at = rows.a, last_success_at = coalesce(rows.b, last_success_at)",
        {endpoint_id: attempted[endpoint_id] for endpoint_id in held},
    )


def hold(uow: UnitOfWork, *, lease_id: str, endpoint_ids: Collection[str]) -> list[str]:
    """Lock queues until the commit; gives those that this lease still holds."""
    return _lock(uow, endpoint_ids, lease_id)


def release(uow: UnitOfWork, *, due: dict[str, tuple[datetime | None, datetime | None]]) -> None:
    """Give queues back that are locked by `hold`; per endpoint when it is due next, and its rate limit's state."""
    _write_rows(
        uow, "lease_id = NULL, leased_until = NULL, due_at = rows.a, rate_limited_until = rows.b", due
    )


def wake(uow: UnitOfWork, *, endpoint_ids: Collection[str]) -> None:
    """Make queues due now, those of paused endpoints excepted.

    The rows stay locked until the commit: a pump that gives one back at the same moment then sees the deliveries
    that this transaction made.
    """
    ids = _lock(uow, endpoint_ids, None)
    active = select(Endpoint.id).where(Endpoint.status == EndpointStatus.ACTIVE)
    uow.session.execute(
        update(EndpointQueue)
        .where(
            EndpointQueue.endpoint_id.in_(ids),
            EndpointQueue.endpoint_id.in_(active),
            EndpointQueue.due_at.is_(None) | (EndpointQueue.due_at > utc_now()),
        )
        .values(due_at=utc_now())
        .execution_options(synchronize_session=False)
    )


def rest(uow: UnitOfWork, *, endpoint_id: str) -> None:
    """Take a queue out of the schedule until it is woken."""
    uow.session.execute(
        update(EndpointQueue)
        .where(EndpointQueue.endpoint_id == endpoint_id)
        .values(due_at=None)
        .execution_options(synchronize_session=False)
    )


def list_resting_all_workspaces(uow: UnitOfWork) -> Sequence[str]:
    """Give active endpoints whose queue is not scheduled: they should have nothing pending."""
    return uow.session.scalars(
        select(EndpointQueue.endpoint_id)
        .join(Endpoint, Endpoint.id == EndpointQueue.endpoint_id)
        .where(
            EndpointQueue.due_at.is_(None),
            EndpointQueue.lease_id.is_(None),
            Endpoint.status == EndpointStatus.ACTIVE,
        )
    ).all()


def _lock(uow: UnitOfWork, endpoint_ids: Collection[str], lease_id: str | None) -> list[str]:
    query = (
        select(EndpointQueue.endpoint_id)
        .where(EndpointQueue.endpoint_id.in_(sorted(endpoint_ids)))
        .order_by(EndpointQueue.endpoint_id)
        .with_for_update()
    )
    if lease_id is not None:
        query = query.where(EndpointQueue.lease_id == lease_id)
    return list(uow.session.scalars(query))


def _write_rows(
    uow: UnitOfWork, assignments: str, rows: dict[str, tuple[datetime | None, datetime | None]]
) -> None:
    """Update several queues, each with two times of its own, in one statement."""
    if uow.is_sqlite:
        source = "(SELECT :id AS id, :a AS a, :b AS b)"
        values: Any = [{"id": key, "a": a, "b": b} for key, (a, b) in rows.items()]
    else:
        source = "unnest(cast(:id AS text[]), cast(:a AS timestamptz[]), cast(:b AS timestamptz[])) AS rows (id, a, b)"
        values = {"id": list(rows), "a": [a for a, _ in rows.values()], "b": [b for _, b in rows.values()]}
    statement = text(
        f"UPDATE endpoint_queues SET {assignments} FROM {source} {'AS rows ' if uow.is_sqlite else ''}"
        "WHERE endpoint_id = rows.id"
    )
    if uow.is_sqlite:
        statement = statement.bindparams(
            bindparam("a", type_=UtcDateTime()), bindparam("b", type_=UtcDateTime())
        )
    uow.session.connection().execute(statement, values)


_DUE = "due_at <= {now} AND (leased_until IS NULL OR leased_until < {now})"
_LEASE = """
UPDATE endpoint_queues SET lease_id = :lease_id, leased_until = {until}
WHERE endpoint_id IN (
    SELECT endpoint_id FROM endpoint_queues WHERE {due} ORDER BY due_at LIMIT :limit {lock}
)
RETURNING endpoint_id, rate_limited_until
"""
_UNTIL_POSTGRESQL = f"now() + interval '{LEASE_SECONDS} seconds'"
_UNTIL_SQLITE = f"(strftime('%Y-%m-%d %H:%M:%f', 'now', '+{LEASE_SECONDS} seconds') || '000')"
_LEASE_POSTGRESQL = _LEASE.format(
    until=_UNTIL_POSTGRESQL, due=_DUE.format(now="now()"), lock="FOR UPDATE SKIP LOCKED"
)
_LEASE_SQLITE = _LEASE.format(until=_UNTIL_SQLITE, due=_DUE.format(now=SQLITE_NOW), lock="")
_ANY_DUE_POSTGRESQL = f"SELECT 1 FROM endpoint_queues WHERE {_DUE.format(now='now()')} LIMIT 1"
_ANY_DUE_SQLITE = f"SELECT 1 FROM endpoint_queues WHERE {_DUE.format(now=SQLITE_NOW)} LIMIT 1"
_RENEW = "UPDATE endpoint_queues SET leased_until = {until} WHERE endpoint_id IN :ids"
_RENEW_POSTGRESQL = _RENEW.format(until=_UNTIL_POSTGRESQL)
_RENEW_SQLITE = _RENEW.format(until=_UNTIL_SQLITE)
