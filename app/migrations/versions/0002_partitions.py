"""Work in narrow tables of its own, and large tables in one partition a day.

Every table that is partitioned is made anew, since PostgreSQL cannot partition one that exists.
"""

from datetime import UTC, datetime

import sqlalchemy as sa
from alembic import op

from app.core.database import IdText, UtcDateTime, utc_now
from app.core.partitions import PartitionedTable, create_ahead, create_default

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

TABLES = (
    PartitionedTable("events", "evt"),
    # Half a page stays free: a delivery that is finished is written a second time, beside the first.
    PartitionedTable("deliveries", "evt", "fillfactor = 50"),
    PartitionedTable("attempts", "att"),
)


def upgrade() -> None:
    """Make the new tables, and move what the old ones have."""
    connection = op.get_bind()
    is_postgresql = connection.dialect.name == "postgresql"
    for table in TABLES:
        op.rename_table(table.name, f"{table.name}_old")
        for index in sa.inspect(connection).get_indexes(f"{table.name}_old"):
            if not index.get("duplicates_constraint"):
                op.drop_index(str(index["name"]), table_name=f"{table.name}_old")
        if is_postgresql:
            op.drop_constraint(f"pk_{table.name}", f"{table.name}_old", type_="primary")
    _create()
    if is_postgresql:
        for table in TABLES:
            create_default(connection, table)
        create_ahead(connection, TABLES, moment=datetime.now(UTC))
        # Rows come and go within seconds: dead ones have to go before the indexes fill with them.
        for name in ("pending_deliveries", "fan_outs"):
            op.execute(
                f"ALTER TABLE {name} SET (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 5000)"
            )
    _move()
    for table in TABLES:
        op.drop_table(f"{table.name}_old")


