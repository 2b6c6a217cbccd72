"""problem+json (RFC 9457): how an error looks on the wire, and the page behind each `type`."""

from typing import Any

from app.core.errors import AppError

CONTENT_TYPE = "application/problem+json"


def all_problems() -> dict[str, type[AppError]]:
    """Give every error class by its code."""
    found: dict[str, type[AppError]] = {}
    pending = [AppError]
    while pending:
        cls = pending.pop()
        found.setdefault(cls.code, cls)
        pending.extend(cls.__subclasses__())
    return found


def problem(error: AppError, request_id: str | None = None) -> dict[str, Any]:
    """Give the body for an error; without `request_id` where it stands inside another answer."""
    body: dict[str, Any] = {
        "type": f"/problems/{error.code}",
        "title": error.title,
        "status": error.status,
        "detail": error.detail or error.title,
        "code": error.code,
    }
    if request_id:
        body["request_id"] = request_id
    if error.errors:
        body["errors"] = [
            {"pointer": item.pointer, "code": item.code, "detail": item.detail} for item in error.errors
        ]
    return body
