"""The step that made narrow tables and partitions takes along what the old tables had."""

from datetime import UTC, datetime

import pytest
from sqlalchemy import text

from app import migrations
from app.core.database import Database
from app.core.ids import new_id
from app.core.partitions import PartitionedTable

MOMENT = "2026-01-01 00:00:00.000000"
EVENT = """
INSERT INTO events (id, workspace_id, type, external_id, occurred_at, created_at, body, fanned_out_at)
VALUES (:id, 'ws_1', 'message.read', :external_id, :moment, :moment, :body, :fanned_out_at)
"""
DELIVERY = """
INSERT INTO deliveries (id, workspace_id, event_id, event_type, endpoint_id, status, attempt_count, is_retry, trigger,
                        next_attempt_at, created_at)
VALUES (:id, 'ws_1', :event_id, 'message.read', 'ep_1', :status, 2, :is_retry, 'auto', :next, :moment)
"""


@pytest.fixture
def database(empty, migrate_to):
    """Give a database as the first step left it, with rows, brought to the newest schema."""
    with migrations._locked(empty) as connection:
        migrate_to(connection, "0001")
        moment = MOMENT if empty.embedded_database else datetime(2026, 1, 1, tzinfo=UTC)
        for event_id, external_id, fanned_out_at in (("evt_a", "order-1", moment), ("evt_b", None, None)):
            values = {"id": event_id, "external_id": external_id, "fanned_out_at": fanned_out_at}
            connection.execute(text(EVENT), {**values, "moment": moment, "body": b"{}"})
        for delivery_id, event_id, status, due in (
            ("dlv_a", "evt_a", "pending", moment),
            ("dlv_b", "evt_b", "succeeded", None),
        ):
            values = {"id": delivery_id, "event_id": event_id, "status": status, "next": due}
            connection.execute(text(DELIVERY), {**values, "moment": moment, "is_retry": True})
    migrations.migrate(empty)
    made = Database(empty.database_url)
    yield made
    made.dispose()


def rows(database: Database, query: str) -> list[tuple[object, ...]]:
    with database.engine.connect() as connection:
        return [tuple(row) for row in connection.execute(text(query))]


def test_everything_is_taken_along(database):
    assert rows(database, "SELECT id, external_id FROM events ORDER BY id") == [
        ("evt_a", "order-1"),
        ("evt_b", None),
    ]
    assert rows(database, "SELECT external_id, event_id FROM event_external_ids") == [("order-1", "evt_a")]
    assert rows(database, "SELECT workspace_id, event_id, event_type FROM fan_outs") == [
        ("ws_1", "evt_b", "message.read")
    ]
    assert rows(database, "SELECT id, status, attempt_count FROM deliveries ORDER BY id") == [
        ("dlv_a", "pending", 2),
        ("dlv_b", "succeeded", 2),
    ]
    ((event_id, delivery_id, is_retry, count),) = rows(
        database, "SELECT event_id, delivery_id, is_retry, attempt_count FROM pending_deliveries"
    )
    assert (event_id, delivery_id, bool(is_retry), count) == ("evt_a", "dlv_a", True, 2)


def test_a_new_row_is_in_the_partition_of_its_day(database):
    if database.is_sqlite:
        pytest.skip("there is nothing to partition")
    today = PartitionedTable("events", "evt").partition(datetime.now(UTC))
    with database.engine.begin() as connection:
        insert = EVENT.replace(", fanned_out_at)", ")").replace(", :fanned_out_at)", ")")
        values = {"external_id": None, "moment": datetime.now(UTC), "body": b"{}"}
        connection.execute(text(insert), {**values, "id": new_id("evt")})
    assert rows(database, f"SELECT count(*) FROM {today}") == [(1,)]
    assert rows(database, "SELECT count(*) FROM events_default") == [(2,)]
