"""Leases of endpoint queues: which pump serves which endpoint. Queries and rules are one here.

Lock order: rows are locked by ascending endpoint id, so that pumps and fan-outs never wait for each other in a circle.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import datetime
from typing import Any

from sqlalchemy import Select, bindparam, case, func, select, text, update

from app.core.clock import now
from app.core.database import SQLITE_NOW, UtcDateTime, utc_now
from app.core.unit_of_work import UnitOfWork
from app.endpoints.health import Health, Tally
from app.endpoints.models import SERVED, Endpoint, EndpointQueue

# Longer than the longest timeout of a policy, so that a lease can only be lost by a process that is stuck.
LEASE_SECONDS = 45


@dataclass(frozen=True, slots=True)
class LeasedQueue:
    """A queue that this pump serves from now on."""

    endpoint_id: str
    rate_limited_until: datetime | None
    on_hold: bool


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
    return [LeasedQueue(row.endpoint_id, row.rate_limited_until, row.probe_at is not None) for row in rows]


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
    attempted: Mapping[str, Tally],
) -> tuple[dict[str, Health], datetime]:
    """Note what was attempted at each endpoint, and hold its queue until the commit; gives its health and the time.

    Raises `LeaseLost` when another pump has taken one over meanwhile: then nothing may be committed. A queue that was
    deleted with its endpoint is nobody's: what was sent before may be told.
    """
    if uow.is_sqlite:
        uow.connection.execute(
            _FENCE_SQLITE,
            [
                {
                    "id": endpoint_id,
                    "attempt": tally.last_attempt_at,
                    "success": tally.last_success_at,
                    "failures": tally.failures,
                }
                for endpoint_id, tally in attempted.items()
            ],
        )
        rows = uow.connection.execute(
            select(EndpointQueue.endpoint_id, *_HEALTH, utc_now()).where(
                EndpointQueue.endpoint_id.in_(attempted), EndpointQueue.lease_id == lease_id
            )
        ).all()
    else:
        values = attempted.values()
        rows = uow.connection.execute(
            _FENCE_POSTGRESQL,
            {
                "lease_id": lease_id,
                "ids": ",".join(attempted),
                "attempts": _times(tally.last_attempt_at for tally in values),
                "successes": _times(tally.last_success_at for tally in values),
                "failures": ",".join(str(tally.failures) for tally in values),
            },
        ).all()
    healths = {row[0]: Health(*row[1:-1]) for row in rows}
    if missing := set(attempted) - healths.keys():
        query = select(EndpointQueue.endpoint_id).where(EndpointQueue.endpoint_id.in_(missing))
        if lost := set(uow.connection.scalars(query)):
            raise LeaseLost(lost)
    return healths, rows[0][-1] if rows else now()


def set_health(uow: UnitOfWork, *, endpoint_id: str, health: Health) -> None:
    """Note what was made of an endpoint's attempts; the caller holds the queue."""
    _update(uow, endpoint_id, **asdict(health))


def start_over(uow: UnitOfWork, *, endpoint_id: str) -> None:
    """Forget for how long an endpoint has been failing; one that is held may get a probe at once."""
    probe_at = case((EndpointQueue.probe_at.is_not(None), utc_now()))
    _update(uow, endpoint_id, failing_since=None, probe_at=probe_at, failed_probes=0)


def set_hold(uow: UnitOfWork, *, endpoint_id: str, holds: bool) -> None:
    """Follow a policy: hold the queue of an endpoint that is failing, or release it."""
    probe_at = case(
        (EndpointQueue.failing_since.is_not(None), func.coalesce(EndpointQueue.probe_at, utc_now()))
    )
    _update(uow, endpoint_id, probe_at=probe_at if holds else None)


def hold(uow: UnitOfWork, *, lease_id: str, endpoint_ids: Collection[str]) -> dict[str, datetime | None]:
    """Lock queues until the commit; gives those that this lease still has, and when the next probe of each may go."""
    query = _locking(endpoint_ids, lease_id).add_columns(EndpointQueue.probe_at)
    return {row.endpoint_id: row.probe_at for row in uow.connection.execute(query)}


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


def wake(uow: UnitOfWork, *, endpoint_ids: Collection[str], through_hold: bool = True) -> list[str]:
    """Make queues due now, those of paused and disabled endpoints excepted; gives the endpoints that there are.

    Without `through_hold` those that are held become due with their next probe and not before. The rows stay locked
    until the commit: a pump that gives one back at the same moment then sees the deliveries that this transaction made.
    """
    ids = _lock(uow, endpoint_ids, None)
    served = select(Endpoint.id).where(Endpoint.status.in_(SERVED))
    moment = utc_now() if through_hold else _WITH_NEXT_PROBE
    uow.connection.execute(
        update(EndpointQueue)
        .where(
            EndpointQueue.endpoint_id.in_(ids),
            EndpointQueue.endpoint_id.in_(served),
            EndpointQueue.due_at.is_(None) | (EndpointQueue.due_at > moment),
        )
        .values(due_at=moment)
    )
    return ids


def is_held(uow: UnitOfWork, *, endpoint_id: str) -> bool:
    """Tell whether an endpoint's deliveries wait because it fails."""
    query = select(EndpointQueue.probe_at).where(EndpointQueue.endpoint_id == endpoint_id)
    return uow.connection.scalar(query) is not None


