"""Tables that PostgreSQL keeps in one partition a day, by ids that carry the time of their making.

On SQLite there is nothing to partition. Every table also has a default partition: a row whose day has no partition yet
is stored all the same.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from sqlalchemy import text
from sqlalchemy.engine import Connection
from sqlalchemy.exc import DBAPIError

from app.core.ids import first_id_at

DAYS_AHEAD = 3
_DAY = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class PartitionedTable:
    """A table that is partitioned by the range of an id."""

    name: str
    id_prefix: str
    options: str = ""  # storage parameters of each partition

    def partition(self, day: datetime) -> str:
        """Give the name of a day's partition."""
        return f"{self.name}_{day:%Y%m%d}"


def day_of(moment: datetime) -> datetime:
    """Give the start of a moment's day."""
    return moment.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)


def create_default(connection: Connection, table: PartitionedTable) -> None:
    """Make the partition for rows that no other takes."""
    connection.execute(
        text(f"CREATE TABLE {table.name}_default PARTITION OF {table.name} DEFAULT {_with(table)}")
    )


def create_ahead(
    connection: Connection, tables: Sequence[PartitionedTable], *, moment: datetime
) -> list[str]:
    """Make the partitions of today and the days after it that are missing.

    Gives those that could not be made, since rows of their days are in the default partition already: they stay there.
    """
    existing = set(
        connection.scalars(text("SELECT relname FROM pg_class WHERE relispartition AND relkind = 'r'"))
    )
    failed = []
    for table in tables:
        for offset in range(DAYS_AHEAD + 1):
            day = day_of(moment) + offset * _DAY
            name = table.partition(day)
            if name in existing:
                continue
            low, high = (first_id_at(table.id_prefix, each) for each in (day, day + _DAY))
            try:
                with connection.begin_nested():
                    connection.execute(
                        text(
                            f"CREATE TABLE IF NOT EXISTS {name} PARTITION OF {table.name}"
                            f" FOR VALUES FROM ('{low}') TO ('{high}') {_with(table)}"
                        )
                    )
            except DBAPIError:
                failed.append(name)
    return failed


def list_before(connection: Connection, table: PartitionedTable, *, moment: datetime) -> list[str]:
    """Give the partitions whose days had ended at a moment, oldest first."""
    rows = connection.scalars(
        text("SELECT relname FROM pg_class WHERE relispartition AND relkind = 'r' AND relname ~ :pattern"),
        {"pattern": f"^{table.name}_[0-9]{{8}}$"},
    )
    limit = table.partition(day_of(moment))
    return sorted(name for name in rows if name < limit)


def _with(table: PartitionedTable) -> str:
    return f"WITH ({table.options})" if table.options else ""
