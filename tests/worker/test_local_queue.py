"""What a leased queue lets out and when: its cap, its rate limit, and first attempts before retries."""

import time
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from app.core.clock import now
from app.core.signing import signing_key
from app.deliveries.work import DueDelivery
from app.endpoints.policy import Policy
from app.endpoints.service import Target
from worker import local_queue
from worker.local_queue import LocalQueue


class Clock:
    """A monotonic clock that tests move."""

    def __init__(self) -> None:
        self.seconds = 1000.0
        self.ticks = 0.0  # by which it moves when it is looked at

    def monotonic(self) -> float:
        self.seconds += self.ticks
        return self.seconds


@pytest.fixture
def clock(monkeypatch) -> Clock:
    """Give the clock of local_queue.py."""
    made = Clock()
    monkeypatch.setattr(local_queue, "time", made)
    return made


def target(*, active: bool = True, **policy: Any) -> Target:
    return Target(
        endpoint_id="ep_1",
        workspace_id="ws_1",
        active=active,
        url="https://hooks.example.com/",
        headers=(),
        signing_keys=(signing_key("a secret of 16 characters"),),
        policy=Policy(**policy),
        version=datetime(2026, 1, 1, tzinfo=UTC),
    )


def queue(rate_limited_until: datetime | None = None, *, active: bool = True, **policy: Any) -> LocalQueue:
    made = LocalQueue("ep_1", rate_limited_until)
    made.configure(target(active=active, **policy), 0)
    return made


def delivery(attempt_count: int = 0) -> DueDelivery:
    return DueDelivery(
        "dlv_1", "ep_1", "ws_1", "evt_1", "ping", attempt_count, "auto", b"{}", attempt_count > 0, now()
    )


def fill(filled: LocalQueue, first: int = 0, retries: int = 0) -> None:
    for attempt_count, count in ((0, first), (1, retries)):
        for number in range(count):
            kind = "retry" if attempt_count else "first"
            delivery_id = f"{kind}{number}"
            filled.put(
                DueDelivery(
                    delivery_id,
                    "ep_1",
                    "ws_1",
                    "evt_1",
                    "ping",
                    attempt_count,
                    "auto",
                    b"{}",
                    attempt_count > 0,
                    now(),
                )
            )


def wanted(asked: LocalQueue, room: int) -> tuple[int, int]:
    """Give how many first attempts and retries it would claim."""
    quota = asked.wanted(room)
    return (quota.first_attempts, quota.retries) if quota else (0, 0)


def take_all(filled: LocalQueue) -> list[str]:
    taken = []
    while (delivery := filled.take()) is not None:
        taken.append(delivery.id)
    return taken


# --- the cap


@pytest.mark.parametrize("cap", [1, 3, 100])
def test_no_more_than_the_cap_are_in_flight(cap):
    made = queue(max_in_flight=cap)
    fill(made, first=cap + 5)
    assert len(take_all(made)) == cap
    assert (made.in_flight, made.unrecorded) == (cap, cap)
    made.finished(delivery())
    assert len(take_all(made)) == 1
    assert (made.in_flight, made.unrecorded) == (cap, cap + 1)


def test_a_lower_cap_holds_from_the_next_one_on():
    made = queue(max_in_flight=4)
    fill(made, first=10)
    assert len(take_all(made)) == 4
    made.configure(target(max_in_flight=2), 1)
    made.finished(delivery())
    made.finished(delivery())
    assert made.take() is None
    made.finished(delivery())
    assert made.take() is not None


# --- who may send


def test_without_configuration_nothing_goes_out():
    made = LocalQueue("ep_1", None)
    fill(made, first=1)
    assert made.take() is None
    assert wanted(made, 100) == (0, 0)


def test_a_paused_a_deleted_and_a_lost_queue_send_and_want_nothing():
    paused = queue(active=False)
    deleted = queue()
    deleted.configure(None, 1)
    lost = queue()
    lost.lose()
    lost.configure(target(), 1)  # a lost one stays lost whatever its endpoint's state
    for made in (paused, deleted, lost):
        fill(made, first=1)
        assert made.take() is None
        assert wanted(made, 100) == (0, 0)
        assert [delivery.id for delivery in made.empty()] == ["first0"]
        assert not made.has_buffered


