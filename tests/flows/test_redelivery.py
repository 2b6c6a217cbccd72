"""Redelivery: somebody asks for one more attempt, or for an event again, and gets exactly that."""

import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import select, update
from werkzeug.test import TestResponse

from app.core.unit_of_work import Resources
from app.deliveries import engine
from app.deliveries.models import Delivery, PendingDelivery
from app.events.models import Event, FanOut
from config.wire import TaskName
from tests import receivers
from tests.api import expect
from tests.api.steps import at_once, twin
from tests.conftest import Api
from tests.flows.steps import (
    accepted,
    change_endpoint,
    deliveries_of,
    log_of,
    make_endpoint,
    pass_time,
    publish,
    publish_many,
    url_of,
    verify,
    wait_until,
    workers,
)
from tests.receivers import Answer
from worker.pump import Pump
from worker.runtime import new_sender

DAYS = 10 * 86_400


@pytest.fixture
def sender(resources, drain):
    """Give a sender for pumps that a test runs itself; `drain` lets it reach the receivers."""
    made = new_sender(resources)
    yield made
    made.close()


def ask_again(api: Api, delivery: dict[str, Any]) -> TestResponse:
    return api.post(f"/v1/deliveries/{delivery['id']}/retry")


def retry(api: Api, delivery: dict[str, Any]) -> Any:
    return expect.ok(ask_again(api, delivery), 202)


def replay(api: Api, event: dict[str, Any], **body: Any) -> list[dict[str, Any]]:
    answer = expect.ok(api.post(f"/v1/events/{event['id']}/replay", body), 202)
    assert set(answer) == {"data"}
    data: list[dict[str, Any]] = answer["data"]
    return data


def the_delivery(api: Api, made: dict[str, Any]) -> dict[str, Any]:
    (delivery,) = deliveries_of(api, made)
    return delivery


def attempts_of(api: Api, made: dict[str, Any]) -> list[tuple[int, str, str]]:
    return [(row["number"], row["trigger"], row["status"]) for row in reversed(log_of(api, made))]


def pending_rows(resources: Resources) -> int:
    with resources.transaction(write=False) as uow:
        return len(uow.session.scalars(select(PendingDelivery)).all())


def fan_out(resources: Resources) -> None:
    with resources.transaction() as uow:
        engine.fan_out(uow)


def in_thread(work: Callable[[], Any]) -> threading.Thread:
    thread = threading.Thread(target=work)
    thread.start()
    return thread


# --- one delivery


def test_a_retry_takes_the_place_of_the_waiting_automatic_one(api, drain, resources, doorbell):
    with receivers.ok(500) as receiver:
        made = make_endpoint(api, receiver)
        publish(api)
        drain()
        doorbell.rings.clear()
        shown = retry(api, the_delivery(api, made))
        assert (TaskName.DELIVERIES_PUMP, 0) in doorbell.rings
        assert shown == the_delivery(api, made)
        assert (shown["status"], shown["attempt_count"]) == ("pending", 1)
        assert datetime.fromisoformat(shown["next_attempt_at"]) <= datetime.now(UTC) + timedelta(seconds=1)
        assert pending_rows(resources) == 1

        assert drain() == 1
        pass_time(resources, 11)
        assert drain() == 0  # the automatic one of 10 s after the first: it has been made
        pass_time(resources, 33)
        assert drain() == 1
    assert attempts_of(api, made) == [(1, "auto", "failed"), (2, "manual", "failed"), (3, "auto", "failed")]


def test_a_success_cancels_what_waited(api, drain, resources):
    with receivers.ok() as receiver:
        receiver.script("/hook", [500])
        made = make_endpoint(api, receiver)
        publish(api)
        drain()
        retry(api, the_delivery(api, made))
        assert drain() == 1
        pass_time(resources, DAYS)
        assert drain() == 0
        assert len(receiver.requests) == 2
    assert attempts_of(api, made) == [(1, "auto", "failed"), (2, "manual", "success")]
    delivery = the_delivery(api, made)
    assert (delivery["status"], delivery["attempt_count"]) == ("succeeded", 2)
    assert pending_rows(resources) == 0


def test_a_permanently_failed_delivery_gets_exactly_one_attempt_per_request(api, drain, resources):
    with receivers.ok(500) as receiver:
        made = make_endpoint(api, receiver, policy={"retry_schedule": [10]})
        publish(api)
        drain()
        pass_time(resources, 12)
        drain()
        for number in (3, 4):
            failed = the_delivery(api, made)
            assert (failed["status"], failed["attempt_count"]) == ("failed", number - 1)
            shown = retry(api, failed)
            assert (shown["status"], shown["finished_at"], shown["id"]) == ("pending", None, failed["id"])
            assert drain() == 1
            pass_time(resources, DAYS)
            assert drain() == 0
        assert len(receiver.requests) == 4
    assert [number for number, _, _ in attempts_of(api, made)] == [1, 2, 3, 4]
    assert the_delivery(api, made)["finished_at"] is not None


