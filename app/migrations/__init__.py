"""The schema's history, and how a database is brought to its head. Alembic, without an ini file."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

import structlog
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import text
from sqlalchemy.engine import Connection, make_url

from app.core import partitions
from app.core.clock import now
from app.core.database import Database
from app.core.partitions import PartitionedTable
from config.settings import Settings, make_private_dir

# Any number that no other program takes on the same database: "botbat" in ASCII.
_ADVISORY_LOCK = 0x626F74626174

log = structlog.get_logger()

# It tells the kind of the database whenever it looks, and every readiness probe has it look.
logging.getLogger("alembic.runtime.migration").setLevel(logging.WARNING)


def migrate(settings: Settings, partitioned: Sequence[PartitionedTable] = ()) -> str:
    """Bring the database to the newest schema and give its revision. Two at once are safe: one waits.

    All steps are one transaction, so that one that fails leaves nothing half done. What is `partitioned` gets the
    partitions of the days to come, so that a service that has stood still for days starts with them.
    """
    with _locked(settings) as connection:
        config = _config()
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
        if partitioned and connection.dialect.name == "postgresql":
            partitions.limit_waiting(connection)
            missing = partitions.create_ahead(connection, partitioned, moment=now())
            if missing:
                log.warning("retention.partitions_missing", partitions=missing)
        return str(MigrationContext.configure(connection).get_current_revision())


def is_current(connection: Connection) -> bool:
    """Tell whether the database has the schema that this code was written for."""
    return set(MigrationContext.configure(connection).get_current_heads()) == _heads()


@contextmanager
def _locked(settings: Settings) -> Iterator[Connection]:
    path = make_url(settings.database_url).database
    if settings.embedded_database and path:
        make_private_dir(Path(path).parent)
    database = Database(settings.database_url, pool_size=1)
    try:
        # On SQLite the transaction itself is the lock: it begins with BEGIN IMMEDIATE.
        with database.bind(write=True).begin() as connection:
            if not database.is_sqlite:
                connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _ADVISORY_LOCK})
            yield connection
    finally:
        database.dispose()


def _config() -> Config:
    config = Config()
    # The ini syntax expands percent signs, in a path too.
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    return config


@lru_cache(maxsize=1)
def _heads() -> set[str]:
    return set(ScriptDirectory.from_config(_config()).get_heads())
