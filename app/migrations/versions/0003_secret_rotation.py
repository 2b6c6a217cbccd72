"""A signing secret's predecessor, which goes on signing for a while after a rotation."""

import sqlalchemy as sa
from alembic import op

from app.core.database import UtcDateTime

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the columns."""
    op.add_column("endpoints", sa.Column("previous_signing_secret", sa.Text(), nullable=True))
    op.add_column("endpoints", sa.Column("previous_secret_expires_at", UtcDateTime(), nullable=True))
