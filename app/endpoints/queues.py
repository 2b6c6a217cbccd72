"""Leases of endpoint queues: which pump serves which endpoint. Queries and rules are one here.

Lock order: rows are locked by ascending endpoint id, so that pumps and fan-outs never wait for each other in a circle.
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

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


class LeaseLost(Exception):
    """These queues were taken over: nothing of theirs may be recorded."""

    def __init__(self, endpoint_ids: set[str]) -> None:
        super().__init__(f"{len(endpoint_ids)} leases lost")
        self.endpoint_ids = endpoint_ids


def lease_due(uow: UnitOfWork, *, lease_id: str, limit: int) -> list[LeasedQueue]:
    """Lease up to `limit` queues of all workspaces that have something due, longest due first."""
    rows = uow.connection.execute(
        _LEASE_SQLITE if uow.is_sqlite else _LEASE_POSTGRESQL,
        {"lease_id": lease_id, "limit": limit},
    )
    return [LeasedQueue(row.endpoint_id, row.rate_limited_until) for row in rows]


def any_due(uow: UnitOfWork) -> bool:
    """Tell whether a queue of any workspace has something due that no pump serves."""
    query = _ANY_DUE_SQLITE if uow.is_sqlite else _ANY_DUE_POSTGRESQL
    return uow.connection.execute(query).first() is not None


def renew(uow: UnitOfWork, *, lease_id: str, endpoint_ids: Collection[str]) -> set[str]:
    """Prolong leases; gives those that are still held."""
    held = _lock(uow, endpoint_ids, lease_id) if endpoint_ids else []
    if held:
        uow.connection.execute(_RENEW_SQLITE if uow.is_sqlite else _RENEW_POSTGRESQL, {"ids": held})
    return set(held)


def fence(
    uow: UnitOfWork,
    *,
    lease_id: str,
    attempted: dict[str, tuple[datetime, datetime | None]],
) -> None:
    """Note each endpoint's last attempt and last success, and hold its queue until the commit.

    Raises `LeaseLost` when another pump has taken one over meanwhile: then nothing may be committed. A queue that was
    deleted with its endpoint is nobody's: what was sent before may be told.
    """
    if uow.is_sqlite:
        held = set(_lock(uow, attempted, lease_id))
        uow.connection.execute(
            _FENCE_SQLITE,
            [
                {"id": endpoint_id, "attempt": attempt, "success": success}
                for endpoint_id, (attempt, success) in attempted.items()
            ],
        )
    else:
        values = attempted.values()
        held = set(
            uow.connection.scalars(
                _FENCE_POSTGRESQL,
                {
                    "lease_id": lease_id,
                    "ids": ",".join(attempted),
                    "attempts": _times(attempt for attempt, _ in values),
                    "successes": _times(success for _, success in values),
                },
            )
        )
    if missing := set(attempted) - held:
        query = select(EndpointQueue.endpoint_id).where(EndpointQueue.endpoint_id.in_(missing))
        if lost := set(uow.connection.scalars(query)):
            raise LeaseLost(lost)


def hold(uow: UnitOfWork, *, lease_id: str, endpoint_ids: Collection[str]) -> list[str]:
    """Lock queues until the commit; gives those that this lease still holds."""
    return _lock(uow, endpoint_ids, lease_id)


def release(uow: UnitOfWork, *, due: dict[str, tuple[datetime | None, datetime | None]]) -> None:
    """Give queues back that are locked by `hold`; per endpoint when it is due next, and its rate limit's state."""
    if uow.is_sqlite:
        uow.connection.execute(
            _RELEASE_SQLITE,
            [
                {"id": endpoint_id, "due": due_at, "limited": limited}
                for endpoint_id, (due_at, limited) in due.items()
            ],
        )
        return
    uow.connection.execute(
        _RELEASE_POSTGRESQL,
        {
            "ids": ",".join(due),
            "dues": _times(due_at for due_at, _ in due.values()),
            "limits": _times(limited for _, limited in due.values()),
        },
    )


