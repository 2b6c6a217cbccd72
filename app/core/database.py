"""The two databases behind one code path: PostgreSQL serves, SQLite is the embedded default.

Their differences live here and in the claim functions of the repositories, nowhere else.
"""

import sqlite3
from datetime import UTC, datetime
from typing import Any

import psycopg
from sqlalchemy import DateTime, Dialect, Engine, MetaData, Text, create_engine, event
from sqlalchemy.engine import Connection, make_url
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import DeclarativeBase
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.types import TypeDecorator

from app.core import json_body

# Ids sort by their bytes on both databases; a locale's collation would be slower and could order otherwise.
IdText = Text().with_variant(Text(collation="C"), "postgresql")

NULL = "\\N"  # in the lines of `copy_in`

_SQLITE_BUSY_SECONDS = 15
_SQLITE_HURRIED_MILLISECONDS = 100
_WRITE_OPTION = "botbat_write"
_HURRIED_OPTION = "botbat_hurried"


class UtcDateTime(TypeDecorator[datetime]):
    """An aware time in UTC on both databases; SQLite keeps it as text of fixed width, which sorts by time."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Refuse naive times; SQLite gets them in UTC without a zone."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("a naive datetime does not say when it is")
        value = value.astimezone(UTC)
        return value if dialect.name == "postgresql" else value.replace(tzinfo=None)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Give an aware time back."""
        del dialect
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class Base(DeclarativeBase):
    """The base of every table's class."""

    # Every constraint has a name of our choosing, the same on both databases, so that a migration can refer to it.
    metadata = MetaData(
        naming_convention={
            "pk": "pk_%(table_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        }
    )


class utc_now(FunctionElement[datetime]):  # noqa: N801 - reads as the SQL function that it is
    """The database's clock, which every process shares. On PostgreSQL: the start of the transaction."""

    type = UtcDateTime()
    inherit_cache = True


@compiles(utc_now)
def _utc_now(_element: utc_now, _compiler: SQLCompiler, **_kw: Any) -> str:
    return "now()"


SQLITE_NOW = "(strftime('%Y-%m-%d %H:%M:%f', 'now') || '000')"


@compiles(utc_now, "sqlite")
def _utc_now_sqlite(_element: utc_now, _compiler: SQLCompiler, **_kw: Any) -> str:
    return SQLITE_NOW


class Database:
    """One engine; made per process, since neither pools nor connections survive a fork."""

    def __init__(self, url: str, *, pool_size: int = 10) -> None:
        self.is_sqlite = make_url(url).get_backend_name() == "sqlite"
        self.engine = _sqlite(url, pool_size) if self.is_sqlite else _postgresql(url, pool_size)
        self._writing = self.engine.execution_options(**{_WRITE_OPTION: True})
        self._hurried = self._writing.execution_options(**{_HURRIED_OPTION: True})
        self._autocommit = self.engine.execution_options(
            **({} if self.is_sqlite else {"isolation_level": "AUTOCOMMIT"})
        )

    def bind(self, *, write: bool, one_write: bool = False, hurried: bool = False) -> Engine:
        """Give the engine for a unit of work; on SQLite one that will write takes the lock at its start.

        With at most `one_write` statement that writes, PostgreSQL needs no BEGIN and COMMIT around it: half the round
        trips. Its reads see no less: each statement of READ COMMITTED has a snapshot of its own anyway.
        `hurried` writers give up where they would have to wait for SQLite's one write lock.
        """
        if hurried:
            return self._hurried
        if not self.is_sqlite and (one_write or not write):
            return self._autocommit
        return self._writing if write else self.engine

    def dispose(self) -> None:
        """Close every connection."""
        self.engine.dispose()


def copy_in(connection: Connection, statement: str, lines: str) -> None:
    """Run PostgreSQL's `COPY … FROM STDIN`. Errors are SQLAlchemy's, as those of `execute` are."""
    driver = _driver(connection)
    try:
        with driver.cursor() as cursor, cursor.copy(statement) as copy:
            copy.write(lines)
    except psycopg.Error as error:
        raise _as_sqlalchemy(connection, statement, error) from error


def read_rows(connection: Connection, statement: str, parameters: dict[str, Any]) -> list[tuple[Any, ...]]:
    """Run a statement in psycopg's words on PostgreSQL and give its rows, for the hot paths.

    `execute` costs five times as much for one row. Values come in binary, so that no bytes go over as hexadecimal
    digits. Errors are SQLAlchemy's.
    """
    driver = _driver(connection)
    try:
        with driver.cursor(binary=True) as cursor:
            rows: list[tuple[Any, ...]] = cursor.execute(statement, parameters).fetchall()
            return rows
    except psycopg.Error as error:
        raise _as_sqlalchemy(connection, statement, error) from error


def _driver(connection: Connection) -> Any:
    if not connection.in_transaction():
        # SQLAlchemy does not see what the driver does: as the first statement it would never be committed.
        connection.begin()
    return connection.connection


def _as_sqlalchemy(connection: Connection, statement: str, error: psycopg.Error) -> DBAPIError:
    driver: Any = connection.connection
    if driver.closed:
        connection.invalidate(error)
    return DBAPIError.instance(statement, None, error, psycopg.Error)  # type: ignore[return-value]


def _json(value: Any) -> str:
    return json_body.dumps(value).decode()


def _postgresql(url: str, pool_size: int) -> Engine:
    return create_engine(
        url,
        pool_size=pool_size,
        max_overflow=5,
        pool_timeout=10,
        pool_pre_ping=False,
        pool_recycle=1800,
        hide_parameters=True,  # they hold URLs and bodies, and errors are logged
        json_serializer=_json,
        json_deserializer=json_body.read_stored,
        connect_args={"connect_timeout": 5, "options": "-c timezone=utc", "application_name": "botbat"},
    )


def _sqlite(url: str, pool_size: int) -> Engine:
    engine = create_engine(
        url,
        pool_size=pool_size,
        max_overflow=5,
        pool_timeout=_SQLITE_BUSY_SECONDS,
        hide_parameters=True,  # they hold URLs and bodies, and errors are logged
        json_serializer=_json,
        json_deserializer=json_body.read_stored,
        # isolation_level None: the driver opens no transaction behind our back, so that we choose its kind.
        connect_args={"timeout": _SQLITE_BUSY_SECONDS, "check_same_thread": False, "isolation_level": None},
    )

    @event.listens_for(engine, "connect")
    def _configure(connection: sqlite3.Connection, _record: object) -> None:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")  # a committed event survives a power cut
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute("PRAGMA cache_size = -16000")

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        # A transaction that reads and then writes fails at once when another wrote in between, busy timeout
        # or not; taking the write lock first waits for it instead.
        options = connection.get_execution_options()
        if options.get(_HURRIED_OPTION):
            connection.exec_driver_sql(f"PRAGMA busy_timeout = {_SQLITE_HURRIED_MILLISECONDS}")
        try:
            connection.exec_driver_sql("BEGIN IMMEDIATE" if options.get(_WRITE_OPTION) else "BEGIN")
        finally:
            if options.get(_HURRIED_OPTION):
                connection.exec_driver_sql(f"PRAGMA busy_timeout = {_SQLITE_BUSY_SECONDS * 1000}")

    return engine
