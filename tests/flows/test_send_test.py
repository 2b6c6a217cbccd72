"""Send test: a sample goes out now, on the way of real deliveries, and its answer comes back; nothing else changes."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import select

from app.deliveries import trial
from app.deliveries.models import PendingDelivery, PendingTest
from app.deliveries.work import NewAttempt
from app.development.api import Api as HttpApi
from app.development.api import ApiRefused
from app.endpoints.models import Endpoint
from app.events.catalogue import BUILT_IN
from tests import receivers
from tests.api import expect
from tests.api.steps import twin
from tests.conftest import Api
from tests.flows.steps import (
    accepted,
    change_endpoint,
    deliveries_of,
    log_of,
    make_endpoint,
    pass_time,
    publish,
    queue_of,
    send_test,
    sending_tests,
    url_of,
    verify,
    wait_until,
)
from tests.receivers import Receiver
from worker import trials
from worker.local_queue import LocalQueue
from worker.request import InFlight, build, conclude
from worker.runtime import new_sender
from worker.sender import Outcome

# Where real receivers are called, `drain` in a signature allows it.


@pytest.fixture
def worker(resources, drain) -> Iterator[None]:
    """Have a worker send tests."""
    del drain
    with sending_tests(resources):
        yield


def ask(api: Api, made: dict[str, Any], **body: Any) -> Any:
    """Ask for a test; gives the answer, whatever it is."""
    return api.post(f"/v1/endpoints/{made['id']}/test", body)


def columns(row: Any) -> dict[str, Any]:
    return {name: value for name, value in vars(row).items() if not name.startswith("_")}


def pending_tests(resources) -> list[PendingTest]:
    with resources.transaction(write=False) as uow:
        return list(uow.session.scalars(select(PendingTest)))


@pytest.mark.usefixtures("worker")
def test_the_answer_is_the_attempt_and_what_went_out_is_a_signed_delivery(api):
    with receivers.ok(201, body=b"thanks", headers=[("X-Seen", "yes")]) as receiver:
        made = make_endpoint(api, receiver, headers={"X-Own": "value"})
        attempt = send_test(api, made)
        (request,) = receiver.requests

    assert (attempt["status"], attempt["status_code"], attempt["error"]) == ("success", 201, None)
    assert (attempt["trigger"], attempt["number"], attempt["endpoint_id"]) == ("test", 1, made["id"])
    assert attempt["response"]["body"] == "thanks"
    assert attempt["response"]["headers"]["X-Seen"] == "yes"
    assert accepted(api.get(f"/v1/attempts/{attempt['id']}")) == attempt
    assert log_of(api, made) == [attempt]
    (delivery,) = deliveries_of(api, made)
    assert (delivery["id"], delivery["status"], delivery["attempt_count"]) == (
        *(attempt["delivery_id"], "succeeded"),
        1,
    )

    verify(request, made["signing_secret"])
    assert attempt["request"]["body"] == request.body.decode()
    assert attempt["request"]["url"] == made["url"]
    sent = {name: request.header(name) for name in attempt["request"]["headers"]}
    assert sent == {**attempt["request"]["headers"], "X-Own": "value"}
    assert (request.header("X-BotBat-Delivery"), request.header("webhook-id")) == (
        *(attempt["delivery_id"],),
        attempt["event_id"],
    )
    event = accepted(api.get(f"/v1/events/{attempt['event_id']}"))
    assert event["data"] == BUILT_IN["message.received"].example


@pytest.mark.usefixtures("worker")
def test_type_and_data_may_be_chosen(api):
    with receivers.ok() as receiver:
        made = make_endpoint(api, receiver, events=["contact.*", "message.read"])
        attempt = send_test(api, made)
        # The first of the catalogue that it subscribes to.
        assert attempt["event_type"] == next(
            name for name in BUILT_IN if name.startswith("contact.") or name == "message.read"
        )
        attempt = send_test(api, made, type="conversation.closed", data={"id": "c1"})
        assert attempt["event_type"] == "conversation.closed"
        assert '"data":{"id":"c1"}' in receiver.requests[1].body.decode()

        # A filter that would keep the sample from it does not: what is tested is the way, not the filter.
        change_endpoint(api, made, filter={"path": "/data/id", "op": "eq", "value": "another"})
        assert send_test(api, made)["status"] == "success"

        api.call("PUT", "/v1/event-types/order.created", {"example": {"total": 5}})
        only_own = make_endpoint(api, receiver, events=["order.created"])
        assert send_test(api, only_own)["event_type"] == "message.received"
        assert '"total":5' in send_test(api, only_own, type="order.created")["request"]["body"]


@pytest.mark.usefixtures("worker")
def test_it_goes_to_no_other_endpoint(api, drain):
    with receivers.ok() as receiver:
        made = make_endpoint(api, receiver)
        other = make_endpoint(api, receiver, events=["*"])
        send_test(api, made)
        assert drain() == 0
        assert len(receiver.requests) == 1
    assert deliveries_of(api, other) == []


FAILURES: dict[str, tuple[Callable[[], AbstractContextManager[Receiver | str]], str, str]] = {
    "hangs": (receivers.hangs, "timeout", "did not answer within 1 s. Answer first, then do the work."),
    "refuses": (receivers.refuses, "connect_failed", "Check that it is up"),
    "wrong certificate": (receivers.wrong_host, "tls_failed", "must have the name in the URL."),
    "redirects": (lambda: receivers.redirects("https://a.example/"), "http_status", "final address."),
    "down": (
        lambda: receivers.ok(500, body=b"it broke"),
        "http_status",
        "answered 500. It failed at its own work",
    ),
    "missing": (lambda: receivers.ok(404), "http_status", "answered 404. Check the path"),
}


@pytest.mark.usefixtures("worker")
@pytest.mark.parametrize("failure", FAILURES.values(), ids=FAILURES)
def test_a_failure_is_answered_too_with_what_to_do_and_never_retried(api, drain, resources, failure):
    start, code, words = failure
    with start() as receiver:
        made = make_endpoint(api, receiver, policy={"timeout_seconds": 1})
        attempt = send_test(api, made)
        assert (attempt["status"], attempt["error"]["code"]) == ("failed", code)
        assert words in attempt["error"]["detail"]
        assert log_of(api, made) == [attempt]
        (delivery,) = deliveries_of(api, made)
        assert (delivery["status"], delivery["next_attempt_at"]) == ("failed", None)

        pass_time(resources, 3600)
        assert drain() == 0
        assert len(log_of(api, made)) == 1


@pytest.mark.usefixtures("worker")
def test_what_a_failing_receiver_answered_is_shown(api):
    with receivers.ok(500, body=b"it broke", headers=[("X-Trace", "7")]) as receiver:
        attempt = send_test(api, make_endpoint(api, receiver))
    assert attempt["status_code"] == 500
    assert attempt["response"]["body"] == "it broke"
    assert attempt["response"]["headers"]["X-Trace"] == "7"
    assert attempt["duration_ms"] >= 0


def test_a_refused_address_is_answered_as_such(api, resources):
    """No `drain` here: this installation may call no internal address."""
    with (
        receivers.ok() as receiver,
        sending_tests(resources, [f"hooks.example.com:{receiver.port}:127.0.0.1"]),
    ):
        attempt = send_test(api, make_endpoint(api, f"https://hooks.example.com:{receiver.port}"))
        assert receiver.connections == 0
    assert attempt["error"]["code"] == "blocked_address"
    assert attempt["error"]["detail"].endswith("Use a name with a public address.")
    assert "127.0.0.1" not in str(attempt)


@pytest.mark.usefixtures("worker")
def test_during_a_rotation_both_secrets_sign(api):
    with receivers.ok() as receiver:
        made = make_endpoint(api, receiver)
        new = accepted(api.post(f"/v1/endpoints/{made['id']}/rotate-secret"))["signing_secret"]
        send_test(api, made)
        (request,) = receiver.requests
    verify(request, made["signing_secret"])
    verify(request, new)


def template(text: str) -> dict[str, str]:
    return {"type": "template", "template": text}


@pytest.mark.usefixtures("worker")
def test_the_body_is_of_the_endpoints_format(api):
    with receivers.ok() as receiver:
        made = make_endpoint(api, receiver, format=template('{"said": {{ data.text | json }}}'))
        attempt = send_test(api, made, data={"text": "hi"})
        (request,) = receiver.requests
    assert request.body == b'{"said": "hi"}'
    assert attempt["request"]["body"] == '{"said": "hi"}'
    verify(request, made["signing_secret"])


@pytest.mark.usefixtures("worker")
def test_a_template_that_fails_is_answered_with_its_line_and_nothing_is_sent(api):
    with receivers.ok() as receiver:
        made = make_endpoint(api, receiver, format=template('{\n"said": {{ data.subject | json }}\n}'))
        attempt = send_test(api, made, data={"text": "hi"})
        assert receiver.connections == 0
    assert (attempt["status"], attempt["error"]["code"]) == ("failed", "template_failed")
    assert "Line 2" in attempt["error"]["detail"]
    assert (attempt["trigger"], attempt["request"]["body"]) == ("test", None)
    assert log_of(api, made) == [attempt]
    assert deliveries_of(api, made)[0]["status"] == "failed"


@pytest.mark.usefixtures("worker")
def test_without_a_secret_that_can_be_read_nothing_is_sent(api, resources):
    with receivers.ok() as receiver:
        made = make_endpoint(api, receiver)
        with resources.transaction() as uow:
            endpoint = uow.session.get_one(Endpoint, made["id"])
            endpoint.signing_secret = endpoint.signing_secret.replace("k1", "k9", 1)
        attempt = send_test(api, made)
        assert receiver.connections == 0
    assert (attempt["status"], attempt["error"]["code"]) == ("failed", "secrets_unreadable")
    assert "contact support" in attempt["error"]["detail"]


@pytest.mark.usefixtures("worker")
def test_neither_a_retry_nor_a_replay_sends_it_again(api, drain):
    with receivers.ok(500) as receiver:
        attempt = send_test(api, make_endpoint(api, receiver))
        for path in (f"deliveries/{attempt['delivery_id']}/retry", f"events/{attempt['event_id']}/replay"):
            expect.problem(api.post(f"/v1/{path}"), 409, "test_not_repeatable")
        assert drain() == 0


@pytest.mark.usefixtures("worker")
def test_a_paused_endpoint_is_tested_and_stays_paused(api, drain):
    with receivers.ok() as receiver:
        made = make_endpoint(api, receiver)
        accepted(api.post(f"/v1/endpoints/{made['id']}/pause"))
        waiting = publish(api)
        drain()
        attempt = send_test(api, made)
        assert attempt["status"] == "success"
        assert [request.header("webhook-id") for request in receiver.requests] == [attempt["event_id"]]
        assert accepted(api.get(f"/v1/endpoints/{made['id']}"))["status"] == "paused"

        accepted(api.post(f"/v1/endpoints/{made['id']}/resume"))
        assert drain() == 1
        assert receiver.requests[1].header("webhook-id") == waiting["id"]


@pytest.mark.usefixtures("worker")
def test_health_queue_and_rate_limit_are_as_before(api, drain, resources):
    with receivers.ok() as receiver:
        receiver.script("/hook", [200, 500, 200])
        made = make_endpoint(
            api, receiver, policy={"rate_limit": {"count": 1, "seconds": 86_400}, "retry_schedule": [3600]}
        )
        publish(api)
        publish(api)
        assert drain() == 1
        before = columns(queue_of(resources, made)), accepted(api.get(f"/v1/endpoints/{made['id']}"))
        # The rate limit is used up; the test goes out all the same.
        assert send_test(api, made)["status_code"] == 500
        assert send_test(api, made)["status_code"] == 200
        after = columns(queue_of(resources, made)), accepted(api.get(f"/v1/endpoints/{made['id']}"))
        assert after == before
        with resources.transaction(write=False) as uow:
            assert len(uow.session.scalars(select(PendingDelivery)).all()) == 1


@pytest.mark.usefixtures("worker")
def test_twelve_failed_tests_in_a_row_are_no_illness(api):
    with receivers.ok(500) as receiver:
        made = make_endpoint(api, receiver)
        before = accepted(api.get(f"/v1/endpoints/{made['id']}"))
        for _ in range(12):
            assert send_test(api, made)["status"] == "failed"
    assert accepted(api.get(f"/v1/endpoints/{made['id']}")) == before
    assert before["last_attempt_at"] is None


@pytest.mark.usefixtures("worker")
def test_while_it_waits_nothing_of_the_database_is_held(api, resources):
    with receivers.hangs() as receiver, ThreadPoolExecutor(1) as threads:
        made = make_endpoint(api, receiver, policy={"timeout_seconds": 1})
        asked = threads.submit(ask, twin(api), made)
        receiver.wait_for_requests(1)
        pool: Any = resources.database.engine.pool
        wait_until(lambda: pool.checkedout() == 0, 0.5)
        publish(api)
        assert not asked.done()
        assert asked.result().json["error"]["code"] == "timeout"


@pytest.mark.usefixtures("worker")
def test_an_idempotency_key_sends_it_once(api):
    with receivers.ok() as receiver:
        made = make_endpoint(api, receiver)
        path, headers = f"/v1/endpoints/{made['id']}/test", {"Idempotency-Key": "once"}
        first = api.post(path, {}, headers=headers)
        again = api.post(path, {}, headers=headers)
        assert len(receiver.requests) == 1
    assert expect.ok(first) == expect.ok(again)
    assert again.headers["Idempotent-Replayed"] == "true"


@pytest.mark.usefixtures("drain")
def test_without_a_worker_it_is_withdrawn_and_never_sent(api, resources, monkeypatch):
    monkeypatch.setattr(trial, "CLAIMED_WITHIN_SECONDS", 0.1)
    with receivers.ok() as receiver:
        made = make_endpoint(api, receiver)
        for headers in ({}, {"Idempotency-Key": "again"}, {"Idempotency-Key": "again"}):
            answer = api.post(f"/v1/endpoints/{made['id']}/test", {}, headers=headers)
            expect.problem(answer, 503, "no_worker")
            assert int(answer.headers["Retry-After"]) > 0
        assert pending_tests(resources) == []
        assert {delivery["status"] for delivery in deliveries_of(api, made)} == {"canceled"}
        sender = new_sender(resources)
        assert trials.run(resources, sender) == 0
        sender.close()
        assert receiver.connections == 0
    assert log_of(api, made) == []


def answered(claimed: trial.ClaimedTest) -> NewAttempt:
    """Give the attempt that a receiver has answered."""
    outgoing = build(LocalQueue("", None), claimed.delivery, claimed.target, datetime.now(UTC))
    assert isinstance(outgoing.tag, InFlight)
    return conclude(Outcome(outgoing.tag, time.time(), 5, 200, None, None, [], b"", False), outgoing.tag)[0]


def age(resources, seconds: float) -> None:
    """Let time pass for pending tests."""
    with resources.transaction() as uow:
        for test in uow.session.scalars(select(PendingTest)):
            test.created_at -= timedelta(seconds=seconds)
            if test.claimed_at is not None:
                test.claimed_at -= timedelta(seconds=seconds)


@pytest.mark.usefixtures("drain")
def test_one_that_nobody_waits_for_any_more_is_not_sent(api, resources, monkeypatch):
    """The API's process died while it waited."""
    monkeypatch.setattr(trial, "_wait", lambda *_args: None)
    with receivers.ok() as receiver:
        made = make_endpoint(api, receiver)
        expect.problem(ask(api, made), 404, "not_found")
        age(resources, 11)
        sender = new_sender(resources)
        assert trials.run(resources, sender) == 0
        sender.close()
        assert receiver.connections == 0
    assert pending_tests(resources) == []
    assert deliveries_of(api, made)[0]["status"] == "canceled"


