"""The filters of templates: Liquid's own, but for those that would tell the time, print Python, or grow without bound.

Arrays and objects are written as JSON wherever text is wanted, so that no template ever shows how Python writes them.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from functools import partial, wraps
from math import isfinite
from types import MappingProxyType
from typing import Any

import liquid
from liquid.filter import sequence_filter

from app.core import json_body

MAX_TEXT_LENGTH = 256 * 1024
MAX_DIGITS = 40

_MAX_DATE_FORMAT_LENGTH = 100
# Directives whose result depends on neither the machine's time zone nor its locale.
_DATE_FORMAT = re.compile(r"(?:[^%]|%-?[aAbBdeFHIjmMpSTyYzZ%])*", re.DOTALL)
_ON_TEXT = (
    *("append", "prepend", "remove", "remove_first", "remove_last", "replace_first", "replace_last", "split"),
    *("upcase", "downcase", "capitalize", "strip", "lstrip", "rstrip", "squish", "truncate", "truncatewords"),
    *("strip_newlines", "newline_to_br", "escape", "escape_once", "url_encode", "url_decode"),
    *("base64_encode", "base64_decode", "base64_url_safe_encode", "base64_url_safe_decode"),
)
_ON_VALUES = (
    *(
        "abs",
        "at_least",
        "at_most",
        "ceil",
        "floor",
        "round",
        "plus",
        "minus",
        "times",
        "divided_by",
        "modulo",
    ),
    *("first", "last", "size", "concat", "reverse", "sort", "sort_natural", "compact", "sum"),
    *("where", "reject", "find", "find_index", "has", "default"),
)


class TooLong(ValueError):
    """The result would be longer than `MAX_TEXT_LENGTH`, or a number of more than `MAX_DIGITS` digits."""


def text(value: Any) -> str:
    """Give a value as it is printed: null as nothing, arrays and objects as JSON."""
    if isinstance(value, str):
        return value
    if value is None:
        return ""
    if isinstance(value, bool | dict | list | tuple | range):
        return _json(value)
    return str(value)


def checked(value: Any) -> Any:
    """Give the value back if a filter may result in it; raises `TooLong` or `ValueError`."""
    kind = type(value)
    if kind is str:
        if len(value) > MAX_TEXT_LENGTH:
            raise TooLong
        if "\0" in value:
            raise ValueError("NUL")  # which no JSON store can keep
    elif kind is int and abs(value) >= 10**MAX_DIGITS:
        raise TooLong
    elif kind is float and not isfinite(value):
        raise ValueError("neither infinity nor NaN is JSON")
    return value


def _json(value: Any) -> str:
    return json_body.dumps(list(value) if isinstance(value, range) else value).decode()


def _replace(value: str, old: str, new: str = "") -> str:
    # Measured beforehand: a text that is replaced by itself squares, and would fill the memory.
    if len(value) + value.count(old) * (len(new) - len(old)) > MAX_TEXT_LENGTH:
        raise TooLong
    return value.replace(old, new)


@sequence_filter
def _join(items: Iterable[Any], separator: Any = " ") -> str:
    texts, separator = [text(item) for item in items], text(separator)
    if sum(map(len, texts)) + len(separator) * len(texts) > MAX_TEXT_LENGTH + len(separator):
        raise TooLong
    return str(separator).join(texts)


@sequence_filter
def _map(items: Iterable[Any], name: Any) -> list[Any]:
    return [item.get(text(name)) for item in items]


@sequence_filter
def _uniq(items: Iterable[Any], name: Any = None) -> list[Any]:
    # Liquid compares each with each.
    first: dict[str, Any] = {}
    for item in items:
        first.setdefault(_json(item if name is None else item.get(text(name))), item)
    return list(first.values())


def _slice(value: Any, start: Any, length: Any = 1) -> Any:
    return _STOCK["slice"](value if isinstance(value, list | tuple | range) else text(value), start, length)


def _date(value: Any, form: Any) -> str:
    """Write a time; it is RFC 3339 (UTC if it has no offset) or seconds since 1970. There is no `now`."""
    if not _DATE_FORMAT.fullmatch(form) or len(form) > _MAX_DATE_FORMAT_LENGTH:
        raise ValueError(form)
    is_text = isinstance(value, str)
    moment = datetime.fromisoformat(value) if is_text else datetime.fromtimestamp(value, UTC)
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).strftime(form)


def _on_text(function: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(function)
    def apply(value: Any, *arguments: Any) -> Any:
        return function(text(value), *map(text, arguments))

    return apply


def _stock() -> dict[str, Callable[..., Any]]:
    environment = liquid.Environment()
    return {
        name: partial(function, environment=environment)
        if getattr(function, "with_environment", False)
        else function
        for name, function in environment.filters.items()
    }


_STOCK = _stock()
FILTERS: Mapping[str, Callable[..., Any]] = MappingProxyType(
    {
        **{name: _on_text(_STOCK[name]) for name in _ON_TEXT},
        **{name: _STOCK[name] for name in _ON_VALUES},
        "date": _date,
        "join": _join,
        "json": _json,
        "map": _map,
        "replace": _on_text(_replace),
        "slice": _slice,
        "uniq": _uniq,
    }
)