# --- order


def test_first_attempts_go_first_in_their_order_and_every_third_pick_is_a_retry():
    made = queue(max_in_flight=100)
    fill(made, first=5, retries=4)
    assert take_all(made) == [
        *("first0", "first1", "retry0", "first2", "first3", "retry1", "first4"),
        *("retry2", "retry3"),
    ]


def test_alone_each_kind_has_all_slots():
    for kind in ({"first": 4}, {"retries": 4}):
        made = queue(max_in_flight=100)
        fill(made, **kind)
        assert len(take_all(made)) == 4


# --- how much to claim


@pytest.mark.usefixtures("clock")
def test_twice_the_cap_is_claimed_ahead_of_each_kind():
    assert wanted(queue(max_in_flight=10), 1000) == (20, 20)


@pytest.mark.usefixtures("clock")
def test_no_more_is_claimed_than_there_is_room_for():
    assert wanted(queue(max_in_flight=10), 25) == (20, 5)
    assert wanted(queue(max_in_flight=10), 5) == (5, 0)


@pytest.mark.usefixtures("clock")
def test_more_is_claimed_when_half_is_used_up():
    made = queue(max_in_flight=10)
    fill(made, first=11)
    assert wanted(made, 1000) == (0, 20)
    made.take()
    assert wanted(made, 1000) == (10, 20)


def test_a_fast_endpoint_has_a_third_of_a_second_claimed_ahead(clock):
    made = queue(max_in_flight=10)
    for _ in range(1000):
        made.in_flight += 1
        made.finished(delivery())
    clock.seconds += 1
    assert wanted(made, 10_000)[0] == 300


@pytest.mark.usefixtures("clock")
def test_a_claim_goes_on_where_one_that_got_all_it_asked_for_stopped():
    made = queue(max_in_flight=1)
    quota = made.wanted(1000)
    assert quota is not None
    assert (quota.first_attempts, quota.retries) == (2, 2)
    assert (quota.first_after, quota.retries_after) == (None, None)
    early, late = now(), now() + timedelta(seconds=1)
    due = [
        DueDelivery(f"dlv_{number}", "ep_1", "ws_1", event_id, "ping", 0, "auto", b"{}", False, moment)
        for number, (moment, event_id) in enumerate([(early, "evt_2"), (early, "evt_1"), (late, "evt_0")])
    ]
    made.claimed(quota, due[:2])
    quota = made.wanted(1000)
    assert quota is not None
    assert (quota.first_after, quota.retries_after) == ((early, "evt_2"), None)
    made.claimed(quota, [due[2]])  # fewer than asked: from the start again
    quota = made.wanted(1000)
    assert quota is not None
    assert quota.first_after is None


# --- the rate limit


def test_without_a_limit_nothing_is_limited(clock):
    made = queue()
    assert made.limited_for(clock.seconds) == 0
    assert made.rate_limited_until() is None


@pytest.mark.parametrize(("count", "seconds"), [(1, 1), (5, 1), (10, 60), (1000, 86_400)])
def test_the_whole_allowance_may_go_at_once_and_then_one_per_interval(clock, count, seconds):
    made = queue(max_in_flight=10**6, rate_limit={"count": count, "seconds": seconds})
    fill(made, first=count + 3)
    clock.ticks = 1e-9  # so that rounding decides nothing
    assert len(take_all(made)) == count
    interval = seconds / count
    for number in range(1, 4):
        clock.seconds = 1000 + (number - 0.01) * interval
        assert 0 < made.limited_for(clock.seconds) < 0.1 * interval
        assert made.take() is None
        clock.seconds = 1000 + (number + 0.02 * number) * interval
        assert made.take() is not None
        assert made.take() is None


def test_a_quiet_time_saves_up_one_allowance_and_no_more(clock):
    made = queue(max_in_flight=100, rate_limit={"count": 5, "seconds": 10})
    fill(made, first=5)
    assert len(take_all(made)) == 5
    clock.seconds += 3600
    fill(made, first=50)
    assert len(take_all(made)) == 5


def test_over_a_long_time_the_limit_is_the_rate(clock):
    made = queue(max_in_flight=10**6, rate_limit={"count": 7, "seconds": 3})
    fill(made, first=2000)
    sent = 0
    for _ in range(3000):
        sent += len(take_all(made))
        clock.seconds += 0.1
    assert 700 <= sent <= 700 + 7