def _create() -> None:
    op.create_table(
        "events",
        sa.Column("id", IdText, nullable=False),
        sa.Column("workspace_id", IdText, nullable=False),
        sa.Column("type", sa.Text(), nullable=False),
        sa.Column("external_id", sa.Text(), nullable=True),
        sa.Column("occurred_at", UtcDateTime(), nullable=False),
        sa.Column("created_at", UtcDateTime(), nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_events"),
        postgresql_partition_by="RANGE (id)",
    )
    op.create_index("ix_events_workspace_id_id", "events", ["workspace_id", "id"])
    op.create_table(
        "event_external_ids",
        sa.Column("workspace_id", IdText, nullable=False),
        sa.Column("external_id", sa.Text(), nullable=False),
        sa.Column("event_id", IdText, nullable=False),
        sa.PrimaryKeyConstraint("workspace_id", "external_id", name="pk_event_external_ids"),
    )
    op.create_index("ix_event_external_ids_event_id", "event_external_ids", ["event_id"])
    op.create_table(
        "fan_outs",
        sa.Column("workspace_id", IdText, nullable=False),
        sa.Column("event_id", IdText, nullable=False),
        sa.Column("event_type", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("workspace_id", "event_id", name="pk_fan_outs"),
    )
    op.create_table(
        "deliveries",
        sa.Column("event_id", IdText, nullable=False),
        sa.Column("endpoint_id", IdText, nullable=False),
        sa.Column("id", IdText, nullable=False),
        sa.Column("workspace_id", IdText, nullable=False),
        sa.Column("event_type", sa.Text(), nullable=False),
        sa.Column("status", sa.Text(), server_default="pending", nullable=False),
        sa.Column("attempt_count", sa.Integer(), server_default="0", nullable=False),
        sa.Column("created_at", UtcDateTime(), server_default=utc_now(), nullable=False),
        sa.Column("finished_at", UtcDateTime(), nullable=True),
        sa.PrimaryKeyConstraint("event_id", "endpoint_id", name="pk_deliveries"),
        postgresql_partition_by="RANGE (event_id)",
    )
    op.create_index("ix_deliveries_workspace_id_id", "deliveries", ["workspace_id", "id"])
    op.create_index("ix_deliveries_endpoint_id_id", "deliveries", ["endpoint_id", "id"])
    op.create_table(
        "pending_deliveries",
        sa.Column("event_id", IdText, nullable=False),
        sa.Column("endpoint_id", IdText, nullable=False),
        sa.Column("delivery_id", IdText, nullable=False),
        sa.Column("is_retry", sa.Boolean(), server_default=sa.false(), nullable=False),
        sa.Column("attempt_count", sa.Integer(), server_default="0", nullable=False),
        sa.Column("trigger", sa.Text(), server_default="auto", nullable=False),
        sa.Column("next_attempt_at", UtcDateTime(), server_default=utc_now(), nullable=False),
        sa.PrimaryKeyConstraint("event_id", "endpoint_id", name="pk_pending_deliveries"),
    )
    op.create_index(
        "ix_pending_deliveries_due",
        "pending_deliveries",
        ["endpoint_id", "is_retry", "next_attempt_at", "event_id"],
    )
    op.create_table(
        "attempts",
        sa.Column("id", IdText, nullable=False),
        sa.Column("workspace_id", IdText, nullable=False),
        sa.Column("delivery_id", IdText, nullable=False),
        sa.Column("event_id", IdText, nullable=False),
        sa.Column("event_type", sa.Text(), nullable=False),
        sa.Column("endpoint_id", IdText, nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("trigger", sa.Text(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("status_code", sa.Integer(), nullable=True),
        sa.Column("duration_ms", sa.Integer(), nullable=False),
        sa.Column("error_code", sa.Text(), nullable=True),
        sa.Column("error_detail", sa.Text(), nullable=True),
        sa.Column("started_at", UtcDateTime(), nullable=False),
        sa.Column("url", sa.Text(), nullable=False),
        sa.Column("request_headers", sa.Text(), nullable=False),
        sa.Column("response_headers", sa.Text(), nullable=False),
        sa.Column("response_body", sa.LargeBinary(), nullable=False),
        sa.Column("response_truncated", sa.Boolean(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_attempts"),
        postgresql_partition_by="RANGE (id)",
    )
    op.create_index("ix_attempts_delivery_id", "attempts", ["delivery_id"])
    op.create_index("ix_attempts_endpoint_id_id", "attempts", ["endpoint_id", "id"])
    failed = sa.text("status = 'failed'")
    op.create_index(
        "ix_attempts_failed",
        "attempts",
        ["endpoint_id", "id"],
        sqlite_where=failed,
        postgresql_where=failed,
    )


def _move() -> None:
    event = "id, workspace_id, type, external_id, occurred_at, created_at, body"
    delivery = (
        "event_id, endpoint_id, id, workspace_id, event_type, status, attempt_count, created_at, finished_at"
    )
    attempt = (
        "id, workspace_id, delivery_id, event_id, event_type, endpoint_id, number, trigger, status, status_code,"
        " duration_ms, error_code, error_detail, started_at, url, request_headers, response_headers, response_body,"
        " response_truncated"
    )
    for table, columns in (("events", event), ("deliveries", delivery), ("attempts", attempt)):
        op.execute(f"INSERT INTO {table} ({columns}) SELECT {columns} FROM {table}_old")
    op.execute(
        "INSERT INTO event_external_ids (workspace_id, external_id, event_id)"
        " SELECT workspace_id, external_id, id FROM events WHERE external_id IS NOT NULL"
    )
    op.execute(
        "INSERT INTO fan_outs (workspace_id, event_id, event_type)"
        " SELECT workspace_id, id, type FROM events_old WHERE fanned_out_at IS NULL"
    )
    op.execute(
        "INSERT INTO pending_deliveries"
        " (event_id, endpoint_id, delivery_id, is_retry, attempt_count, trigger, next_attempt_at)"
        " SELECT event_id, endpoint_id, id, is_retry, attempt_count, trigger, next_attempt_at"
        " FROM deliveries_old WHERE status = 'pending'"
    )
