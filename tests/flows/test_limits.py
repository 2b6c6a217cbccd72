"""No endpoint gets more at once, or more often, than it allows, and none delays another."""

import time
from collections import Counter

import pytest

from app.deliveries import engine
from config.wire import TaskName
from tests import receivers
from tests.flows.steps import (
    counting_receiver,
    deliveries_of,
    log_of,
    make_endpoint,
    pass_time,
    publish,
    publish_many,
    queue_of,
    wait_until,
    workers,
)
from worker import pump as pumping


def test_an_endpoint_never_has_more_in_flight_than_it_allows(api, drain):
    caps = {"/one": 1, "/three": 3, "/twenty": 20}
    with counting_receiver(delay=0.03) as (receiver, load):
        for path, cap in caps.items():
            make_endpoint(api, receiver, path, policy={"max_in_flight": cap})
        publish_many(api, 60)
        assert drain() == 180
    assert load.most == caps  # reached, too: a cap is no brake


@pytest.mark.parametrize("pumps", [1, 2])
def test_the_cap_holds_over_all_pumps_while_queues_change_hands(api, drain, resources, monkeypatch, pumps):
    """On SQLite too, where two pumps are more than there ever are."""
    monkeypatch.setattr(pumping, "QUEUE_TURN_SECONDS", 0.15)
    monkeypatch.setattr(pumping, "LEASE_QUEUES", 2)
    caps = {f"/{number}": 1 + number for number in range(5)}
    with counting_receiver(delay=0.02) as (receiver, load), workers(resources, pumps=pumps):
        made = [
            make_endpoint(api, receiver, path, policy={"max_in_flight": cap}) for path, cap in caps.items()
        ]
        for _ in range(4):
            publish_many(api, 20)
            time.sleep(0.2)
        wait_until(lambda: len(load.arrivals) >= 400, 30)
        wait_until(
            lambda: {row["status"] for each in made for row in deliveries_of(api, each)} == {"succeeded"}
        )
    for path, cap in caps.items():
        assert load.most[path] <= cap
    arrivals = Counter((path, event) for _, path, event in load.arrivals)
    assert len(arrivals) == 400
    assert set(arrivals.values()) == {1}
    assert {len(log_of(api, each)) for each in made} == {80}


def test_a_rate_limit_lets_its_allowance_go_at_once_and_then_keeps_the_rate(api, drain, resources):
    with counting_receiver() as (receiver, load), workers(resources):
        limited = make_endpoint(api, receiver, "/limited", policy={"rate_limit": {"count": 5, "seconds": 1}})
        make_endpoint(api, receiver, "/free")
        publish_many(api, 15)
        wait_until(lambda: len(load.times("/limited")) == 15, 10)
        wait_until(lambda: {row["status"] for row in deliveries_of(api, limited)} == {"succeeded"})

    times = load.times("/limited")
    for number, moment in enumerate(times):
        # Up to the moment of each request no more than the allowance and the rate had gone out; the first may have
        # been 0.3 s longer on its way than the others.
        assert number + 1 <= 5 + (moment - times[0] + 0.3) * 5
    assert times[4] - times[0] < 1
    assert 1.9 <= times[-1] - times[0] < 4
    assert load.times("/free")[-1] - times[0] < 1
    assert {attempt["number"] for attempt in log_of(api, limited)} == {1}


def test_what_is_over_a_long_limit_waits_and_no_pump_with_it(api, drain, resources, doorbell):
    with receivers.ok() as receiver:
        made = make_endpoint(api, receiver, policy={"rate_limit": {"count": 2, "seconds": 600}})
        publish_many(api, 5)
        started = time.monotonic()
        assert drain() == 2
        assert time.monotonic() - started < 3
        queue = queue_of(resources, made)
        assert queue.lease_id is None
        countdowns = [wait for task, wait in doorbell.rings if task == TaskName.DELIVERIES_PUMP and wait > 0]
        assert countdowns == [pytest.approx(300, abs=5)]
        assert drain() == 0
        with resources.transaction(write=False) as uow:
            assert not engine.any_due(uow)

        # What has waited is no attempt, and what is published meanwhile lifts no limit.
        assert {row["attempt_count"] for row in deliveries_of(api, made)} == {0, 1}
        publish(api)
        assert drain() == 0
        pass_time(resources, 301)
        assert drain() == 1
        pass_time(resources, 601)
        assert drain() == 2
        pass_time(resources, 301)
        assert drain() == 1
        assert len(receiver.requests) == 6


def test_an_endpoint_that_hangs_does_not_delay_the_others(api, drain, resources):
    fast = ["/a", "/b", "/c"]
    published: dict[str, float] = {}
    with (
        receivers.hangs() as hanging,
        counting_receiver() as (receiver, load),
        workers(resources),
    ):
        stuck = make_endpoint(api, hanging, policy={"timeout_seconds": 3, "max_in_flight": 10})
        for path in fast:
            make_endpoint(api, receiver, path)
        for _ in range(75):
            published[publish(api)["id"]] = time.monotonic()
            time.sleep(0.04)
        wait_until(lambda: len(load.arrivals) == 75 * len(fast), 15)
        delays = sorted(moment - published[event] for moment, _, event in load.arrivals)
        wait_until(lambda: log_of(api, stuck))
    # Without isolation they would wait for deadlines: 3 s and more.
    assert delays[len(delays) // 2] < 0.5
    assert delays[-1] < 1.5
    assert {attempt["error"]["code"] for attempt in log_of(api, stuck)} == {"timeout"}


def test_first_attempts_are_not_starved_by_a_storm_of_retries(api, drain, resources):
    with receivers.ok(500) as receiver:
        made = make_endpoint(api, receiver, policy={"max_in_flight": 2})
        stormy = set(publish_many(api, 300))
        assert drain() == 300
        pass_time(resources, 60)
        receiver.requests.clear()
        fresh = set(publish_many(api, 30))
        assert drain() == 330
        order = [request.header("webhook-id") for request in receiver.requests]
    assert set(order) == stormy | fresh
    last = max(position for position, event in enumerate(order) if event in fresh)
    # Two of three picks are first attempts where both wait.
    assert last <= 30 * 3 / 2 + 10
    assert len(log_of(api, made)) == 630


def test_retries_are_not_starved_by_a_stream_of_first_attempts(api, drain, resources):
    with receivers.ok() as receiver:
        receiver.script("/hook", [500] * 20)
        make_endpoint(api, receiver, policy={"max_in_flight": 2})
        failed = set(publish_many(api, 20))
        assert drain() == 20
        pass_time(resources, 60)
        receiver.requests.clear()
        publish_many(api, 300)
        assert drain() == 320
        order = [request.header("webhook-id") for request in receiver.requests]
    last = max(position for position, event in enumerate(order) if event in failed)
    assert last <= 20 * 3 + 10


def test_a_storm_at_one_endpoint_does_not_delay_another(api, drain, resources):
    with receivers.ok(500, delay=0.02) as failing, receivers.ok() as receiver:
        make_endpoint(api, failing, policy={"max_in_flight": 1})
        publish_many(api, 150)
        drain()
        make_endpoint(api, receiver)
        pass_time(resources, 60)
        failing.requests.clear()
        publish_many(api, 10)
        with workers(resources):
            receiver.wait_for_requests(10)
            assert len(failing.requests) < 100
