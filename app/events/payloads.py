"""Payloads against the schema of their type: JSON Schema 2020-12, offline, so that no `$ref` makes a request."""

from functools import cache, lru_cache
from typing import Any
from urllib.parse import unquote

import jsonschema_rs

from app.core import json_body
from app.core.errors import FieldError
from app.events.catalogue import BUILT_IN

MAX_REPORTED = 20
MAX_SCHEMA_NODES = 20_000
_MAX_MESSAGE_LENGTH = 300


class SchemaNotUsable(ValueError):
    """Not a JSON Schema 2020-12, or one that refers to another document."""


def check_schema(schema: Any) -> None:
    """Raise `SchemaNotUsable` unless payloads can be validated against `schema`, in bounded time."""
    try:
        size = _size(schema, schema, {}, set())
    except RecursionError:
        raise SchemaNotUsable("its references are nested too deep") from None
    if size > MAX_SCHEMA_NODES:
        raise SchemaNotUsable(f"with its references written out it has more than {MAX_SCHEMA_NODES} parts")
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


def _size(schema: Any, root: Any, known: dict[str, int], open_references: set[str]) -> int:
    """Count a schema's parts as if every reference were written out: what validating can cost at most.

    A few references that each stand twice double with every level; a schema that refers to itself has no end.
    """
    if isinstance(schema, list):
        return sum(_size(item, root, known, open_references) for item in schema)
    if not isinstance(schema, dict):
        return 1
    size = 1 + sum(
        _size(value, root, known, open_references) for key, value in schema.items() if key != "$defs"
    )
    for keyword in ("$ref", "$dynamicRef"):
        reference = schema.get(keyword)
        if not isinstance(reference, str):
            continue
        if reference in open_references:
            raise SchemaNotUsable("it refers to itself")
        if reference not in known:
            open_references.add(reference)
            known[reference] = _size(_resolve(root, reference), root, known, open_references)
            open_references.remove(reference)
        size += known[reference]
    return size


def _resolve(root: Any, reference: str) -> Any:
    if reference != "#" and not reference.startswith("#/"):
        raise SchemaNotUsable("only references such as #/$defs/name are supported")
    found = root
    for step in reference.split("/")[1:]:
        step = unquote(step).replace("~1", "/").replace("~0", "~")  # noqa: PLW2901 - the same step, unescaped
        try:
            found = found[int(step)] if isinstance(found, list) else found[step]
        except (KeyError, IndexError, ValueError, TypeError):
            raise SchemaNotUsable(f"{reference} leads nowhere") from None
    return found


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
