"""When an endpoint is failing, held, released and disabled: the rules as tables."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.endpoints.health import (
    FAILING_AFTER,
    HELD_AT_MOST,
    MAX_PROBE_SECONDS,
    NOT_THEIRS,
    Health,
    Tally,
    judge,
    may_change,
    probe_delay,
    reason,
)
from app.endpoints.models import EndpointStatus
from app.endpoints.policy import Policy

MOMENT = datetime(2026, 5, 1, 12, tzinfo=UTC)
EARLIER = MOMENT - timedelta(hours=3)
FIVE_DAYS = timedelta(days=5)
ACTIVE, PAUSED = EndpointStatus.ACTIVE, EndpointStatus.PAUSED
FAILING, DISABLED = EndpointStatus.FAILING, EndpointStatus.DISABLED
RETRY, HOLD = Policy(), Policy(when_failing="hold")


def ago(**span: float) -> datetime:
    return MOMENT - timedelta(**span)


def ahead(**span: float) -> datetime:
    return MOMENT + timedelta(**span)


def tally(failures: int = 0, *, probed: bool = False) -> Tally:
    made = Tally(MOMENT)
    for _ in range(failures):
        made.fail(MOMENT, "http_status", 503)
    made.probed = probed
    return made


def judged(
    health: Health,
    status: EndpointStatus,
    policy: Policy,
    counted: Tally,
    disable_after: timedelta | None = FIVE_DAYS,
) -> tuple[Health, EndpointStatus]:
    return judge(health, status, policy=policy, tally=counted, moment=MOMENT, disable_after=disable_after)


# --- counting


def outcomes(*codes: str | None) -> Tally:
    counted = Tally(MOMENT)
    for seconds, code in enumerate(codes):
        moment = ahead(seconds=seconds)
        if code is None:
            counted.succeed(moment)
        else:
            counted.fail(moment, code, 500 if code == "http_status" else None)
    return counted


@pytest.mark.parametrize(
    ("codes", "failures", "last_success"),
    [
        (["http_status"], 1, None),
        (["http_status", "timeout", "dns_failed"], 3, None),
        (["http_status", None], 0, 1),
        ([None, "http_status", "http_status"], 2, 0),
        (["timeout", None, "timeout", None, "timeout"], 1, 3),
        (["proxy_failed", "template_failed"], 0, None),
        (["http_status", "proxy_failed", "http_status"], 2, None),
    ],
)
def test_failures_are_counted_from_the_last_success_on_and_ours_never(codes, failures, last_success):
    counted = outcomes(*codes)
    assert counted.failures == failures
    assert counted.last_success_at == (None if last_success is None else ahead(seconds=last_success))
    assert counted.last_attempt_at == ahead(seconds=len(codes) - 1)


def test_what_says_nothing_of_an_endpoint_is_a_proxy_of_ours_and_a_body_that_there_is_not():
    assert {"proxy_failed", "template_failed"} == NOT_THEIRS


# --- failing and recovered


@pytest.mark.parametrize(
    ("before", "failures_in_row", "after"),
    [
        (ACTIVE, FAILING_AFTER - 1, ACTIVE),
        (ACTIVE, FAILING_AFTER, FAILING),
        (ACTIVE, FAILING_AFTER + 30, FAILING),
        (FAILING, 0, ACTIVE),
        (FAILING, 3, ACTIVE),  # failures since the success that was in the same batch
        (PAUSED, FAILING_AFTER, PAUSED),
        (PAUSED, 0, PAUSED),
        (DISABLED, FAILING_AFTER, DISABLED),
        (DISABLED, 0, DISABLED),
    ],
)
@pytest.mark.parametrize("policy", [RETRY, HOLD])
def test_ten_failures_in_a_row_are_failing_until_the_next_success(before, failures_in_row, after, policy):
    since = None if before is ACTIVE else EARLIER
    health, status = judged(Health(failures_in_row, since), before, policy, tally(1))
    assert status is after
    assert health.failing_since == ((since or MOMENT) if failures_in_row >= FAILING_AFTER else None)


def test_nobody_begins_to_fail_by_a_fault_of_ours():
    """Ten failures were there before somebody resumed it."""
    assert judged(Health(12), ACTIVE, RETRY, tally(0)) == (Health(12), ACTIVE)


def test_failing_begins_when_it_is_found_and_stays_since_then():
    health, _ = judged(Health(10), ACTIVE, RETRY, tally(1))
    assert health.failing_since == MOMENT
    health, _ = judged(Health(11, EARLIER), FAILING, RETRY, tally(1))
    assert health.failing_since == EARLIER


# --- holds


@pytest.mark.parametrize(
    ("failed_probes", "seconds"),
    [(0, 10), (1, 20), (2, 40), (3, 80), (4, 160), (5, 320), (6, 600), (7, 600), (10_000, 600)],
)
def test_probes_come_after_10_seconds_then_doubling_to_10_minutes(failed_probes, seconds):
    assert probe_delay(failed_probes) == timedelta(seconds=seconds)


@pytest.mark.parametrize(
    ("health", "counted", "probe_at", "failed_probes"),
    [
        # It begins to fail.
        (Health(10), tally(1), ahead(seconds=10), 0),
        # Somebody resumed it, and it fails again: from the beginning.
        (Health(40, None, ago(seconds=1), 0), tally(1, probed=True), ahead(seconds=10), 0),
        # A probe fails.
        (Health(11, EARLIER, ago(seconds=1), 0), tally(1, probed=True), ahead(seconds=20), 1),
        (Health(15, EARLIER, ago(seconds=1), 4), tally(1, probed=True), ahead(seconds=320), 5),
        # It fails by a fault of ours: again after the same time.
        (Health(15, EARLIER, ago(seconds=1), 4), tally(0, probed=True), ahead(seconds=160), 4),
        # What was under way when the hold began, or was asked for by somebody, moves no probe.
        (Health(20, EARLIER, ahead(seconds=3), 2), tally(9), ahead(seconds=3), 2),
        # One that was resumed has its try still before it when it was our fault.
        (Health(40, None, ago(seconds=1), 0), tally(0, probed=True), ahead(seconds=10), 0),
    ],
)
def test_a_failing_endpoint_is_held_and_probed(health, counted, probe_at, failed_probes):
    after, status = judged(health, FAILING if health.failing_since else ACTIVE, HOLD, counted)
    assert (after.probe_at, after.failed_probes) == (probe_at, failed_probes)
    assert status is (FAILING if health.failing_since or counted.failures else ACTIVE)


def test_the_first_success_releases_it():
    before = Health(0, EARLIER, ago(seconds=1), 5)
    assert judged(before, FAILING, HOLD, outcomes(None)) == (Health(), ACTIVE)
    # Whoever resumes an endpoint makes it active; its hold ends with the success.
    assert judged(Health(0, None, EARLIER), ACTIVE, HOLD, outcomes(None)) == (Health(), ACTIVE)


def test_a_success_with_ten_failures_behind_it_is_failing_anew():
    counted = outcomes(None, *["timeout"] * 10)
    assert judged(Health(10, ago(days=9)), FAILING, RETRY, counted) == (Health(10, MOMENT), FAILING)
    held = Health(10, ago(days=9), ago(seconds=1), 7)
    assert judged(held, FAILING, HOLD, counted) == (Health(10, MOMENT, ahead(seconds=10), 0), FAILING)


def test_by_default_nothing_is_held_however_long_it_fails():
    for failures in (10, 11, 5000):
        health, _ = judged(Health(failures, EARLIER), FAILING, RETRY, tally(1), None)
        assert (health.probe_at, health.failed_probes) == (None, 0)


def test_whoever_says_retry_again_ends_the_hold():
    health, status = judged(Health(20, EARLIER, ahead(seconds=5), 3), FAILING, RETRY, tally(1))
    assert (health.probe_at, health.failed_probes, status) == (None, 0, FAILING)


def test_a_hold_ends_within_three_days_though_a_queue_is_looked_at_with_each_probe_only():
    assert timedelta(seconds=MAX_PROBE_SECONDS) + HELD_AT_MOST == timedelta(days=3)


# --- disabled


@pytest.mark.parametrize(
    ("days", "disable_after", "before", "after"),
    [
        (4.99, FIVE_DAYS, FAILING, FAILING),
        (5, FIVE_DAYS, FAILING, DISABLED),
        (50, FIVE_DAYS, FAILING, DISABLED),
        (50, None, FAILING, FAILING),
        (1, timedelta(days=1), FAILING, DISABLED),
        (5, FIVE_DAYS, PAUSED, PAUSED),
        (5, FIVE_DAYS, DISABLED, DISABLED),
    ],
)
@pytest.mark.parametrize("policy", [RETRY, HOLD])
def test_one_that_has_been_failing_for_days_is_disabled(days, disable_after, before, after, policy):
    health = Health(300, ago(days=days))
    assert judged(health, before, policy, tally(1), disable_after)[1] is after


def test_a_success_after_days_recovers_it():
    assert judged(Health(0, ago(days=9)), FAILING, RETRY, tally())[1] is ACTIVE


def test_ten_failures_over_many_days_are_failing_first():
    assert judged(Health(10), ACTIVE, RETRY, tally(1))[1] is FAILING


# --- what is asked for nothing


@pytest.mark.parametrize(
    ("health", "codes", "asked"),
    [
        (Health(), [None], False),
        (Health(9), ["timeout"] * 9, False),
        (Health(10), ["timeout"], True),
        (Health(10), ["proxy_failed"], False),
        (Health(10, EARLIER), ["timeout"], False),
        (Health(5000, EARLIER), ["timeout"], False),
        (Health(0, EARLIER), [None], True),
        (Health(10, EARLIER), [None, *["timeout"] * 10], True),
        (Health(5000, ago(days=5)), ["timeout"], True),
        (Health(10, EARLIER, MOMENT), ["timeout"], True),
        (Health(0, None, MOMENT), [None], True),
    ],
)
def test_the_healthy_and_those_that_fail_as_before_are_not_judged(health, codes, asked):
    assert may_change(health, outcomes(*codes), MOMENT, FIVE_DAYS) is asked


def test_with_the_setting_off_days_of_failing_change_nothing():
    assert not may_change(Health(5000, ago(days=500)), tally(1), MOMENT, None)


_moments = st.integers(-10 * 86_400, 10 * 86_400).map(lambda seconds: ahead(seconds=seconds))


@given(
    earlier=st.integers(0, 30),
    codes=st.lists(st.sampled_from([None, "timeout", "proxy_failed"]), min_size=1, max_size=30),
    failing_since=st.none() | _moments,
    days=st.none() | st.integers(1, 9),
)
def test_what_is_not_judged_would_have_stayed_as_it_is(earlier, codes, failing_since, days):
    disable_after = None if days is None else timedelta(days=days)
    counted = outcomes(*codes)
    failures = counted.failures
    if counted.last_success_at is None:
        failures += earlier if failing_since is None else max(earlier, FAILING_AFTER)
    health = Health(failures, failing_since)
    status = ACTIVE if failing_since is None else FAILING
    if not may_change(health, counted, MOMENT, disable_after):
        assert judged(health, status, RETRY, counted, disable_after) == (health, status)


# --- in words


def test_a_reason_is_told_in_a_sentence():
    counted = outcomes("timeout", "http_status")
    health = Health(12, EARLIER)
    assert reason(health, FAILING, counted) == "12 attempts in a row have failed, the last with status 500."
    assert reason(health, FAILING, outcomes("timeout")) == (
        "12 attempts in a row have failed, the last with timeout."
    )
    assert reason(health, DISABLED, counted) == (
        "No attempt has succeeded since 2026-05-01T09:00:00.000Z at the latest. "
        "Its deliveries wait until it is resumed."
    )
    assert reason(Health(), ACTIVE, outcomes(None)) is None
