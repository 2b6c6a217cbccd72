"""When there is something to tell of a key's end."""

from datetime import UTC, datetime, timedelta

import pytest

from app.api_keys.expiry import next_notice_at

END = datetime(2026, 3, 9, 9, 15, 5, tzinfo=UTC)
WEEK, DAY, INSTANT = timedelta(days=7), timedelta(days=1), timedelta(microseconds=1)


@pytest.mark.parametrize(
    ("left", "told_with"),
    [
        (timedelta(days=3650), WEEK),
        (WEEK + INSTANT, WEEK),
        (WEEK, DAY),
        (timedelta(days=3), DAY),
        (DAY + INSTANT, DAY),
        (DAY, timedelta()),
        (INSTANT, timedelta()),
        (timedelta(), timedelta()),
    ],
)
def test_the_next_notice_is_the_first_whose_moment_is_to_come(left, told_with):
    assert next_notice_at(END, END - left) == END - told_with
