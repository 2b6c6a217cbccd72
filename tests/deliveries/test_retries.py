"""When a failed delivery is attempted again: the rules as tables."""

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.deliveries.retries import MAX_RETRY_AFTER_SECONDS, delay_after, read_retry_after
from app.endpoints.policy import MAX_RETRIES, MAX_RETRY_DELAY_SECONDS, Policy

PROMISED = (10, 30, 120, 600, 1800)
MOMENT = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("schedule", "attempt_number", "retry_after", "expected"),
    [
        (PROMISED, 1, 0, 10),
        (PROMISED, 2, 0, 30),
        (PROMISED, 3, 0, 120),
        (PROMISED, 4, 0, 600),
        (PROMISED, 5, 0, 1800),
        (PROMISED, 6, 0, None),
        (PROMISED, 7, 0, None),
        ((), 1, 0, None),
        ((0,), 1, 0, 0),
        ((0,), 2, 0, None),
        ((86_400,), 1, 0, 86_400),
        # Retry-After pushes later, never sooner, by at most an hour, and adds no attempt.
        (PROMISED, 1, 9, 10),
        (PROMISED, 1, 60, 60),
        (PROMISED, 1, 3600, 3600),
        (PROMISED, 1, 3601, 3600),
        (PROMISED, 1, 1e9, 3600),
        ((86_400,), 1, 3600, 86_400),
        (PROMISED, 6, 60, None),
        ((), 1, 60, None),
    ],
)
def test_the_delay_after_a_failure(schedule, attempt_number, retry_after, expected):
    assert delay_after(schedule, attempt_number, retry_after_seconds=retry_after, jitter=0) == expected


def test_the_default_policy_has_the_promised_schedule():
    assert Policy().retry_schedule == PROMISED


@settings(deadline=None)
@given(
    schedule=st.lists(st.integers(0, MAX_RETRY_DELAY_SECONDS), max_size=MAX_RETRIES),
    attempt_number=st.integers(1, MAX_RETRIES + 2),
    retry_after=st.floats(0, 1e12),
)
def test_a_delay_is_never_cut_short_and_at_most_a_tenth_longer(schedule, attempt_number, retry_after):
    delay = delay_after(schedule, attempt_number, retry_after_seconds=retry_after)
    if attempt_number > len(schedule):
        assert delay is None
        return
    assert delay is not None
    base = schedule[attempt_number - 1]
    pushed = min(retry_after, MAX_RETRY_AFTER_SECONDS)
    assert max(base, pushed) <= delay <= max(base * 1.1, pushed)


def test_many_delays_are_spread():
    delays = {delay_after(PROMISED, 5) or 0 for _ in range(100)}
    assert len(delays) > 90
    assert max(delays) - min(delays) > 90  # of the 180 s that 1800 s may be spread over


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("0", 0),
        ("120", 120),
        (" 120 ", 120),
        ("007", 7),
        ("99999999999999999999999999", 999_999_999),  # more than any cap
        ("Sun, 01 Mar 2026 12:05:00 GMT", 300),
        ("Sunday, 01-Mar-26 12:05:00 GMT", 300),
        ("Sun Mar  1 12:05:00 2026 GMT", 300),
        ("Sun, 01 Mar 2026 14:05:00 +0200", 300),
        ("Sun, 01 Mar 2026 11:55:00 GMT", 0),  # past
        (
            "Fri, 31 Dec 9999 23:59:59 GMT",
            (datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC) - MOMENT).total_seconds(),
        ),
        ("", 0),
        ("-120", 0),
        ("+120", 0),
        ("1.5", 0),
        ("1e3", 0),
        ("²", 0),
        ("١٢٠", 0),
        ("soon", 0),
        ("120, 240", 0),
        ("Sun, 99 Mar 2026 12:05:00 GMT", 0),
        ("Sun, 01 Mar 2026 12:05:00 +999999999999999999", 0),
        ("Sun, 01 Mar 2026 12:05:00 -0000", 0),
        ("Sun, 01 Mar 999999999999999999999 12:05:00 GMT", 0),
        ("GMT", 0),
        (",", 0),
        ("\x00", 0),
    ],
)
def test_what_a_retry_after_header_asks_for(value, expected):
    assert read_retry_after(value, MOMENT) == expected


@settings(deadline=None)
@given(st.text() | st.from_regex(r"\A\w{3}, \d{1,3} \w{3} \d{1,20} \d+:\d+:\d+ [+-]?\w{0,20}\Z"))
def test_no_header_breaks_the_reader(value):
    assert read_retry_after(value, MOMENT) >= 0


@settings(deadline=None)
@given(st.integers(-(10**6), 10**6))
def test_every_http_date_is_read(seconds):
    value = format_datetime(MOMENT + timedelta(seconds=seconds), usegmt=True)
    assert read_retry_after(value, MOMENT) == max(0, seconds)