@pytest.mark.usefixtures("drain")
def test_a_worker_that_dies_between_claim_and_record_leaves_one_failed_attempt(api, resources, monkeypatch):
    monkeypatch.setattr(trial, "_RECORDED_WITHIN_SECONDS", 0.1)
    with receivers.ok() as receiver, ThreadPoolExecutor(1) as threads:
        made = make_endpoint(api, receiver, policy={"timeout_seconds": 1})
        asked = threads.submit(ask, twin(api), made)
        wait_until(lambda: pending_tests(resources))
        with resources.transaction() as uow:
            (claimed,) = trial.claim(uow, limit=10)
        with resources.transaction() as uow:
            assert trial.claim(uow, limit=10) == []
        late = answered(claimed)
        problem = expect.problem(asked.result(), 503, "test_interrupted")
        assert claimed.delivery.id in problem["detail"]
        assert deliveries_of(api, made)[0]["status"] == "pending"

        sender = new_sender(resources)
        age(resources, 40)
        assert trials.run(resources, sender) == 0
        assert len(pending_tests(resources)) == 1  # the longest attempt may still be under way
        age(resources, 6)
        assert trials.run(resources, sender) == 0
        sender.close()
        assert receiver.connections == 0

    (attempt,) = log_of(api, made)
    assert (attempt["status"], attempt["trigger"], attempt["error"]["code"]) == (
        *("failed", "test"),
        "interrupted",
    )
    assert attempt["error"]["detail"].endswith("Send another one.")
    (delivery,) = deliveries_of(api, made)
    assert (delivery["status"], delivery["attempt_count"]) == ("failed", 1)

    # If it was only slow, what it found comes too late: every test has one attempt.
    with resources.transaction() as uow:
        trial.record(uow, attempts=[late])
    assert log_of(api, made) == [attempt]


