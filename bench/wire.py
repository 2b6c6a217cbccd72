"""What really goes between this process and PostgreSQL: statements are not round trips, BEGIN and COMMIT are."""

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from app.core.database import Database


@contextlib.contextmanager
def round_trips(database: Database) -> Iterator[Callable[[], int]]:
    """Count them while only one connection is in use; gives what tells how many there were once the block has ended.

    By libpq's trace: the server ends each with ReadyForQuery
    (https://www.postgresql.org/docs/current/libpq-control.html#LIBPQ-PQTRACE).
    """
    with database.engine.connect() as connection:
        driver: Any = connection.connection.driver_connection  # the pool's only one
    with tempfile.NamedTemporaryFile() as file:
        trace = Path(file.name)
        counted = 0
        driver.pgconn.trace(file.fileno())
        try:
            yield lambda: counted
        finally:
            driver.pgconn.untrace()
            counted = trace.read_text().count("\tReadyForQuery\t")
