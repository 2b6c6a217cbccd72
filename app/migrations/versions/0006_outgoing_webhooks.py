"""Formats, redelivery, test sends, health, statistics and retention of outgoing webhooks."""

from datetime import UTC, datetime

import sqlalchemy as sa
from alembic import op

from app.core.database import IdText, UtcDateTime, utc_now
from app.core.partitions import PartitionedTable, create_ahead, create_default

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make what each part needs."""
    _formats()
    _redelivery()
    _test_sends()
    _health()
    _statistics()
    _retention()


def _formats() -> None:
    op.add_column("endpoints", sa.Column("format_options", sa.Text(), nullable=True))
    op.create_table(
        "rendered_bodies",
        sa.Column("event_id", IdText, nullable=False),
        sa.Column("endpoint_id", IdText, nullable=False),
        sa.Column("format", sa.Text(), nullable=False),
        sa.Column("body", sa.Text(), nullable=True),
        sa.Column("content_type", sa.Text(), nullable=True),
        sa.Column("error", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("event_id", "endpoint_id", name="pk_rendered_bodies"),
        postgresql_partition_by="RANGE (event_id)",
    )
    connection = op.get_bind()
    if connection.dialect.name == "postgresql":
        table = PartitionedTable("rendered_bodies", "evt")
        create_default(connection, table)
        create_ahead(connection, [table], moment=datetime.now(UTC))


def _redelivery() -> None:
    op.create_table(
        "recoveries",
        sa.Column("id", IdText, nullable=False),
        sa.Column("workspace_id", IdText, nullable=False),
        sa.Column("endpoint_id", IdText, nullable=False),
        sa.Column("since", UtcDateTime(), nullable=False),
        sa.Column("until", UtcDateTime(), nullable=False),
        sa.Column("dry_run", sa.Boolean(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("matched", sa.Integer(), nullable=False),
        sa.Column("done", sa.Integer(), nullable=False),
        sa.Column("counted", sa.Boolean(), nullable=False),
        sa.Column("cursor", IdText, nullable=False),
        sa.Column("next_step_at", UtcDateTime(), nullable=False),
        sa.Column("created_at", UtcDateTime(), nullable=False),
        sa.Column("finished_at", UtcDateTime(), nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_recoveries"),
    )
    op.add_column("deliveries", sa.Column("is_test", sa.Boolean(), server_default=sa.false(), nullable=False))
    running = sa.text("status = 'running'")
    op.create_index(
        "uq_recoveries_running",
        "recoveries",
        ["endpoint_id"],
        unique=True,
        sqlite_where=running,
        postgresql_where=running,
    )
    op.create_index("ix_recoveries_endpoint_id_id", "recoveries", ["endpoint_id", "id"])


def _test_sends() -> None:
    op.create_table(
        "pending_tests",
        sa.Column("delivery_id", IdText, nullable=False),
        sa.Column("workspace_id", IdText, nullable=False),
        sa.Column("event_id", IdText, nullable=False),
        sa.Column("endpoint_id", IdText, nullable=False),
        sa.Column("created_at", UtcDateTime(), server_default=utc_now(), nullable=False),
        sa.Column("claimed_at", UtcDateTime(), nullable=True),
        sa.PrimaryKeyConstraint("delivery_id", name="pk_pending_tests"),
    )


def _health() -> None:
    for count in ("failures_in_row", "failed_probes"):
        op.add_column("endpoint_queues", sa.Column(count, sa.Integer(), server_default="0", nullable=False))
    for moment in ("failing_since", "probe_at"):
        op.add_column("endpoint_queues", sa.Column(moment, UtcDateTime(), nullable=True))
    manual = sa.text("trigger = 'manual'")
    op.create_index(
        "ix_pending_deliveries_manual",
        "pending_deliveries",
        ["endpoint_id", "next_attempt_at"],
        sqlite_where=manual,
        postgresql_where=manual,
    )


def _statistics() -> None:
    op.create_table(
        "attempt_counts",
        sa.Column("hour", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("endpoint_id", IdText, nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("duration_bin", sa.SmallInteger(), nullable=False),
        sa.Column("count", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("hour", "endpoint_id", "status", "duration_bin", name="pk_attempt_counts"),
    )
    op.create_index("ix_attempt_counts_endpoint_id_hour", "attempt_counts", ["endpoint_id", "hour"])
    if op.get_bind().dialect.name == "postgresql":
        # A row is written anew with each batch of its hour: beside itself, where it touches no index.
        op.execute("ALTER TABLE attempt_counts SET (fillfactor = 50)")


def _retention() -> None:
    op.add_column("events", sa.Column("payload_expunged_at", UtcDateTime(), nullable=True))
