"""API keys: notices of expiry, the lifetime that a rotation renews, and rate limits of their own."""

from datetime import UTC, datetime, timedelta
from typing import Any

import sqlalchemy as sa
from alembic import op

from app.core.database import IdText, UtcDateTime

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

_ADDED: tuple[sa.Column[Any], ...] = (
    sa.Column("lifetime_seconds", sa.BigInteger(), nullable=True),
    sa.Column("next_notice_at", UtcDateTime(), nullable=True),
    sa.Column("expired_at", UtcDateTime(), nullable=True),
    sa.Column("rate_limit_per_second", sa.Integer(), nullable=True),
)
_INDEX = "ix_api_keys_next_notice_at"
_PARTIAL = sa.text("next_notice_at IS NOT NULL")
_API_KEYS = sa.table(
    "api_keys",
    sa.column("id", IdText),
    sa.column("created_at", UtcDateTime()),
    sa.column("expires_at", UtcDateTime()),
    sa.column("revoked_at", UtcDateTime()),
    sa.column("lifetime_seconds", sa.BigInteger()),
    sa.column("next_notice_at", UtcDateTime()),
)


def upgrade() -> None:
    """Add the columns, and fill them for keys that expire."""
    for column in _ADDED:
        op.add_column("api_keys", column)
    op.create_index(_INDEX, "api_keys", ["next_notice_at"], sqlite_where=_PARTIAL, postgresql_where=_PARTIAL)
    connection, keys, moment = op.get_bind(), _API_KEYS.c, datetime.now(UTC)
    for key in connection.execute(sa.select(_API_KEYS).where(keys.expires_at.is_not(None))).all():
        notices = [key.expires_at - timedelta(days=days) for days in (7, 1)]
        next_notice_at = next((notice for notice in notices if notice > moment), key.expires_at)
        connection.execute(
            sa.update(_API_KEYS)
            .where(keys.id == key.id)
            .values(
                lifetime_seconds=(key.expires_at - key.created_at) // timedelta(seconds=1),
                next_notice_at=next_notice_at if key.revoked_at is None else None,
            )
        )