def test_an_attempt_that_fails_is_followed_by_what_is_left_of_the_schedule(api, drain, resources):
    with receivers.ok(500) as receiver:
        receiver.script("/hook", [200])
        made = make_endpoint(api, receiver, policy={"retry_schedule": [10, 20]})
        publish(api)
        drain()
        retry(api, the_delivery(api, made))
        assert drain() == 1
        pass_time(resources, DAYS)
        assert drain() == 1
        pass_time(resources, DAYS)
        assert drain() == 0
    assert attempts_of(api, made) == [(1, "auto", "success"), (2, "manual", "failed"), (3, "auto", "failed")]
    assert the_delivery(api, made)["status"] == "failed"


def test_a_delivery_that_succeeded_is_sent_again_the_same_with_the_secret_of_today(api, drain):
    with receivers.ok() as receiver:
        made = make_endpoint(api, receiver)
        event = publish(api, text="Grüße", number=12345678901234567890123)
        drain()
        secret = accepted(api.post(f"/v1/endpoints/{made['id']}/rotate-secret", {"overlap_seconds": 0}))[
            "signing_secret"
        ]
        change_endpoint(api, made, url=url_of(receiver, "/new"))
        retry(api, the_delivery(api, made))
        assert drain() == 1
        first, again = receiver.requests
    assert again.path == "/new"
    assert again.body == first.body
    assert again.header("webhook-id") == event["id"]
    assert again.header("X-BotBat-Delivery") == first.header("X-BotBat-Delivery")
    verify(first, made["signing_secret"])
    verify(again, secret)
    with pytest.raises(Exception, match="signature"):
        verify(again, made["signing_secret"])
    assert attempts_of(api, made) == [(1, "auto", "success"), (2, "manual", "success")]


def test_on_a_paused_endpoint_it_waits_until_that_is_resumed(api, drain, resources):
    with receivers.ok() as receiver:
        receiver.script("/hook", [500])
        made = make_endpoint(api, receiver, policy={"retry_schedule": []})
        publish(api)
        drain()
        accepted(api.post(f"/v1/endpoints/{made['id']}/pause"))
        assert retry(api, the_delivery(api, made))["status"] == "pending"
        assert drain() == 0
        pass_time(resources, DAYS)
        assert drain() == 0
        accepted(api.post(f"/v1/endpoints/{made['id']}/resume"))
        assert drain() == 1
    assert attempts_of(api, made) == [(1, "auto", "failed"), (2, "manual", "success")]


@pytest.mark.parametrize("schedule", [[], [600]], ids=["failed", "pending"])
def test_two_retries_at_once_make_one_attempt(api, drain, resources, schedule):
    with receivers.ok(500) as receiver:
        made = make_endpoint(api, receiver, policy={"retry_schedule": schedule})
        publish(api)
        drain()
        delivery = the_delivery(api, made)
        answers = at_once(*[lambda: ask_again(twin(api), delivery)] * 4)
        assert [answer.status_code for answer in answers] == [202] * 4
        assert pending_rows(resources) == 1
        assert drain() == 1
        pass_time(resources, DAYS)
        assert drain() == 0
        assert len(receiver.requests) == 2


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        (([3600], 500), [(1, "auto", "failed"), (2, "manual", "failed")]),
        (([3600, 3600], 500), [(1, "auto", "failed"), (2, "manual", "failed"), (3, "auto", "failed")]),
        # The last attempt of the schedule: the one that was asked for is made nevertheless.
        (([], 500), [(1, "auto", "failed"), (2, "manual", "failed")]),
        (([3600], 200), [(1, "auto", "success")]),
    ],
)
def test_asked_for_while_an_automatic_one_is_under_way_it_follows_if_that_fails(
    api, resources, sender, case, expected
):
    schedule, status = case
    with receivers.ok(500) as receiver:
        receiver.script("/hook", [Answer(status, delay=0.5)])
        made = make_endpoint(api, receiver, policy={"retry_schedule": schedule})
        publish(api)
        fan_out(resources)
        pump = in_thread(Pump(resources, sender).run)
        receiver.wait_for_requests(1)
        assert retry(api, the_delivery(api, made))["status"] == "pending"
        time.sleep(0.2)
        assert len(receiver.requests) == 1
        pump.join(10)
        assert not pump.is_alive()
        Pump(resources, sender).run()
        assert len(receiver.requests) == min(len(expected), 2)
        pass_time(resources, 4000)
        Pump(resources, sender).run()
        pass_time(resources, DAYS)
        assert Pump(resources, sender).run() == 0
        assert len(receiver.requests) == len(expected)
    assert attempts_of(api, made) == expected


