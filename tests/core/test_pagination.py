"""Cursors continue a list where it ended; what is no cursor of the list is refused."""

import base64
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.core.errors import InvalidCursor
from app.core.ids import new_id
from app.core.pagination import PageRequest, decode_cursor, encode_cursor, page_of, page_request

EVENT_ID = "evt_01kjpx8tcmej9svxw1fyydhpy2"


@dataclass
class Row:
    id: str


def newest_first(rows: list[Row], request: PageRequest) -> list[Row]:
    """Query as a repository does: one more than a page."""
    found = [row for row in rows if request.before is None or row.id < request.before]
    return sorted(found, key=lambda row: row.id, reverse=True)[: request.limit + 1]


@pytest.mark.parametrize("count", [0, 1, 9, 10, 11, 20, 25])
def test_pages_give_each_row_once_and_end(count):
    rows = [Row(new_id("evt")) for _ in range(count)]
    seen: list[Row] = []
    cursor = None
    for _ in range(10):
        request = page_request(10, cursor, "evt")
        page = page_of(newest_first(rows, request), request)
        seen += page.items
        cursor = page.next_cursor
        if cursor is None:
            break
        assert len(page.items) == 10
    assert cursor is None
    assert seen == sorted(rows, key=lambda row: row.id, reverse=True)


def test_a_row_that_is_added_or_removed_in_between_moves_no_other():
    rows = [Row(new_id("evt")) for _ in range(6)]
    first = page_of(newest_first(rows, PageRequest(2)), PageRequest(2))
    kept = [row for row in rows if row not in first.items]
    rows = [*kept, Row(new_id("evt"))]
    second = page_request(10, first.next_cursor, "evt")
    assert newest_first(rows, second) == sorted(kept, key=lambda row: row.id, reverse=True)


@settings(deadline=None)
@given(st.text(min_size=1))
def test_a_cursor_is_url_safe_and_comes_back(position):
    cursor = encode_cursor(position)
    assert cursor.isascii()
    assert not set(cursor) & set("+/=&?# ")
    assert decode_cursor(cursor, lambda text: True) == position


@pytest.mark.parametrize(
    "cursor",
    [
        *("", " ", "=", "x", "!!!!", "é", "\0", "null", "0", "a" * 5000),
        EVENT_ID,
        encode_cursor(""),
        encode_cursor("evt_"),
        encode_cursor("evt_' OR 1=1 --"),
        encode_cursor("ep_01kjpx8tcmej9svxw1fyydhpy2"),
        encode_cursor(EVENT_ID.upper()),
        encode_cursor(EVENT_ID) + "\n",
        base64.urlsafe_b64encode(b"\xff\xfe").decode(),
    ],
)
def test_what_is_no_cursor_of_the_list_is_a_400(cursor):
    with pytest.raises(InvalidCursor) as refusal:
        page_request(10, cursor, "evt")
    assert refusal.value.status == 400


@settings(deadline=None)
@given(st.text())
def test_no_text_breaks_the_reader(cursor):
    with pytest.raises(InvalidCursor):
        page_request(10, cursor, "evt")
