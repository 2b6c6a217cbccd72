"""What Alembic runs around the steps. The connection is `migrate`'s, in its open transaction."""

from alembic import context

from app.core.database import Base

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    render_as_batch=True,  # SQLite changes a table by making it anew
    compare_type=True,
)
context.run_migrations()
