"""Cursors of lists: lists are newest first by id, so a cursor is the last id that was given, in base64url."""

import base64
import binascii
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from app.core.errors import InvalidCursor
from app.core.ids import is_id

DEFAULT_LIMIT = 25
MAX_LIMIT = 100
# How many rows one request looks at for those that it is asked for, where no index leads to them. A page of a rare kind
# can be short, even empty, and still have a cursor.
MAX_SEARCHED = 10_000

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class PageRequest:
    """What part of a list is asked for: up to `limit` rows with ids below `before`."""

    limit: int = DEFAULT_LIMIT
    before: str | None = None


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """Part of a list, and the cursor of the next part or None."""

    items: Sequence[T]
    next_cursor: str | None


def page_request(limit: int, cursor: str | None, prefix: str) -> PageRequest:
    """Read a cursor for a list of ids with `prefix`; raises `InvalidCursor`."""
    if cursor is None:
        return PageRequest(limit)
    return PageRequest(limit, decode_cursor(cursor, lambda text: is_id(text, prefix)))


def encode_cursor(position: str) -> str:
    """Make a cursor of the last row's position."""
    return base64.urlsafe_b64encode(position.encode()).decode().rstrip("=")


def decode_cursor(cursor: str, is_valid: Callable[[str], bool]) -> str:
    """Give the position that a cursor stands for; raises `InvalidCursor`."""
    try:
        position = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True).decode()
    except (binascii.Error, UnicodeError, ValueError):
        position = ""
    if not is_valid(position):
        raise InvalidCursor("Use `next_cursor` of an earlier answer of this list, unchanged.")
    return position


def page_of(rows: Sequence[Any], request: PageRequest, *, searched_to: str | None = None) -> Page[Any]:
    """Make a page of rows that were queried with one more than `request.limit`.

    `searched_to` is the id at which a search ended that may go on below; None where there is no more.
    """
    if len(rows) <= request.limit:
        return Page(rows, encode_cursor(searched_to) if searched_to else None)
    items = rows[: request.limit]
    return Page(items, encode_cursor(items[-1].id))
