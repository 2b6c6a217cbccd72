"""Expected failures: each is a class with a status and a code, rendered as problem+json by the edge."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class FieldError:
    """One fault of a request: where (a JSON Pointer into the body), a code, and a sentence."""

    pointer: str
    code: str
    detail: str


class AppError(Exception):
    """Base of everything that a client may be told. Subclasses set the class attributes."""

    status = 500
    code = "internal_error"
    title = "Internal error"

    def __init__(
        self,
        detail: str | None = None,
        *,
        errors: Sequence[FieldError] = (),
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(detail or self.title)
        self.detail = detail
        self.errors = list(errors)
        self.headers = dict(headers or {})


class BadRequest(AppError):
    """The request cannot be read."""

    status = 400
    code = "bad_request"
    title = "The request cannot be read"


class MalformedJson(BadRequest):
    """The body is not JSON, or is JSON that no JSON store can keep."""

    code = "malformed_json"
    title = "The body is not valid JSON"


class InvalidCursor(BadRequest):
    """The cursor is not one of ours, or belongs to another list."""

    code = "invalid_cursor"
    title = "The cursor is not valid"


class NotFound(AppError):
    """No such object, or not this workspace's: the answer is the same."""

    status = 404
    code = "not_found"
    title = "Not found"


class Conflict(AppError):
    """The object's state forbids it."""

    status = 409
    code = "conflict"
    title = "Conflict"


class TooLarge(AppError):
    """More bytes than allowed."""

    status = 413
    code = "payload_too_large"
    title = "The body is too large"


class RateLimited(AppError):
    """More requests than allowed; nothing was done, and the request can be sent again after `Retry-After` seconds."""

    status = 429
    code = "rate_limited"
    title = "Too many requests"

    def __init__(self, detail: str, *, retry_after_seconds: int) -> None:
        super().__init__(detail, headers={"Retry-After": str(retry_after_seconds)})


class Unavailable(AppError):
    """The database cannot be reached at the moment; nothing was done, and the request can be sent again."""

    status = 503
    code = "unavailable"
    title = "Temporarily unavailable"


class Invalid(AppError):
    """Well-formed, but not acceptable; `errors` names each field."""

    status = 422
    code = "invalid_request"
    title = "The request is not valid"


def invalid_field(pointer: str, code: str, detail: str) -> Invalid:
    """Make the error for a single bad field."""
    return Invalid(detail, errors=[FieldError(pointer, code, detail)])