def test_what_is_in_a_pumps_hands_is_not_claimed_a_second_time(api, resources, sender, drain):
    """Asked for anew it has another place in its queue, where a claim that goes on behind the old one finds it."""
    with receivers.ok(500) as receiver:
        made = make_endpoint(api, receiver, policy={"max_in_flight": 1, "retry_schedule": [10, 86_400]})
        publish_many(api, 12)
        drain()
        pass_time(resources, 12)
        receiver.default = Answer(500, delay=0.3)
        pump = in_thread(Pump(resources, sender).run)
        receiver.wait_for_requests(13)
        under_way = receiver.requests[12].header("X-BotBat-Delivery")
        retry(api, {"id": under_way})
        pump.join(20)
        assert not pump.is_alive()
        drain()
        times = [request.header("X-BotBat-Delivery") for request in receiver.requests]
    assert times.count(under_way) == 3
    assert under_way in times[13:18]  # before most of the other retries
    assert len(times) == 12 + 12 + 1
    shown = expect.ok(api.get(f"/v1/deliveries/{under_way}"))
    assert [(row["number"], row["trigger"]) for row in shown["attempts"]] == [
        (1, "auto"),
        (2, "auto"),
        (3, "manual"),
    ]
    assert made


def test_it_goes_before_other_retries(api, drain, resources):
    with receivers.ok(500) as receiver:
        make_endpoint(api, receiver, policy={"max_in_flight": 1, "retry_schedule": [10, 86_400]})
        publish_many(api, 10)
        drain()
        pass_time(resources, 12)  # all are due again
        last = max(request.header("X-BotBat-Delivery") or "" for request in receiver.requests)
        retry(api, {"id": last})
        drain()
        order = [request.header("X-BotBat-Delivery") for request in receiver.requests[10:]]
    assert len(order) == 10
    assert order[0] == last


def test_running_workers_take_it_up_at_once(api, drain, resources):
    with receivers.ok() as receiver, workers(resources):
        made = make_endpoint(api, receiver)
        publish(api)
        for number in range(1, 6):
            receiver.wait_for_requests(number)
            wait_until(lambda: the_delivery(api, made)["status"] == "succeeded")
            retry(api, the_delivery(api, made))
        receiver.wait_for_requests(6)
        wait_until(lambda: the_delivery(api, made)["status"] == "succeeded")
    assert [number for number, _, _ in attempts_of(api, made)] == [1, 2, 3, 4, 5, 6]


def test_what_cannot_be_sent_any_more_is_refused(api, drain, resources):
    with receivers.ok(500) as receiver:
        gone = make_endpoint(api, receiver, "/gone")
        publish(api)
        drain()
        pending = the_delivery(api, gone)
        assert api.call("DELETE", f"/v1/endpoints/{gone['id']}").status_code == 204
        expect.problem(ask_again(api, pending), 409, "endpoint_deleted")

        made = make_endpoint(api, receiver, policy={"retry_schedule": []})
        event = publish(api)
        drain()
        delivery = the_delivery(api, made)
        with resources.transaction() as uow:
            uow.session.execute(
                update(Event).where(Event.id == event["id"]).values(payload_expunged_at=datetime.now(UTC))
            )
        expect.problem(ask_again(api, delivery), 409, "payload_expunged")
        expect.problem(api.post(f"/v1/events/{event['id']}/replay"), 409, "payload_expunged")
        assert drain() == 0
        assert pending_rows(resources) == 0


# --- an event


def test_an_event_goes_again_to_all_that_want_it_now(api, drain):
    with receivers.ok() as receiver:
        receiver.script("/failed", [500])
        got = make_endpoint(api, receiver, "/got")
        failed = make_endpoint(api, receiver, "/failed", policy={"retry_schedule": []})
        left = make_endpoint(api, receiver, "/left")
        event = publish(api, text="hi", amount=5)
        drain()
        change_endpoint(api, left, events=["contact.created"])
        late = make_endpoint(api, receiver, "/late", events=["message.*"])
        narrow = make_endpoint(
            api, receiver, "/narrow", filter={"path": "/data/amount", "op": "gt", "value": 5}
        )
        wide = make_endpoint(api, receiver, "/wide", filter={"path": "/data/amount", "op": "gt", "value": 4})
        before = {each["id"]: the_delivery(api, each) for each in (got, failed)}

        data = replay(api, event)
        assert {row["endpoint_id"] for row in data} == {got["id"], failed["id"], late["id"], wide["id"]}
        assert {(row["status"], row["event_id"], row["finished_at"]) for row in data} == {
            ("pending", event["id"], None)
        }
        for row in data:
            if row["endpoint_id"] in before:
                assert row["id"] == before[row["endpoint_id"]]["id"]
        assert drain() == 4

        bodies = {request.body for request in receiver.requests}
        paths = sorted(request.path for request in receiver.requests[3:])
    assert len(bodies) == 1
    assert paths == ["/failed", "/got", "/late", "/wide"]
    assert attempts_of(api, got) == [(1, "auto", "success"), (2, "manual", "success")]
    assert attempts_of(api, failed) == [(1, "auto", "failed"), (2, "manual", "success")]
    assert attempts_of(api, late) == [(1, "manual", "success")]
    assert deliveries_of(api, narrow) == []
    assert the_delivery(api, left)["attempt_count"] == 1


