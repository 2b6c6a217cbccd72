"""How the command line tells what went wrong: a line, or a JSON object; a traceback only for our own bugs."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click


@contextmanager
def told(*, as_json: bool) -> Iterator[None]:
    """Run a block; an expected error ends the process with exit code 1."""
    try:
        yield
    except (click.Abort, KeyboardInterrupt):
        sys.exit(130)
    except Exception as error:
        described = _described(error)
        if described is None:
            raise
        if as_json:
            click.echo(json.dumps({"error": described}))
        else:
            click.echo(f"botbat: {described['detail']}", err=True)
        sys.exit(1)


def _described(error: Exception) -> dict[str, Any] | None:
    # Imported here, so that a command that goes well does not pay for them.
    from app.core.errors import AppError  # noqa: PLC0415
    from app.core.problems import problem  # noqa: PLC0415
    from app.processes import CannotStart  # noqa: PLC0415
    from config.settings import SettingsError  # noqa: PLC0415

    code, detail = None, str(error)
    if isinstance(error, AppError):
        return problem(error)
    if isinstance(error, SettingsError):
        return {"code": "invalid_configuration", "detail": detail, "errors": error.errors}
    if isinstance(error, click.ClickException):
        code, detail = "usage", error.format_message()
    elif isinstance(error, CannotStart):
        code = "cannot_start"
    elif isinstance(error, OSError):
        code, detail = "os_error", f"{error.filename or 'system'}: {error.strerror or error}"
    return {"code": code, "detail": detail} if code else _described_by_database(error)


def _described_by_database(error: Exception) -> dict[str, Any] | None:
    from alembic.util.exc import CommandError  # noqa: PLC0415
    from sqlalchemy.exc import SQLAlchemyError  # noqa: PLC0415

    from config.logging import redact  # noqa: PLC0415

    if isinstance(error, CommandError):
        return {"code": "migration_failed", "detail": str(error)}
    if isinstance(error, SQLAlchemyError):
        reason = str(getattr(error, "orig", None) or error).partition("\n")[0]
        return {"code": "database_failed", "detail": f"The database refused: {redact(reason)}"}
    return None