def rest(uow: UnitOfWork, *, endpoint_id: str) -> None:
    """Take a queue out of the schedule until it is woken."""
    _update(uow, endpoint_id, due_at=None)


def list_resting_all_workspaces(uow: UnitOfWork) -> Sequence[str]:
    """Give served endpoints whose queue is not scheduled: they should have nothing pending."""
    return uow.connection.scalars(
        select(EndpointQueue.endpoint_id)
        .join(Endpoint, Endpoint.id == EndpointQueue.endpoint_id)
        .where(
            EndpointQueue.due_at.is_(None),
            EndpointQueue.lease_id.is_(None),
            Endpoint.status.in_(SERVED),
        )
    ).all()


def _lock(uow: UnitOfWork, endpoint_ids: Collection[str], lease_id: str | None) -> list[str]:
    return list(uow.connection.scalars(_locking(endpoint_ids, lease_id)))


def _locking(endpoint_ids: Collection[str], lease_id: str | None) -> Select[Any]:
    query = (
        select(EndpointQueue.endpoint_id)
        .where(EndpointQueue.endpoint_id.in_(sorted(endpoint_ids)))
        .order_by(EndpointQueue.endpoint_id)
        .with_for_update()
    )
    return query if lease_id is None else query.where(EndpointQueue.lease_id == lease_id)


def _update(uow: UnitOfWork, endpoint_id: str, **values: Any) -> None:
    uow.connection.execute(
        update(EndpointQueue).where(EndpointQueue.endpoint_id == endpoint_id).values(**values)
    )


def _times(values: Iterable[datetime | None]) -> str:
    """Give times as the text that `string_to_array` takes apart; None is nothing."""
    return ",".join("" if value is None else value.isoformat() for value in values)


_HEALTH = tuple(getattr(EndpointQueue, field.name) for field in fields(Health))
_WITH_NEXT_PROBE = case((EndpointQueue.probe_at > utc_now(), EndpointQueue.probe_at), else_=utc_now())

_DUE = "due_at <= {now} AND (leased_until IS NULL OR leased_until < {now})"
_LEASE = """
UPDATE endpoint_queues SET lease_id = :lease_id, leased_until = {until}
WHERE endpoint_id IN (
    SELECT endpoint_id FROM endpoint_queues WHERE {due} ORDER BY due_at LIMIT :limit {lock}
)
RETURNING endpoint_id, rate_limited_until, probe_at
"""
_UNTIL_POSTGRESQL = f"now() + interval '{LEASE_SECONDS} seconds'"
_UNTIL_SQLITE = f"(strftime('%Y-%m-%d %H:%M:%f', 'now', '+{LEASE_SECONDS} seconds') || '000')"
_LEASE_POSTGRESQL = text(
    _LEASE.format(until=_UNTIL_POSTGRESQL, due=_DUE.format(now="now()"), lock="FOR UPDATE SKIP LOCKED")
)
_LEASE_SQLITE = text(_LEASE.format(until=_UNTIL_SQLITE, due=_DUE.format(now=SQLITE_NOW), lock="")).columns(
    rate_limited_until=UtcDateTime(), probe_at=UtcDateTime()
)

_ANY_DUE = "SELECT 1 FROM endpoint_queues WHERE {due} LIMIT 1"
_ANY_DUE_POSTGRESQL = text(_ANY_DUE.format(due=_DUE.format(now="now()")))
_ANY_DUE_SQLITE = text(_ANY_DUE.format(due=_DUE.format(now=SQLITE_NOW)))

_RENEW = "UPDATE endpoint_queues SET leased_until = {until} WHERE endpoint_id IN :ids"
_RENEW_POSTGRESQL = text(_RENEW.format(until=_UNTIL_POSTGRESQL)).bindparams(bindparam("ids", expanding=True))
_RENEW_SQLITE = text(_RENEW.format(until=_UNTIL_SQLITE)).bindparams(bindparam("ids", expanding=True))

_FENCE_POSTGRESQL = text(f"""
WITH held AS (
    SELECT endpoint_id FROM endpoint_queues
    WHERE endpoint_id = ANY(string_to_array(:ids, ',')) AND lease_id = :lease_id
    ORDER BY endpoint_id FOR UPDATE
)
UPDATE endpoint_queues SET
    last_attempt_at = rows.attempt,
    last_success_at = coalesce(rows.success, last_success_at),
    failures_in_row = rows.failures + CASE WHEN rows.success IS NULL THEN failures_in_row ELSE 0 END
FROM held JOIN unnest(
    string_to_array(:ids, ','),
    string_to_array(:attempts, ',')::timestamptz[],
    string_to_array(:successes, ',', '')::timestamptz[],
    string_to_array(:failures, ',')::int[]
) AS rows (id, attempt, success, failures) ON rows.id = held.endpoint_id
WHERE endpoint_queues.endpoint_id = held.endpoint_id
RETURNING endpoint_queues.endpoint_id, {", ".join(column.key for column in _HEALTH)}, now()
""")
_FENCE_SQLITE = text("""
UPDATE endpoint_queues SET
    last_attempt_at = :attempt,
    last_success_at = coalesce(:success, last_success_at),
    failures_in_row = :failures + CASE WHEN :success IS NULL THEN failures_in_row ELSE 0 END
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
