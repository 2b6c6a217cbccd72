"""Payloads against the schema of their type: JSON Schema 2020-12, offline, so that no `$ref` makes a request."""

from functools import cache, lru_cache
from typing import Any

import jsonschema_rs

from app.core import json_body
from app.core.errors import FieldError
from app.events.catalogue import BUILT_IN

MAX_REPORTED = 20
_MAX_MESSAGE_LENGTH = 300


class SchemaNotUsable(ValueError):
    """Not a JSON Schema 2020-12, or one that refers to another document."""


def check_schema(schema: Any) -> None:
    """Raise `SchemaNotUsable` unless payloads can be validated against `schema`."""
    _compile(json_body.dumps(schema))


def faults(schema: Any, payload: Any, pointer: str) -> list[FieldError]:
    """Give what breaks the schema; `pointer` is where the payload stands in the request."""
    return _faults(_compile(json_body.dumps(schema)), payload, pointer)


def built_in_faults(name: str, payload: Any, pointer: str) -> list[FieldError]:
    """Give what breaks the schema of a built-in type."""
    return _faults(_built_in(name), payload, pointer)


@cache
def _built_in(name: str) -> jsonschema_rs.Validator:
    return _compile(json_body.dumps(BUILT_IN[name].schema))


@lru_cache(maxsize=512)
def _compile(schema: bytes) -> jsonschema_rs.Validator:
    try:
        return jsonschema_rs.Draft202012Validator(
            json_body.parse(schema), validate_formats=True, offline=True
        )
    except (jsonschema_rs.ValidationError, jsonschema_rs.ReferencingError, ValueError) as error:
        raise SchemaNotUsable(str(getattr(error, "message", error))[:_MAX_MESSAGE_LENGTH]) from None


def _faults(validator: jsonschema_rs.Validator, payload: Any, pointer: str) -> list[FieldError]:
    if validator.is_valid(payload):
        return []
    found = []
    for error in validator.iter_errors(payload):
        steps = "".join(f"/{str(step).replace('~', '~0').replace('/', '~1')}" for step in error.instance_path)
        found.append(FieldError(pointer + steps, "schema", error.message[:_MAX_MESSAGE_LENGTH]))
        if len(found) == MAX_REPORTED:
            break
    return found
