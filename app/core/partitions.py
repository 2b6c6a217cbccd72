"""Tables that PostgreSQL keeps in one partition a day, by ids that carry the time of their making.

On SQLite there is nothing to partition. Every table also has a default partition: a row whose day has no partition yet
is stored all the same.

Making and dropping a partition locks its table for an instant. Whoever does it while others work calls `limit_waiting`
first: everybody queues behind a lock that waits for a long reader.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from sqlalchemy import text
from sqlalchemy.engine import Connection
from sqlalchemy.exc import DBAPIError, OperationalError

from app.core.ids import first_id_at

DAYS_AHEAD = 3
# What publishing may be held up by, at most, each time that a partition is made or dropped.
LOCK_TIMEOUT_MILLISECONDS = 250
_DAY = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class PartitionedTable:
    """A table that is partitioned by the range of an id."""

    name: str
    id_prefix: str
    options: str = ""  # storage parameters of each partition

    @property
    def default(self) -> str:
        """The name of the partition for rows that no other takes."""
        return f"{self.name}_default"

    def partition(self, day: datetime) -> str:
        """Give the name of a day's partition."""
        return f"{self.name}_{day:%Y%m%d}"

    def bounds(self, day: datetime) -> tuple[str, str]:
        """Give the first id of a day, and the first one after it."""
        return first_id_at(self.id_prefix, day), first_id_at(self.id_prefix, day + _DAY)


def day_of(moment: datetime) -> datetime:
    """Give the start of a moment's day."""
    return moment.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)


def limit_waiting(connection: Connection) -> None:
    """Have the rest of this transaction fail where it would have to wait long for a lock."""
    connection.execute(text(f"SET LOCAL lock_timeout = {LOCK_TIMEOUT_MILLISECONDS}"))


def create_default(connection: Connection, table: PartitionedTable) -> None:
    """Make the partition for rows that no other takes."""
    connection.execute(text(f"CREATE TABLE {table.default} PARTITION OF {table.name} DEFAULT {_with(table)}"))


def create(connection: Connection, table: PartitionedTable, day: datetime) -> None:
    """Make a day's partition, unless it is there."""
    low, high = table.bounds(day)
    connection.execute(
        text(
            f"CREATE TABLE IF NOT EXISTS {table.partition(day)} PARTITION OF {table.name}"
            f" FOR VALUES FROM ('{low}') TO ('{high}') {_with(table)}"
        )
    )


def create_ahead(
    connection: Connection, tables: Sequence[PartitionedTable], *, moment: datetime
) -> list[str]:
    """Make the partitions of today and the days after it that are missing.

    Gives those that could not be made: because rows of their days are in the default partition already, where they
    stay, or because of a lock (`limit_waiting`).
    """
    existing = set(
        connection.scalars(text("SELECT relname FROM pg_class WHERE relispartition AND relkind = 'r'"))
    )
    failed = []
    for table in tables:
        for offset in range(DAYS_AHEAD + 1):
            day = day_of(moment) + offset * _DAY
            if table.partition(day) in existing:
                continue
            try:
                with connection.begin_nested():
                    create(connection, table, day)
            except DBAPIError:
                failed.append(table.partition(day))
    return failed


def list_before(connection: Connection, table: PartitionedTable, *, moment: datetime) -> list[datetime]:
    """Give the days whose partitions are there and had ended at a moment, oldest first."""
    names = connection.scalars(
        text("SELECT relname FROM pg_class WHERE relispartition AND relkind = 'r' AND relname ~ :pattern"),
        {"pattern": f"^{table.name}_[0-9]{{8}}$"},
    )
    days = (datetime.strptime(name[-8:], "%Y%m%d").replace(tzinfo=UTC) for name in names)
    return sorted(day for day in days if day < day_of(moment))


def drop(connection: Connection, table: PartitionedTable, day: datetime) -> bool:
    """Drop a day's partition, unless it is gone; tells whether the lock for it was to be had (`limit_waiting`)."""
    try:
        with connection.begin_nested():
            connection.execute(text(f"DROP TABLE IF EXISTS {table.partition(day)}"))
    except OperationalError:
        return False
    return True


def _with(table: PartitionedTable) -> str:
    return f"WITH ({table.options})" if table.options else ""
