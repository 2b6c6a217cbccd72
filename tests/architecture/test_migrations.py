"""The migrations make what the models say, down to what Alembic's comparison in tests/migrations overlooks."""

import re

import pytest
from sqlalchemy import Connection, MetaData, text

import app.web  # noqa: F401 - imports every table
from app.core.database import Base, Database

pytestmark = pytest.mark.own_database

# Partitions are as their table is.
_NOT_OURS = re.compile(r"alembic_version|_[0-9]{8}[._]|_default[._]")
_INDEXES_POSTGRESQL = text("SELECT indexname, indexdef FROM pg_indexes WHERE schemaname = current_schema()")
_INDEXES_SQLITE = text("SELECT name, sql FROM sqlite_master WHERE type = 'index' AND sql IS NOT NULL")
_CONSTRAINTS_POSTGRESQL = text("""
    SELECT conname, pg_get_constraintdef(oid) FROM pg_constraint WHERE connamespace = current_schema()::regnamespace
""")
_COLLATIONS_POSTGRESQL = text("""
    SELECT table_name || '.' || column_name, collation_name FROM information_schema.columns
    WHERE table_schema = current_schema()
""")


def definitions(connection: Connection) -> dict[str, str]:
    """Give what the database itself says about indexes, constraints and collations."""
    if connection.dialect.name == "sqlite":
        queries = [_INDEXES_SQLITE]
    else:
        queries = [_INDEXES_POSTGRESQL, _CONSTRAINTS_POSTGRESQL, _COLLATIONS_POSTGRESQL]
    found: dict[str, str] = {}
    for query in queries:
        found |= {name: " ".join(str(definition).split()) for name, definition in connection.execute(query)}
    return {name: text for name, text in found.items() if not _NOT_OURS.search(name)}


def test_partial_indexes_constraints_and_collations_agree_too(resources, database_url):
    database = Database(database_url)
    with database.bind(write=True).begin() as connection:
        migrated = definitions(connection)
        everything = MetaData()
        # A partition goes with its table.
        everything.reflect(connection, only=lambda name, _: not re.search(r"_([0-9]{8}|default)$", name))
        everything.drop_all(connection)
        Base.metadata.create_all(connection)
        assert definitions(connection) == migrated
    database.dispose()
    assert "ix_attempts_failed" in migrated
