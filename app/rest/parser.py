"""How request bodies are read: JSON only, bounded, exact; faults become our errors with JSON Pointers."""

from collections.abc import Iterator
from typing import Any, NoReturn

from flask import Request, g
from marshmallow import Schema, ValidationError
from webargs.flaskparser import FlaskParser

from app.core import json_body
from app.core.errors import AppError, FieldError, Invalid, TooLarge

_UNKNOWN_FIELD = "Unknown field."
_CODES = {
    "Missing data for required field.": "required",
    _UNKNOWN_FIELD: "unknown_field",
    "Field may not be null.": "null",
}


class UnsupportedMediaType(AppError):
    """The body is not declared as JSON."""

    status = 415
    code = "unsupported_media_type"
    title = "The body must be JSON"


class Parser(FlaskParser):
    """webargs' parser with our JSON rules and our errors."""

    DEFAULT_UNKNOWN_BY_LOCATION = {**FlaskParser.DEFAULT_UNKNOWN_BY_LOCATION, "json": None}  # noqa: RUF012

    def load_json(self, req: Request, schema: Schema) -> Any:
        """Give the body's value; an absent body is `{}`."""
        raw = req.get_data(cache=True)
        check_length(len(raw))
        if not raw:
            return {}
        if not req.is_json:
            raise UnsupportedMediaType("Send the body with `Content-Type: application/json`.")
        return json_body.parse(raw, allow_nul=getattr(schema, "refuses_nul", False))

    def handle_error(
        self,
        error: ValidationError,
        req: Request,
        schema: Schema,
        *,
        error_status_code: int | None,
        error_headers: Any,
    ) -> NoReturn:
        """Raise `Invalid` with one entry per fault."""
        del req, schema, error_status_code, error_headers
        messages = error.normalized_messages()  # type: ignore[no-untyped-call]
        errors = [item for location in messages.values() for item in field_errors(location)]
        raise Invalid(summary(errors), errors=errors) from None


def check_length(length: int) -> None:
    """Raise `TooLarge` if the current route takes no body of so many bytes."""
    if length > g.max_body_bytes:
        raise TooLarge(f"The body may have up to {g.max_body_bytes} bytes.")


def field_errors(messages: Any, pointer: str = "") -> Iterator[FieldError]:
    """Flatten marshmallow's nested messages."""
    if isinstance(messages, dict):
        for key, value in messages.items():
            # marshmallow's name for the object itself, unless that is what the client called a field.
            whole = key == "_schema" and value != [_UNKNOWN_FIELD]
            step = "" if whole else "/" + str(key).replace("~", "~0").replace("/", "~1")
            yield from field_errors(value, pointer + step)
    elif isinstance(messages, list):
        for message in messages:
            yield from field_errors(message, pointer)
    else:
        yield FieldError(pointer, _CODES.get(str(messages), "invalid"), str(messages))


def summary(errors: list[FieldError]) -> str:
    """Say in one line what is wrong."""
    return "; ".join(f"{error.pointer or 'body'}: {error.detail}" for error in errors[:3])
