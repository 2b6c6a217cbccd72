"""What people do to an endpoint while deliveries are on their way: pause, resume, delete, change."""

import threading
import time
from typing import Any

import pytest

from app.deliveries import engine, engine_repository
from tests import receivers
from tests.conftest import Api
from tests.flows.steps import (
    accepted,
    change_endpoint,
    counting_receiver,
    deliveries_of,
    log_of,
    make_endpoint,
    pass_time,
    publish,
    publish_many,
    queue_of,
    url_of,
    verify,
    wait_until,
    workers,
)
from tests.receivers import Answer
from worker.pump import Pump
from worker.runtime import new_sender

SEEN_WITHIN = 1.0  # seconds after a change, for a pump that is running
SECRET = "whsec_" + "QUJD" * 11
OTHER_SECRET = "a secret of the customer's own"


def pause(api: Api, made: dict[str, Any]) -> None:
    assert accepted(api.post(f"/v1/endpoints/{made['id']}/pause"))["status"] == "paused"


def resume(api: Api, made: dict[str, Any]) -> None:
    assert accepted(api.post(f"/v1/endpoints/{made['id']}/resume"))["status"] == "active"


def delete(api: Api, made: dict[str, Any]) -> None:
    assert api.call("DELETE", f"/v1/endpoints/{made['id']}").status_code == 204


@pytest.fixture
def sender(resources, drain):
    """Give a sender for pumps that a test runs itself; `drain` lets it reach the receivers."""
    made = new_sender(resources)
    yield made
    made.close()


# --- pause and resume


def test_a_paused_endpoint_waits_and_resuming_delivers_all(api, drain, resources, doorbell):
    with receivers.ok() as receiver:
        receiver.script("/hook", [500])
        made = make_endpoint(api, receiver)
        publish(api)
        assert drain() == 1  # failed: its retry will wait too
        pause(api, made)
        assert queue_of(resources, made).due_at is None
        publish_many(api, 20)
        assert drain() == 0
        pass_time(resources, 3600)
        assert drain() == 0
        assert len(receiver.requests) == 1
        assert {delivery["status"] for delivery in deliveries_of(api, made)} == {"pending"}
        assert queue_of(resources, made).due_at is None

        doorbell.rings.clear()
        resume(api, made)
        assert ("deliveries.pump", 0) in doorbell.rings
        assert drain() == 21
        assert len(receiver.requests) == 22
    assert {delivery["status"] for delivery in deliveries_of(api, made)} == {"succeeded"}


def test_pausing_stops_a_running_pump_within_a_second_and_nothing_is_lost(api, drain, resources):
    with counting_receiver(delay=0.05) as (receiver, load), workers(resources):
        made = make_endpoint(api, receiver, policy={"max_in_flight": 2})
        publish_many(api, 100)
        wait_until(lambda: len(load.times("/hook")) > 10)
        pause(api, made)
        time.sleep(SEEN_WITHIN)
        sent = len(load.times("/hook"))
        assert sent < 100
        time.sleep(0.5)
        assert len(load.times("/hook")) == sent
        wait_until(lambda: queue_of(resources, made).lease_id is None)
        resume(api, made)
        wait_until(lambda: len(load.times("/hook")) == 100)
        wait_until(lambda: {row["status"] for row in deliveries_of(api, made)} == {"succeeded"})
    assert len(log_of(api, made)) == 100


def test_resuming_while_the_pump_still_believes_in_the_pause_strands_nothing(api, resources, sender, drain):
    """The pump gives the queue back after the resume, knowing only of the pause."""
    with receivers.ok(delay=0.2) as receiver:
        made = make_endpoint(api, receiver, policy={"max_in_flight": 1})
        publish_many(api, 5)
        with resources.transaction() as uow:
            engine.fan_out(uow)
        pump = Pump(resources, sender)
        release = pump._release

        def resume_first(queues):
            if any(not queue.active for queue in queues):
                resume(api, made)
            release(queues)

        pump._release = resume_first  # type: ignore[method-assign]
        thread = threading.Thread(target=pump.run)
        thread.start()
        receiver.wait_for_requests(1)
        pause(api, made)
        thread.join(10)
        assert not thread.is_alive()
        drain()
        assert len(receiver.requests) == 5
    assert {delivery["status"] for delivery in deliveries_of(api, made)} == {"succeeded"}


def test_pausing_while_the_pump_gives_the_queue_back_keeps_it_at_rest(api, resources, sender, drain):
    with receivers.ok(500) as receiver:
        made = make_endpoint(api, receiver)
        publish(api)
        with resources.transaction() as uow:
            engine.fan_out(uow)
        pump = Pump(resources, sender)
        release = pump._release

        def pause_first(queues):
            if queues:
                pause(api, made)
            release(queues)

        pump._release = pause_first  # type: ignore[method-assign]
        assert pump.run() == 1
        pass_time(resources, 3600)
        assert drain() == 0
        resume(api, made)
        assert drain() == 1


# --- delete


def test_deleting_cancels_what_waits(api, drain, resources):
    with receivers.ok(500) as receiver:
        made = make_endpoint(api, receiver)
        other = make_endpoint(api, receiver, "/other")
        done = publish(api)
        drain()
        delete(api, made)
        pass_time(resources, 3600)
        assert drain() == 1  # the other's
        assert len(receiver.requests_to("/hook")) == 1

    assert api.get(f"/v1/endpoints/{made['id']}").status_code == 404
    (delivery,) = deliveries_of(api, made)
    assert (delivery["status"], delivery["next_attempt_at"]) == ("canceled", None)
    assert delivery["finished_at"] is not None
    # What was attempted stays in the log.
    (attempt,) = api.get(f"/v1/deliveries/{delivery['id']}").json["attempts"]
    assert attempt["request"]["headers"]["webhook-id"] == done["id"]
    assert deliveries_of(api, other)[0]["status"] == "pending"


