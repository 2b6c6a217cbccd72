"""What is older than the days it is kept for goes: on PostgreSQL in whole partitions, else as rows in small batches.

An event that a delivery or its fan-out waits for stays, with its deliveries. Its day's partition is not dropped then:
the other rows of that day go in batches. Each function is one transaction. Two workers at once do no harm.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ColumnClause, column, delete, select, table

from app.core import partitions
from app.core.clock import now
from app.core.ids import first_id_at
from app.core.partitions import PartitionedTable, day_of
from app.core.unit_of_work import Resources, UnitOfWork
from app.deliveries import statistics
from app.deliveries.models import PARTITIONED_TABLES, PendingDelivery
from app.events.models import ID_PREFIX as EVENT_PREFIX
from app.events.models import FanOut

# SQLite has one writer at a time: so many rows are gone within some milliseconds.
BATCH_ROWS = 500


@dataclass(frozen=True, slots=True)
class OldRows:
    """Rows of a table, or of one partition, whose `key` is below `limit`."""

    table: str
    key: str
    limit: str | int
    of_events: bool = True  # the key is an event's id


def limit_of(resources: Resources) -> datetime:
    """Give the moment from which on all is kept: the start of a day."""
    return day_of(now() - timedelta(days=resources.settings.retention_days))


def create_ahead(uow: UnitOfWork) -> list[str]:
    """Make the partitions of the days to come; gives those that could not be made."""
    if uow.is_sqlite:
        return []
    partitions.limit_waiting(uow.connection)
    return partitions.create_ahead(uow.connection, PARTITIONED_TABLES, moment=now())


def list_partitions(uow: UnitOfWork, *, limit: datetime) -> list[tuple[PartitionedTable, datetime]]:
    """Give the partitions that are to be dropped: all of their days have passed, and nothing waits for them."""
    return [(each, day) for each, day in _old_partitions(uow, limit) if not _is_awaited(uow, each, day)]


def drop_partition(uow: UnitOfWork, *, of: PartitionedTable, day: datetime) -> bool:
    """Drop a partition; False, and nothing is done, when others use the table at the moment or something waits for it.

    `DETACH … CONCURRENTLY`, which would wait beside the others, is not to be had beside a default partition.
    """
    partitions.limit_waiting(uow.connection)
    # Once the lock is had nobody can ask for one of its events any more; who did so before has committed.
    dropped = partitions.drop(uow.connection, of, day) and not _is_awaited(uow, of, day)
    if not dropped:
        uow.rollback()
    return dropped


def list_old_rows(uow: UnitOfWork, *, limit: datetime) -> list[OldRows]:
    """Give what goes in batches besides partitions, what waited until now included."""
    if uow.is_sqlite:
        names = [(each, each.name) for each in PARTITIONED_TABLES]
    else:
        names = [(each, each.default) for each in PARTITIONED_TABLES]
        names += [
            (each, each.partition(day))
            for each, day in _old_partitions(uow, limit)
            if _is_awaited(uow, each, day)
        ]
    rows = [
        old_external_ids(limit),
        OldRows("attempt_counts", "hour", statistics.hour_of(limit), of_events=False),
    ]
    for each, name in names:
        of_events = each.id_prefix == EVENT_PREFIX
        key = "event_id" if of_events and each.name != "events" else "id"
        rows.append(OldRows(name, key, first_id_at(each.id_prefix, limit), of_events=of_events))
    return rows


def old_external_ids(limit: datetime) -> OldRows:
    """Give the callers' ids of old events, which go first: a repeated publish finds the event by them."""
    return OldRows("event_external_ids", "event_id", first_id_at(EVENT_PREFIX, limit))


def delete_batch(uow: UnitOfWork, *, rows: OldRows, after: str | int | None) -> str | int | None:
    """Delete some of `rows` whose key is above `after`; gives up to where, or None when there are no more."""
    key: ColumnClause[Any] = column(rows.key)
    source = table(rows.table, key)
    query = select(key).where(key < rows.limit).order_by(key).limit(BATCH_ROWS)
    if after is not None:
        query = query.where(key > after)
    # Locked, so that whoever sends an event again meanwhile either keeps it, being first, or finds that it is gone.
    found = uow.connection.scalars(query.with_for_update(skip_locked=True)).all()
    if not found:
        return None
    gone = set(found)
    if rows.of_events:
        for awaited in (PendingDelivery.event_id, FanOut.event_id):
            gone -= set(uow.connection.scalars(select(awaited).where(awaited.in_(gone))))
    uow.connection.execute(delete(source).where(key.in_(gone)))
    last: str | int = found[-1]
    return last


def _old_partitions(uow: UnitOfWork, limit: datetime) -> Iterator[tuple[PartitionedTable, datetime]]:
    for each in PARTITIONED_TABLES:
        for day in partitions.list_before(uow.connection, each, moment=limit):
            yield each, day


def _is_awaited(uow: UnitOfWork, of: PartitionedTable, day: datetime) -> bool:
    """Tell whether a delivery or a fan-out waits for an event of this day."""
    if of.id_prefix != EVENT_PREFIX:
        return False
    low, high = of.bounds(day)
    return any(
        uow.connection.execute(select(awaited).where(awaited >= low, awaited < high).limit(1)).first()
        for awaited in (PendingDelivery.event_id, FanOut.event_id)
    )
