"""PostgreSQL keeps large tables in one partition a day, made before the day comes."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import Connection, text

from app import migrations
from app.core import partitions
from app.core.clock import now
from app.core.ids import first_id_at, new_id
from app.core.partitions import DAYS_AHEAD, PartitionedTable, day_of
from app.deliveries.models import PARTITIONED_TABLES
from tests.conftest import DATABASES

DAY = timedelta(days=1)
THINGS = PartitionedTable("things", "evt", "fillfactor = 50")

pytestmark = [
    pytest.mark.skipif("postgresql" not in DATABASES, reason="needs PostgreSQL"),
    pytest.mark.own_database,
]


@pytest.fixture
def resources(request, resources):
    """Give the resources of a process with PostgreSQL."""
    if resources.database.is_sqlite:
        pytest.skip("SQLite has no partitions")
    return resources


@pytest.fixture
def connection(resources):
    """Give a connection in a transaction, with a table that has a default partition alone."""
    with resources.database.bind(write=True).begin() as connection:
        connection.execute(
            text('CREATE TABLE things (id text COLLATE "C" PRIMARY KEY) PARTITION BY RANGE (id)')
        )
        partitions.create_default(connection, THINGS)
        yield connection


def partitions_of(connection: Connection, table: PartitionedTable) -> set[str]:
    names = text("SELECT relid::text FROM pg_partition_tree(:name) WHERE isleaf")
    return set(connection.scalars(names, {"name": table.name})) - {table.default}


def insert(connection: Connection, moment: datetime) -> str:
    """Insert a row that was made at a moment; gives the partition that it is in."""
    parameters = {"id": first_id_at("evt", moment)}
    query = text("INSERT INTO things VALUES (:id) RETURNING tableoid::regclass::text")
    return str(connection.scalar(query, parameters))


def test_days_ahead_are_made_once(connection):
    moment = datetime(2026, 3, 5, 23, 59, tzinfo=UTC)
    assert partitions.create_ahead(connection, [THINGS], moment=moment) == []
    wanted = {f"things_2026030{day}" for day in range(5, 9)}
    assert len(wanted) == DAYS_AHEAD + 1
    assert partitions_of(connection, THINGS) == wanted
    assert partitions.create_ahead(connection, [THINGS], moment=moment) == []
    assert partitions_of(connection, THINGS) == wanted


def test_a_row_is_in_the_partition_of_its_day(connection):
    day = datetime(2026, 3, 5, tzinfo=UTC)
    partitions.create_ahead(connection, [THINGS], moment=day)
    assert insert(connection, day) == "things_20260305"
    assert insert(connection, day + DAY - timedelta(milliseconds=1)) == "things_20260305"
    assert insert(connection, day + DAY) == "things_20260306"
    assert insert(connection, day - timedelta(milliseconds=1)) == "things_default"
    assert insert(connection, day + (DAYS_AHEAD + 1) * DAY) == "things_default"


def test_days_begin_and_end_in_utc():
    moment = datetime.fromisoformat("2026-03-05T23:30:00-02:00")
    assert day_of(moment) == datetime(2026, 3, 6, tzinfo=UTC)


def test_every_new_row_has_a_partition_of_its_own_day(resources):
    """What the migrations made."""
    with resources.database.engine.connect() as connection:
        for table in PARTITIONED_TABLES:
            assert table.partition(day_of(now())) in partitions_of(connection, table)
            low, high = table.bounds(day_of(now()))
            assert low <= new_id(table.id_prefix) < high


def test_every_partitioned_table_is_known(resources):
    """One that is not would never get a partition again, and keep its rows for ever."""
    query = text("SELECT relname FROM pg_class WHERE relkind = 'p'")
    with resources.database.engine.connect() as connection:
        assert set(connection.scalars(query)) == {table.name for table in PARTITIONED_TABLES}


def test_a_day_that_has_rows_elsewhere_is_told_of_and_hinders_no_other(connection):
    day = datetime(2026, 3, 5, tzinfo=UTC)
    assert insert(connection, day + DAY) == "things_default"
    assert partitions.create_ahead(connection, [THINGS], moment=day) == ["things_20260306"]
    assert partitions_of(connection, THINGS) == {f"things_2026030{number}" for number in (5, 7, 8)}


def test_partitions_have_the_options_of_their_table(connection):
    partitions.create(connection, THINGS, datetime(2026, 3, 5, tzinfo=UTC))
    query = text("SELECT reloptions FROM pg_class WHERE relname IN ('things_20260305', 'things_default')")
    assert list(connection.scalars(query)) == [["fillfactor=50"]] * 2


def test_days_that_are_over_are_listed(connection):
    for day in (5, 3, 4, 6):
        partitions.create(connection, THINGS, datetime(2026, 3, day, tzinfo=UTC))
    moment = datetime(2026, 3, 5, 12, tzinfo=UTC)
    found = partitions.list_before(connection, THINGS, moment=moment)
    assert found == [datetime(2026, 3, day, tzinfo=UTC) for day in (3, 4)]


def test_a_dropped_partition_is_gone_with_its_rows_and_again_is_harmless(connection):
    day = datetime(2026, 3, 5, tzinfo=UTC)
    partitions.create(connection, THINGS, day)
    insert(connection, day)
    insert(connection, day + DAY)
    assert partitions.drop(connection, THINGS, day)
    assert partitions.drop(connection, THINGS, day)
    assert partitions_of(connection, THINGS) == set()
    assert connection.scalar(text("SELECT count(*) FROM things")) == 1


def test_neither_making_nor_dropping_waits_long_for_a_reader(resources):
    table = PARTITIONED_TABLES[0]
    day, future = day_of(now()) - 40 * DAY, now() + 40 * DAY
    writing = resources.database.bind(write=True)
    with writing.begin() as connection:
        partitions.create(connection, table, day)
    with writing.connect() as reader, writing.begin() as connection:
        reader.execute(text(f"SELECT 1 FROM {table.name}"))
        started = now()
        partitions.limit_waiting(connection)
        assert not partitions.drop(connection, table, day)
        missing = partitions.create_ahead(connection, [table], moment=future)
        assert len(missing) == DAYS_AHEAD + 1
        assert now() - started < timedelta(seconds=4)
        reader.rollback()
        assert partitions.drop(connection, table, day)
        assert partitions.create_ahead(connection, [table], moment=future) == []


def test_the_limit_ends_with_the_transaction(resources):
    with resources.database.bind(write=True).connect() as connection:
        partitions.limit_waiting(connection)
        assert connection.scalar(text("SHOW lock_timeout")) == "250ms"
        connection.rollback()
        assert connection.scalar(text("SHOW lock_timeout")) == "0"


def test_a_service_that_stood_still_starts_with_partitions(resources, settings, monkeypatch):
    """`migrate` makes them: the first event would be in the default partition, and its day then has none."""
    later: Any = lambda: now() + 30 * DAY  # noqa: E731
    monkeypatch.setattr(migrations, "now", later)
    migrations.migrate(settings, PARTITIONED_TABLES)
    with resources.database.engine.connect() as connection:
        for table in PARTITIONED_TABLES:
            for number in range(DAYS_AHEAD + 1):
                assert table.partition(later() + number * DAY) in partitions_of(connection, table)
