"""Routes that need no key: health, the API's documentation, the pages behind `type` of a problem."""

from http import HTTPStatus
from typing import Any

import redis
from flask import Blueprint, Response, abort, current_app, redirect, send_from_directory
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from app.core.problems import all_problems
from app.migrations import is_current
from app.rest import context

system = Blueprint("system", __name__)

# What Werkzeug refuses by itself and the API has no word of its own for: see HttpError.
_OF_HTTP = {f"http_{status.value}": status for status in HTTPStatus if status >= HTTPStatus.BAD_REQUEST}
_DOCS_CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; frame-ancestors 'none'; form-action 'none'"
)


@system.get("/healthz")
def healthz() -> dict[str, str]:
    """Say that the process answers."""
    return {"status": "ok"}


@system.get("/readyz")
def readyz() -> tuple[dict[str, Any], int]:
    """Say whether the database, with its schema, and the broker answer."""
    checks = {"database": _database_check(), "broker": _broker_check()}
    ready = all(state == "ok" for state in checks.values())
    return {"status": "ok" if ready else "unavailable", "checks": checks}, 200 if ready else 503


@system.get("/")
def home() -> Response:
    """Lead to the documentation."""
    return redirect("/docs")  # type: ignore[return-value]


@system.get("/docs")
def docs() -> Response:
    """Show the API's documentation, from our own files."""
    response = send_from_directory(str(current_app.static_folder), "docs.html")
    response.headers["Content-Security-Policy"] = _DOCS_CSP
    response.headers["Referrer-Policy"] = "no-referrer"
    return response


@system.get("/problems/<code>")
def show_problem(code: str) -> Response:
    """Say what a problem means."""
    known = all_problems().get(code)
    if known is not None:
        explanation = " ".join((known.__doc__ or "").split())
        page = f"{known.status} {known.code}\n{known.title}\n\n{explanation}\n"
    elif code in _OF_HTTP:
        status = _OF_HTTP[code]
        page = f"{status.value} {code}\n{status.phrase}\n\n{status.description or status.phrase}.\n"
    else:
        abort(404)
    return Response(page, mimetype="text/plain")


def _database_check() -> str:
    try:
        with context.resources().database.engine.connect() as connection:
            connection.execute(text("SELECT 1"))
            return "ok" if is_current(connection) else "not migrated"
    except SQLAlchemyError:
        return "unavailable"


def _broker_check() -> str:
    try:
        context.resources().doorbell.ping()
    except (redis.RedisError, OSError):
        return "unavailable"
    return "ok"
