"""What an endpoint's own policy allows is what workers do, and a change is seen by those that run within a second."""

import time

import pytest

from app.endpoints.queues import LEASE_SECONDS
from tests import receivers
from tests.flows.steps import (
    change_endpoint,
    counting_receiver,
    deliveries_of,
    log_of,
    make_endpoint,
    pass_time,
    publish,
    publish_many,
    wait_until,
    workers,
)

SEEN_WITHIN = 1.0  # seconds after a change


def test_a_running_worker_sees_more_and_less_concurrency(api, drain, resources):
    with counting_receiver(delay=0.1) as (receiver, load), workers(resources):
        made = make_endpoint(api, receiver, policy={"max_in_flight": 1})
        publish_many(api, 400)
        wait_until(lambda: len(load.arrivals) >= 3)
        assert load.most["/hook"] == 1
        change_endpoint(api, made, policy={"max_in_flight": 8})
        wait_until(lambda: load.now["/hook"] == 8, SEEN_WITHIN)
        change_endpoint(api, made, policy={"max_in_flight": 2})
        time.sleep(SEEN_WITHIN)
        load.most.clear()
        sent = len(load.arrivals)
        time.sleep(0.5)
        assert len(load.arrivals) > sent
        assert load.most["/hook"] == 2


def test_a_running_worker_sees_a_rate_limit_that_is_set_and_lifted(api, drain, resources):
    with counting_receiver(delay=0.02) as (receiver, load), workers(resources):
        made = make_endpoint(api, receiver, policy={"max_in_flight": 2})
        publish_many(api, 500)
        wait_until(lambda: len(load.arrivals) >= 20)
        change_endpoint(api, made, policy={"rate_limit": {"count": 1, "seconds": 3600}})
        time.sleep(SEEN_WITHIN)
        sent = len(load.arrivals)
        assert sent < 200
        time.sleep(0.5)
        assert len(load.arrivals) == sent
        change_endpoint(api, made, policy={"rate_limit": None})
        wait_until(lambda: len(load.arrivals) > sent, SEEN_WITHIN)


def test_a_running_worker_sees_another_timeout(api, drain, resources):
    with receivers.hangs() as receiver, workers(resources):
        made = make_endpoint(
            api, receiver, policy={"max_in_flight": 1, "timeout_seconds": 3, "retry_schedule": []}
        )
        publish_many(api, 3)
        receiver.wait_for_requests(1)
        change_endpoint(api, made, policy={"timeout_seconds": 1})
        wait_until(lambda: len(log_of(api, made)) == 3, 8)
    # The one that was under way keeps its own.
    assert [round(attempt["duration_ms"] / 1000) for attempt in reversed(log_of(api, made))] == [3, 1, 1]


def test_a_running_worker_sees_another_schedule(api, drain, resources):
    with counting_receiver(delay=0.1, status=500) as (receiver, load), workers(resources):
        made = make_endpoint(api, receiver, policy={"max_in_flight": 1, "retry_schedule": [3600]})
        publish_many(api, 25)
        wait_until(lambda: len(load.arrivals) >= 2)
        change_endpoint(api, made, policy={"retry_schedule": []})
        wait_until(lambda: {row["attempt_count"] for row in deliveries_of(api, made)} == {1}, 15)
        statuses = [
            row["status"] for row in sorted(deliveries_of(api, made), key=lambda row: row["event_id"])
        ]
    waiting = statuses.count("pending")
    assert statuses == ["pending"] * waiting + ["failed"] * (25 - waiting)
    assert 1 <= waiting <= 2 + SEEN_WITHIN / 0.1


@pytest.mark.parametrize("schedule", [[], [0], [5, 5, 5], [60] * 16])
def test_each_endpoint_has_a_schedule_of_its_own(api, drain, resources, schedule):
    with receivers.ok(500) as receiver:
        own = make_endpoint(api, receiver, "/own", policy={"retry_schedule": schedule})
        other = make_endpoint(api, receiver, "/other")
        publish(api)
        drain()
        for number, delay in enumerate(schedule, start=1):
            ((status, attempts),) = [(row["status"], row["attempt_count"]) for row in deliveries_of(api, own)]
            if delay:
                assert (status, attempts) == ("pending", number)
            pass_time(resources, delay * 1.1 + 0.1)
            drain()
        ((status, attempts),) = [(row["status"], row["attempt_count"]) for row in deliveries_of(api, own)]
        assert (status, attempts) == ("failed", 1 + len(schedule))
        assert deliveries_of(api, other)[0]["status"] == "pending"


def test_no_timeout_that_a_policy_may_have_outlasts_a_lease():
    from app.endpoints.policy import MAX_TIMEOUT_SECONDS

    assert MAX_TIMEOUT_SECONDS + 10 < LEASE_SECONDS