def wake(uow: UnitOfWork, *, endpoint_ids: Collection[str]) -> None:
    """Make queues due now, those of paused endpoints excepted.

    The rows stay locked until the commit: a pump that gives one back at the same moment then sees the deliveries
    that this transaction made.
    """
    ids = _lock(uow, endpoint_ids, None)
    active = select(Endpoint.id).where(Endpoint.status == EndpointStatus.ACTIVE)
    uow.connection.execute(
        update(EndpointQueue)
        .where(
            EndpointQueue.endpoint_id.in_(ids),
            EndpointQueue.endpoint_id.in_(active),
            EndpointQueue.due_at.is_(None) | (EndpointQueue.due_at > utc_now()),
        )
        .values(due_at=utc_now())
    )


def rest(uow: UnitOfWork, *, endpoint_id: str) -> None:
    """Take a queue out of the schedule until it is woken."""
    uow.connection.execute(
        update(EndpointQueue).where(EndpointQueue.endpoint_id == endpoint_id).values(due_at=None)
    )


def list_resting_all_workspaces(uow: UnitOfWork) -> Sequence[str]:
    """Give active endpoints whose queue is not scheduled: they should have nothing pending."""
    return uow.connection.scalars(
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
    return list(uow.connection.scalars(query))


def _times(values: Iterable[datetime | None]) -> str:
    """Give times as the text that `string_to_array` takes apart; None is nothing."""
    return ",".join("" if value is None else value.isoformat() for value in values)


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
_LEASE_POSTGRESQL = text(
    _LEASE.format(until=_UNTIL_POSTGRESQL, due=_DUE.format(now="now()"), lock="FOR UPDATE SKIP LOCKED")
).columns(rate_limited_until=UtcDateTime())
_LEASE_SQLITE = text(_LEASE.format(until=_UNTIL_SQLITE, due=_DUE.format(now=SQLITE_NOW), lock="")).columns(
    rate_limited_until=UtcDateTime()
)

_ANY_DUE = "SELECT 1 FROM endpoint_queues WHERE {due} LIMIT 1"
_ANY_DUE_POSTGRESQL = text(_ANY_DUE.format(due=_DUE.format(now="now()")))
_ANY_DUE_SQLITE = text(_ANY_DUE.format(due=_DUE.format(now=SQLITE_NOW)))

_RENEW = "UPDATE endpoint_queues SET leased_until = {until} WHERE endpoint_id IN :ids"
_RENEW_POSTGRESQL = text(_RENEW.format(until=_UNTIL_POSTGRESQL)).bindparams(bindparam("ids", expanding=True))
_RENEW_SQLITE = text(_RENEW.format(until=_UNTIL_SQLITE)).bindparams(bindparam("ids", expanding=True))

_FENCE_POSTGRESQL = text("""
WITH held AS (
    SELECT endpoint_id FROM endpoint_queues
    WHERE endpoint_id = ANY(string_to_array(:ids, ',')) AND lease_id = :lease_id
    ORDER BY endpoint_id FOR UPDATE
)
UPDATE endpoint_queues SET
    last_attempt_at = rows.attempt,
    last_success_at = coalesce(rows.success, last_success_at)
FROM held JOIN unnest(
    string_to_array(:ids, ','),
    string_to_array(:attempts, ',')::timestamptz[],
    string_to_array(:successes, ',', '')::timestamptz[]
) AS rows (id, attempt, success) ON rows.id = held.endpoint_id
WHERE endpoint_queues.endpoint_id = held.endpoint_id
RETURNING endpoint_queues.endpoint_id
""")
_FENCE_SQLITE = text("""
UPDATE endpoint_queues SET last_attempt_at = :attempt, last_success_at = coalesce(:success, last_success_at)
WHERE endpoint_id = :id
""").bindparams(bindparam("attempt", type_=UtcDateTime()), bindparam("success", type_=UtcDateTime()))

_RELEASE_POSTGRESQL = text("""
UPDATE endpoint_queues SET
    lease_id = NULL, leased_until = NULL, due_at = rows.due, rate_limited_until = rows.limited
FROM unnest(
    string_to_array(:ids, ','),
    string_to_array(:dues, ',', '')::timestamptz[],
    string_to_array(:limits, ',', '')::timestamptz[]
) AS rows (id, due, limited)
WHERE endpoint_id = rows.id
""")
_RELEASE_SQLITE = text("""
UPDATE endpoint_queues SET lease_id = NULL, leased_until = NULL, due_at = :due, rate_limited_until = :limited
WHERE endpoint_id = :id
""").bindparams(bindparam("due", type_=UtcDateTime()), bindparam("limited", type_=UtcDateTime()))