def test_an_event_goes_to_chosen_endpoints_alone_whether_they_want_it_or_not(api, drain):
    with receivers.ok() as receiver:
        wanting = make_endpoint(api, receiver, "/wanting")
        other = make_endpoint(api, receiver, "/other", events=["contact.created"])
        event = publish(api)
        drain()
        (delivery,) = replay(api, event, endpoint_ids=[other["id"], other["id"]])
        assert (delivery["endpoint_id"], delivery["attempt_count"]) == (other["id"], 0)
        assert drain() == 1
    assert attempts_of(api, other) == [(1, "manual", "success")]
    assert attempts_of(api, wanting) == [(1, "auto", "success")]


def test_a_success_at_one_endpoint_never_suppresses_the_redelivery_to_another(api, drain, resources):
    with receivers.ok() as receiver:
        receiver.script("/sick", [500, 500])
        well = make_endpoint(api, receiver, "/well")
        sick = make_endpoint(api, receiver, "/sick")
        event = publish(api)
        drain()
        replay(api, event, endpoint_ids=[well["id"]])
        assert drain() == 1
        replay(api, event)
        assert drain() == 2
        pass_time(resources, DAYS)
        assert drain() == 1
    assert [status for _, _, status in attempts_of(api, sick)] == ["failed", "failed", "success"]
    assert [status for _, _, status in attempts_of(api, well)] == ["success"] * 3


def test_an_event_that_is_not_fanned_out_yet_is_so_once(api, drain, resources):
    with receivers.ok() as receiver:
        made = make_endpoint(api, receiver)
        other = make_endpoint(api, receiver, "/other", events=["contact.created"])
        event = publish(api)
        (delivery,) = replay(api, event, endpoint_ids=[other["id"]])
        assert delivery["endpoint_id"] == other["id"]
        with resources.transaction(write=False) as uow:
            assert uow.session.scalars(select(FanOut)).all() == []
        assert drain() == 2
        pass_time(resources, DAYS)
        assert drain() == 0
    assert attempts_of(api, made) == [(1, "auto", "success")]
    assert attempts_of(api, other) == [(1, "manual", "success")]


def test_while_its_fan_out_is_under_way_the_replay_waits_for_that(api, drain, resources):
    with receivers.ok() as receiver:
        made = make_endpoint(api, receiver)
        event = publish(api)
        answers: list[Any] = []
        with resources.transaction() as uow:
            assert engine.fan_out(uow) == 1
            thread = in_thread(lambda: answers.append(replay(twin(api), event)))
            time.sleep(0.3)
            assert answers == []
        thread.join(10)
        assert [row["endpoint_id"] for row in answers[0]] == [made["id"]]
        assert drain() == 1
    assert attempts_of(api, made) == [(1, "manual", "success")]


def test_replays_at_once_make_a_missing_delivery_once(api, drain, resources):
    with receivers.ok() as receiver:
        event = publish(api)
        drain()
        made = [make_endpoint(api, receiver, f"/{number}") for number in range(3)]
        answers = at_once(*[lambda: replay(twin(api), event)] * 4)
        ids = {tuple(row["id"] for row in answer) for answer in answers}
        assert len(ids) == 1
        assert drain() == 3
    assert [attempts_of(api, each) for each in made] == [[(1, "manual", "success")]] * 3


def test_a_sample_that_was_sent_as_a_test_is_no_event_to_deliver(api, drain, resources):
    with receivers.ok(500) as receiver:
        made = make_endpoint(api, receiver, policy={"retry_schedule": []})
        event = publish(api)
        drain()
        delivery = the_delivery(api, made)
        with resources.transaction() as uow:
            uow.session.execute(update(Delivery).values(is_test=True))
        expect.problem(ask_again(api, delivery), 409, "test_not_repeatable")
        expect.problem(api.post(f"/v1/events/{event['id']}/replay"), 409, "test_not_repeatable")
        assert drain() == 0
        assert the_delivery(api, made) == delivery
