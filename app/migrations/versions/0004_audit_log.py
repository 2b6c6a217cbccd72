"""The audit log, to which entries can be added only."""

import sqlalchemy as sa
from alembic import op

from app.core.database import IdText, UtcDateTime

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

# Before each statement, not each row: TRUNCATE has no rows.
_POSTGRESQL = (
    """
    CREATE FUNCTION refuse_to_change_audit_entries() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        RAISE EXCEPTION 'audit entries are append-only' USING ERRCODE = 'insufficient_privilege';
    END $$
    """,
    """
    CREATE TRIGGER audit_entries_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON audit_entries
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_to_change_audit_entries()
    """,
)
_SQLITE = tuple(
    f"""
    CREATE TRIGGER audit_entries_no_{change} BEFORE {change} ON audit_entries
    BEGIN SELECT RAISE(ABORT, 'audit entries are append-only'); END
    """
    for change in ("update", "delete")
)


def upgrade() -> None:
    """Make the table and what guards it."""
    op.create_table(
        "audit_entries",
        sa.Column("id", IdText, nullable=False),
        sa.Column("workspace_id", IdText, nullable=False),
        sa.Column("action", sa.Text(), nullable=False),
        sa.Column("actor_type", sa.Text(), nullable=False),
        sa.Column("actor_id", IdText, nullable=True),
        sa.Column("resource_id", IdText, nullable=False),
        sa.Column("changed", sa.JSON(), nullable=False),
        sa.Column("address", sa.Text(), nullable=True),
        sa.Column("request_id", sa.Text(), nullable=True),
        sa.Column("created_at", UtcDateTime(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_audit_entries"),
    )
    op.create_index("ix_audit_entries_workspace_id_id", "audit_entries", ["workspace_id", "id"])
    for column in ("actor_type", "actor_id", "action", "resource_id"):
        op.create_index(
            f"ix_audit_entries_workspace_id_{column}_id", "audit_entries", ["workspace_id", column, "id"]
        )
    for statement in _POSTGRESQL if op.get_context().dialect.name == "postgresql" else _SQLITE:
        op.execute(statement)