@pytest.mark.usefixtures("drain")
def test_an_endpoint_that_is_deleted_meanwhile_is_not_found(api, resources):
    with receivers.ok() as receiver, ThreadPoolExecutor(1) as threads:
        made = make_endpoint(api, receiver)
        asked = threads.submit(ask, twin(api), made)
        wait_until(lambda: pending_tests(resources))
        assert api.call("DELETE", f"/v1/endpoints/{made['id']}").status_code == 204
        with sending_tests(resources):
            expect.problem(asked.result(), 404, "not_found")
        assert receiver.connections == 0
    assert pending_tests(resources) == []


@pytest.mark.usefixtures("worker")
def test_half_of_the_threads_may_wait_and_the_others_work(api, resources):
    assert resources.settings.web_threads == 4
    with receivers.hangs() as receiver, receivers.ok() as good, ThreadPoolExecutor(2) as threads:
        # Its cap is for what waits in its queue: two tests are under way at once.
        slow = make_endpoint(api, receiver, policy={"timeout_seconds": 2, "max_in_flight": 1})
        other = make_endpoint(api, good)
        asked = [threads.submit(ask, twin(api), slow) for _ in range(2)]
        receiver.wait_for_requests(2)
        refused = ask(api, other)
        expect.problem(refused, 429, "too_many_tests")
        assert int(refused.headers["Retry-After"]) >= 1
        started = time.monotonic()
        publish(api)
        assert time.monotonic() - started < 0.5
        assert [each.result().json["error"]["code"] for each in asked] == ["timeout", "timeout"]
        assert send_test(api, other)["status"] == "success"