def test_what_is_limited_costs_no_slot_and_no_delivery(clock):
    made = queue(max_in_flight=10, rate_limit={"count": 1, "seconds": 60})
    fill(made, first=2)
    made.take()
    assert made.take() is None
    assert (made.in_flight, made.unrecorded) == (1, 1)
    assert made.has_buffered


def test_the_next_pump_takes_the_limit_over():
    limit = {"count": 2, "seconds": 60}
    one = queue(max_in_flight=10, rate_limit=limit)
    fill(one, first=2)
    assert len(take_all(one)) == 2
    until = one.rate_limited_until()
    assert until is not None
    assert until - datetime.now(UTC) == pytest.approx(timedelta(seconds=60), abs=timedelta(seconds=1))

    other = queue(until, max_in_flight=10, rate_limit=limit)
    fill(other, first=2)
    assert other.take() is None
    assert other.limited_for(time.monotonic()) == pytest.approx(30, abs=1)


def test_a_limit_that_was_lifted_no_longer_holds():
    made = queue(datetime.now(UTC) + timedelta(hours=5), max_in_flight=10)
    fill(made, first=2)
    assert len(take_all(made)) == 2


# --- slots that are kept


def test_retries_leave_a_quarter_of_the_slots_to_first_attempts():
    made = queue(max_in_flight=8)
    fill(made, retries=20)
    assert len(take_all(made)) == 6
    fill(made, first=5)
    assert take_all(made) == ["first0", "first1"]
    made.finished(delivery(attempt_count=1))
    assert made.take() is not None


def test_with_one_slot_a_retry_gets_it():
    made = queue(max_in_flight=1)
    fill(made, retries=2)
    assert len(take_all(made)) == 1


def test_the_last_connections_are_for_queues_that_have_few_in_flight():
    made = queue(max_in_flight=100)
    fill(made, first=20)
    assert [made.take(scarce=True) is not None for _ in range(6)] == [True] * 4 + [False] * 2
    assert made.take(scarce=False) is not None


# --- holds


def on_hold(**policy: Any) -> LocalQueue:
    made = LocalQueue("ep_1", None, on_hold=True)
    made.configure(target(**{"when_failing": "hold", "max_in_flight": 5, **policy}), 0)
    return made


def test_a_held_queue_asks_again_only_when_what_was_sent_is_recorded():
    made = on_hold()
    quota = made.wanted(1000)
    assert quota is not None
    assert (quota.first_attempts, quota.retries, quota.on_hold) == (5, 0, True)
    fill(made, first=1)
    assert made.wanted(1000) is None
    assert made.take() is not None
    assert made.wanted(1000) is None
    made.finished(delivery())
    assert made.wanted(1000) is None
    made.unrecorded -= 1
    assert made.wanted(1000) is not None


def test_what_goes_out_of_a_held_queue_is_a_probe_unless_somebody_asked_for_it():
    made = on_hold()
    asked_for = delivery()
    asked_for.id, asked_for.trigger = "asked_for", "manual"
    made.put(asked_for)
    fill(made, first=1)
    assert made.probes == {"first0"}
    free = queue()
    fill(free, first=1)
    assert free.probes == set()


def test_a_released_queue_is_claimed_from_its_start():
    made = on_hold(max_in_flight=1)
    quota = made.wanted(1000)
    assert quota is not None
    made.claimed(quota, [delivery()])  # all that was asked for, and yet older ones may wait
    made.on_hold = False
    quota = made.wanted(1000)
    assert quota is not None
    assert (quota.first_after, quota.retries_after, quota.on_hold) == (None, None, False)


def test_a_policy_that_does_not_hold_frees_a_queue():
    made = on_hold()
    made.configure(target(when_failing="retry"), 1)
    quota = made.wanted(1000)
    assert quota is not None
    assert not quota.on_hold


def test_what_is_given_up_is_claimed_again():
    made = queue(max_in_flight=1)
    quota = made.wanted(1000)
    assert quota is not None
    due = [delivery(), delivery()]
    made.claimed(quota, due)
    made.empty()
    quota = made.wanted(1000)
    assert quota is not None
    assert quota.first_after is None