def test_one_deleted_between_fan_out_and_pump_gets_nothing(api, drain, resources):
    with receivers.ok() as receiver:
        made = make_endpoint(api, receiver)
        publish(api)
        with resources.transaction() as uow:
            assert engine.fan_out(uow) == 1
        delete(api, made)
        assert drain() == 0
        assert receiver.connections == 0
    assert deliveries_of(api, made)[0]["status"] == "canceled"


def test_one_deleted_while_a_request_is_under_way_has_that_attempt_in_the_log(api, resources, sender):
    with receivers.ok() as receiver:
        receiver.script("/hook", [Answer(200, delay=1.0)])
        made = make_endpoint(api, receiver, policy={"max_in_flight": 1})
        publish_many(api, 3)
        with resources.transaction() as uow:
            engine.fan_out(uow)
        thread = threading.Thread(target=Pump(resources, sender).run)
        thread.start()
        receiver.wait_for_requests(1)
        delete(api, made)
        thread.join(10)
        assert not thread.is_alive()
        assert len(receiver.requests) == 1

    deliveries = deliveries_of(api, made)
    assert {delivery["status"] for delivery in deliveries} == {"canceled"}
    (attempt,) = [
        attempt
        for delivery in deliveries
        for attempt in api.get(f"/v1/deliveries/{delivery['id']}").json["attempts"]
    ]
    assert (attempt["status"], attempt["status_code"]) == ("success", 200)


def test_deleting_never_waits_in_a_circle_with_the_recorder(api, resources, sender, monkeypatch):
    """PostgreSQL ends a deadlock by failing one of the two: the customer would get a 500."""
    if resources.database.is_sqlite:
        pytest.skip("SQLite has one writer at a time")
    written = threading.Event()
    update_deliveries = engine_repository.update_deliveries

    def update_and_wait(*arguments):
        update_deliveries(*arguments)
        written.set()
        time.sleep(0.5)  # meanwhile the deletion takes what locks it can get

    monkeypatch.setattr(engine_repository, "update_deliveries", update_and_wait)
    with receivers.ok() as receiver:
        made = make_endpoint(api, receiver)
        publish_many(api, 5)
        with resources.transaction() as uow:
            engine.fan_out(uow)
        thread = threading.Thread(target=Pump(resources, sender).run)
        thread.start()
        assert written.wait(10)
        delete(api, made)
        thread.join(10)
        assert not thread.is_alive()
        assert len(receiver.requests) == 5
    logged = [api.get(f"/v1/deliveries/{row['id']}").json["attempts"] for row in deliveries_of(api, made)]
    assert [len(attempts) for attempts in logged] == [1] * 5


# --- change


def test_a_running_pump_sees_a_changed_url_secret_headers_and_policy_within_a_second(api, drain, resources):
    with receivers.ok(delay=0.05) as receiver, workers(resources):
        made = make_endpoint(api, receiver, "/old", signing_secret=SECRET, policy={"max_in_flight": 1})
        publish_many(api, 150)
        receiver.wait_for_requests(5)
        change_endpoint(
            api,
            made,
            url=url_of(receiver, "/new"),
            signing_secret=OTHER_SECRET,
            headers={"X-Tenant": "new"},
            policy={"max_in_flight": 50},
        )
        changed = time.monotonic()
        wait_until(lambda: receiver.requests_to("/new"), SEEN_WITHIN + 0.5)
        # One at a time would take 5 s more.
        wait_until(lambda: len(receiver.requests) == 150, 3)
        assert time.monotonic() - changed < 3

    old, new = receiver.requests_to("/old"), receiver.requests_to("/new")
    assert len(old) < 5 + 2 * SEEN_WITHIN / 0.05
    for request in old:
        verify(request, SECRET)
        assert request.header("X-Tenant") is None
    for request in new:
        verify(request, OTHER_SECRET)
        assert request.header("X-Tenant") == "new"


def test_a_retry_goes_to_the_url_and_with_the_secret_of_its_own_time(api, drain, resources):
    with receivers.ok(500) as receiver:
        made = make_endpoint(api, receiver, "/old", signing_secret=SECRET)
        publish(api)
        drain()
        change_endpoint(api, made, url=url_of(receiver, "/new"), signing_secret=OTHER_SECRET)
        pass_time(resources, 1900)
        assert drain() == 1
        verify(receiver.requests_to("/old")[0], SECRET)
        verify(receiver.requests_to("/new")[0], OTHER_SECRET)
    assert [attempt["request"]["url"] for attempt in log_of(api, made)] == [
        url_of(receiver, "/new"),
        url_of(receiver, "/old"),
    ]


def test_a_schedule_that_is_cut_short_ends_the_delivery_at_its_next_failure(api, drain, resources):
    with receivers.ok(500) as receiver:
        made = make_endpoint(api, receiver)
        publish(api)
        drain()
        change_endpoint(api, made, policy={"retry_schedule": [10]})
        pass_time(resources, 1900)
        assert drain() == 1
    (delivery,) = deliveries_of(api, made)
    assert (delivery["status"], delivery["attempt_count"]) == ("failed", 2)


def test_lifting_a_rate_limit_frees_what_it_held_up(api, drain, resources, doorbell):
    with receivers.ok() as receiver:
        made = make_endpoint(api, receiver, policy={"rate_limit": {"count": 1, "seconds": 86_400}})
        publish_many(api, 3)
        assert drain() == 1
        doorbell.rings.clear()
        change_endpoint(api, made, policy={"rate_limit": None})
        assert ("deliveries.pump", 0) in doorbell.rings
        assert drain() == 2
        assert len(receiver.requests) == 3