@pytest.mark.usefixtures("worker")
def test_one_that_hangs_delays_no_other(api):
    with receivers.hangs() as receiver, receivers.ok() as good, ThreadPoolExecutor(1) as threads:
        slow = make_endpoint(api, receiver, policy={"timeout_seconds": 2})
        quick = make_endpoint(api, good)
        asked = threads.submit(ask, twin(api), slow)
        receiver.wait_for_requests(1)
        assert send_test(api, quick)["status"] == "success"
        assert not asked.done()


def test_it_works_through_real_processes_and_leaves_room_for_publishing(api, process_settings, run):
    """Also while as many tests as may wait do, and a receiver of real deliveries hangs."""
    assert process_settings.web_threads == 4
    served = HttpApi(run.web(), api.key)
    run.worker()
    with receivers.hangs() as hanging, receivers.ok() as good, ThreadPoolExecutor(2) as threads:

        def subscribe(receiver: Receiver, event_type: str) -> str:
            fields = {"url": url_of(receiver), "events": [event_type], "policy": {"timeout_seconds": 5}}
            return f"/v1/endpoints/{served.post('/v1/endpoints', fields)['id']}/test"

        slow = subscribe(hanging, "message.received")
        quick = subscribe(good, "contact.created")
        served.post("/v1/events", {"type": "contact.created", "data": {}})
        good.wait_for_requests(1, timeout=30)  # the worker is there
        attempt = served.post(quick, {})
        assert (attempt["status"], attempt["trigger"]) == ("success", "test")

        served.post("/v1/events", {"type": "message.received", "data": {}})
        asked = [threads.submit(served.post, slow, {}) for _ in range(2)]
        hanging.wait_for_requests(3)
        with pytest.raises(ApiRefused, match="429"):
            served.post(quick, {})
        started = time.monotonic()
        for _ in range(20):
            served.post("/v1/events", {"type": "contact.created", "data": {}})
        assert time.monotonic() - started < 2
        good.wait_for_requests(22, timeout=3)
        assert not any(each.done() for each in asked)
        assert [each.result()["error"]["code"] for each in asked] == ["timeout", "timeout"]
