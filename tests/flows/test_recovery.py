"""Recovery: a job restarts what failed in a span of time, each delivery once, whatever happens to those who do it."""

import time
from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import func, select, update

from app.core.clock import now
from app.core.unit_of_work import Resources
from app.deliveries import engine, recoveries
from app.deliveries.models import Delivery, PendingDelivery, Recovery
from app.events.models import Event
from config.wire import TaskName
from tests import receivers
from tests.api import expect
from tests.api.steps import at_once, twin
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
    url_of,
    wait_until,
    workers,
)
from tests.receivers import Receiver

ONCE: dict[str, Any] = {"retry_schedule": []}


@pytest.fixture
def small(monkeypatch) -> None:
    """Have steps of 7 deliveries, and 5 pending at once."""
    monkeypatch.setattr(recoveries, "STEP_DELIVERIES", 7)
    monkeypatch.setattr(recoveries, "PENDING_AT_ONCE", 5)


def ago(**span: float) -> str:
    return (now() - timedelta(**span)).isoformat()


def recover(api: Api, made: dict[str, Any], **body: Any) -> Any:
    body = {"since": ago(hours=1), **body}
    return expect.ok(api.post(f"/v1/endpoints/{made['id']}/recover", body), 202)


def look(api: Api, recovery: dict[str, Any]) -> Any:
    return expect.ok(api.get(f"/v1/endpoints/{recovery['endpoint_id']}/recoveries/{recovery['id']}"))


def cancel(api: Api, recovery: dict[str, Any]) -> Any:
    return api.post(f"/v1/endpoints/{recovery['endpoint_id']}/recoveries/{recovery['id']}/cancel")


def step(resources: Resources) -> bool:
    with resources.transaction() as uow:
        return recoveries.advance(uow)


def advance(resources: Resources) -> None:
    """Do what the workers' task does."""
    while step(resources):
        pass


def pass_pause(resources: Resources) -> None:
    with resources.transaction() as uow:
        for recovery in uow.session.scalars(select(Recovery)):
            recovery.next_step_at -= timedelta(minutes=1)


def pending(resources: Resources, made: dict[str, Any]) -> int:
    with resources.transaction(write=False) as uow:
        query = select(func.count()).where(PendingDelivery.endpoint_id == made["id"])
        return uow.session.scalars(query.select_from(PendingDelivery)).one()


def attempts_per_delivery(api: Api, made: dict[str, Any]) -> Counter[str]:
    return Counter(row["delivery_id"] for row in log_of(api, made))


def an_outage(api: Api, drain: Any, receiver: Receiver, count: int, **policy: Any) -> dict[str, Any]:
    """Make an endpoint for which this many deliveries have failed."""
    made = make_endpoint(api, receiver, policy={**ONCE, "max_in_flight": 50, **policy})
    receiver.default = receivers.Answer(500)  # type: ignore[attr-defined]
    publish_many(api, count)
    drain()
    receiver.default = receivers.Answer(200)  # type: ignore[attr-defined]
    receiver.requests.clear()
    assert {row["status"] for row in deliveries_of(api, made)} == {"failed"}
    return made


def test_what_failed_in_the_span_is_sent_once_more_and_nothing_else(api, drain, resources, doorbell):
    with receivers.ok() as receiver:
        made = an_outage(api, drain, receiver, 3)
        other = make_endpoint(api, receiver, "/other", policy=ONCE)
        time.sleep(0.01)
        since = now()
        receiver.script("/hook", [500] * 4)
        receiver.script("/other", [500] * 4)
        failed = publish_many(api, 4)
        drain()
        publish_many(api, 2)
        drain()
        time.sleep(0.01)
        until = now()
        time.sleep(0.01)
        receiver.script("/hook", [500])
        publish(api)
        drain()
        receiver.requests.clear()
        doorbell.rings.clear()

        started = recover(api, made, since=since.isoformat(), until=until.isoformat())
        assert (TaskName.RECOVERIES_ADVANCE, 0) in doorbell.rings
        assert (started["matched"], started["done"], started["status"]) == (4, 0, "running")
        assert drain() == 0
        advance(resources)
        assert (TaskName.DELIVERIES_PUMP, 0) in doorbell.rings
        done = look(api, started)
        assert (done["matched"], done["done"], done["status"]) == (4, 4, "done")
        assert done["finished_at"] is not None
        assert drain() == 4
        assert {request.header("webhook-id") for request in receiver.requests} == set(failed)
    assert Counter(row["status"] for row in deliveries_of(api, made)) == {"succeeded": 6, "failed": 4}
    assert Counter(row["status"] for row in deliveries_of(api, other)) == {"succeeded": 3, "failed": 4}
    recovered = [row for row in log_of(api, made) if row["number"] == 2]
    assert [(row["trigger"], row["status"]) for row in recovered] == [("manual", "success")] * 4


def test_one_that_fails_again_is_not_attempted_again(api, drain, resources):
    with receivers.ok() as receiver:
        made = an_outage(api, drain, receiver, 4)
        receiver.default = receivers.Answer(500)
        recovery = recover(api, made)
        for _ in range(3):
            advance(resources)
            drain()
            pass_pause(resources)
            pass_time(resources, 86_400)
        assert len(receiver.requests) == 4
    assert look(api, recovery)["status"] == "done"
    assert {row["attempt_count"] for row in deliveries_of(api, made)} == {2}
    assert {row["status"] for row in deliveries_of(api, made)} == {"failed"}


def test_a_dry_run_counts_and_does_nothing(api, drain, resources, small):
    with receivers.ok() as receiver:
        made = an_outage(api, drain, receiver, 20)
        recovery = recover(api, made, dry_run=True)
        assert recovery["matched"] == 7
        advance(resources)
        shown = look(api, recovery)
        assert (shown["matched"], shown["done"], shown["status"]) == (20, 0, "done")
        assert drain() == 0

        # What is counted in one step is known at once.
        recovery = recover(api, made, since=ago(seconds=0.001), dry_run=True)
        assert (recovery["matched"], recovery["status"]) == (0, "done")


def test_only_some_are_pending_at_a_time(api, drain, resources, small, doorbell):
    with receivers.ok() as receiver:
        made = an_outage(api, drain, receiver, 23)
        recovery = recover(api, made)
        for restarted in (5, 10, 15, 20):
            advance(resources)
            assert pending(resources, made) == 5
            assert look(api, recovery)["done"] == restarted
            assert (TaskName.RECOVERIES_ADVANCE, 1.0) in doorbell.rings
            pass_pause(resources)
            advance(resources)  # nothing was delivered meanwhile
            assert pending(resources, made) == 5
            pass_pause(resources)
            assert drain() == 5
        advance(resources)
        assert drain() == 3
        assert look(api, recovery)["status"] == "done"
    assert {row["status"] for row in deliveries_of(api, made)} == {"succeeded"}
    assert set(attempts_per_delivery(api, made).values()) == {2}


def test_fresh_events_do_not_wait_for_what_is_recovered(api, drain, resources):
    with counting_receiver(delay=0.1) as (slow, load), receivers.ok() as broken:
        made = an_outage(api, drain, broken, 200)
        change_endpoint(api, made, url=url_of(slow), policy={"max_in_flight": 4})
        recover(api, made)
        advance(resources)
        with workers(resources):
            wait_until(lambda: len(load.times("/hook")) > 8)
            fresh = publish(api)
            wait_until(lambda: any(event == fresh["id"] for _, _, event in load.arrivals), 1.5)
            assert len(load.times("/hook")) < 100
        assert load.most["/hook"] <= 4


def test_a_step_that_is_cut_off_has_done_nothing(api, drain, resources, small):
    with receivers.ok() as receiver:
        made = an_outage(api, drain, receiver, 12)
        recovery = recover(api, made)
        while not look(api, recovery)["done"]:
            before = look(api, recovery)

            def cut_off() -> None:
                with resources.transaction() as uow:
                    recoveries.advance(uow)
                    raise KeyboardInterrupt

            with pytest.raises(KeyboardInterrupt):
                cut_off()
            assert look(api, recovery) == before
            assert pending(resources, made) == 0
            assert step(resources)
        for _ in range(3):
            drain()
            pass_pause(resources)
            advance(resources)
        assert look(api, recovery)["status"] == "done"
        drain()
    assert set(attempts_per_delivery(api, made).values()) == {2}


def test_several_workers_never_do_the_same_step(api, drain, resources, small, monkeypatch):
    monkeypatch.setattr(recoveries, "PENDING_AT_ONCE", 1000)
    with receivers.ok() as receiver:
        endpoints = [an_outage(api, drain, receiver, 30)]
        endpoints.append(an_outage(api, drain, receiver, 30))
        started = [recover(api, made) for made in endpoints]
        deadline = time.monotonic() + 20
        while any(look(api, each)["status"] == "running" for each in started):
            assert time.monotonic() < deadline
            at_once(*[lambda: step(resources)] * 4)
        assert [(look(api, each)["matched"], look(api, each)["done"]) for each in started] == [
            (len(deliveries_of(api, made)),) * 2 for made in endpoints
        ]
        drain()
    for made in endpoints:
        assert set(attempts_per_delivery(api, made).values()) == {2}


def test_a_step_that_is_under_way_is_nobody_elses(api, drain, resources, small):
    if resources.database.is_sqlite:
        pytest.skip("SQLite has one writer at a time")
    with receivers.ok() as receiver:
        made = an_outage(api, drain, receiver, 20)
        recovery = recover(api, made)
        with resources.transaction() as uow:
            assert recoveries.advance(uow)
            assert not step(resources)
        assert look(api, recovery)["matched"] == 14
        assert step(resources)
        assert look(api, recovery)["matched"] == 20


def test_canceling_stops_it_between_steps(api, drain, resources, small):
    with receivers.ok() as receiver:
        made = an_outage(api, drain, receiver, 12)
        recovery = recover(api, made)
        advance(resources)
        canceled = expect.ok(cancel(api, recovery))
        assert (canceled["status"], canceled["done"]) == ("canceled", 5)
        assert canceled["finished_at"] is not None
        assert expect.ok(cancel(api, recovery)) == canceled
        pass_pause(resources)
        assert not step(resources)
        assert drain() == 5
        assert look(api, recovery) == canceled

        again = recover(api, made)
        for _ in range(3):
            advance(resources)
            drain()
            pass_pause(resources)
        expect.problem(cancel(api, again), 409, "recovery_done")
    assert look(api, again)["done"] == 7
    assert set(attempts_per_delivery(api, made).values()) == {2}


def test_an_endpoint_has_one_at_a_time(api, drain, resources):
    with receivers.ok() as receiver:
        made = an_outage(api, drain, receiver, 1)
        other = make_endpoint(api, receiver, "/other")
        path, body = f"/v1/endpoints/{made['id']}/recover", {"since": ago(hours=1)}
        answers = at_once(*[lambda: twin(api).post(path, body)] * 3)
        assert sorted(answer.status_code for answer in answers) == [202, 409, 409]
        expect.problem(api.post(path, body), 409, "recovery_running")
        assert recover(api, other)["status"] == "done"  # nothing to do
        advance(resources)
        drain()
        assert recover(api, made)["matched"] == 0
    shown = expect.ok(api.get(f"/v1/endpoints/{made['id']}/recoveries"))
    assert [row["matched"] for row in shown["data"]] == [0, 1]


def test_on_a_paused_endpoint_it_waits(api, drain, resources, small):
    with receivers.ok() as receiver:
        made = an_outage(api, drain, receiver, 8)
        accepted(api.post(f"/v1/endpoints/{made['id']}/pause"))
        recovery = recover(api, made)
        for _ in range(3):
            advance(resources)
            pass_pause(resources)
        assert (look(api, recovery)["done"], drain()) == (5, 0)
        accepted(api.post(f"/v1/endpoints/{made['id']}/resume"))
        assert drain() == 5
        advance(resources)
        assert drain() == 3
    assert look(api, recovery)["status"] == "done"


def test_while_the_endpoint_is_held_what_is_restarted_waits_and_no_more_is(api, drain, resources, small):
    with receivers.ok() as receiver:
        made = an_outage(api, drain, receiver, 12)
        recovery = recover(api, made)
        advance(resources)
        change_endpoint(api, made, policy={"when_failing": "hold"})
        receiver.default = receivers.Answer(500)
        assert drain() == 1  # a probe
        for wait in (20, 40):
            assert drain() == 0
            pass_time(resources, wait + 1)
            pass_pause(resources)
            advance(resources)
            assert drain() == 1
        assert look(api, recovery)["done"] == 5

        receiver.default = receivers.Answer(200)
        pass_time(resources, 81)
        assert drain() == 2  # the probe, which released it, and the last of the five
        for _ in range(2):
            pass_pause(resources)
            advance(resources)
            drain()
        assert look(api, recovery)["status"] == "done"
    assert set(attempts_per_delivery(api, made).values()) == {2}


def test_it_ends_when_its_endpoint_is_deleted(api, drain, resources, small):
    with receivers.ok() as receiver:
        made = an_outage(api, drain, receiver, 12)
        recovery = recover(api, made)
        advance(resources)
        assert api.call("DELETE", f"/v1/endpoints/{made['id']}").status_code == 204
        pass_pause(resources)
        advance(resources)
        assert drain() == 0
    with resources.transaction(write=False) as uow:
        row = uow.session.get_one(Recovery, recovery["id"])
        assert (row.status, row.done) == ("canceled", 5)
    path = f"/v1/endpoints/{made['id']}/recoveries"
    expect.problem(api.get(path), 404, "not_found")
    expect.problem(api.get(f"{path}/{recovery['id']}"), 404, "not_found")
    assert pending(resources, made) == 0


def test_what_has_no_payload_or_was_a_test_is_left_alone(api, drain, resources):
    with receivers.ok() as receiver:
        made = an_outage(api, drain, receiver, 3)
        expunged, tested, failed = deliveries_of(api, made)
        with resources.transaction() as uow:
            uow.session.execute(
                update(Event)
                .where(Event.id == expunged["event_id"])
                .values(payload_expunged_at=datetime.now(UTC))
            )
            uow.session.execute(update(Delivery).where(Delivery.id == tested["id"]).values(is_test=True))
        recovery = recover(api, made)
        assert recovery["matched"] == 1
        advance(resources)
        assert drain() == 1
        assert receiver.requests[0].header("webhook-id") == failed["event_id"]


def test_what_fails_after_it_was_counted_is_restarted_too(api, drain, resources, small):
    with receivers.ok() as receiver:
        made = an_outage(api, drain, receiver, 3)
        receiver.default = receivers.Answer(500)
        publish(api)
        with resources.transaction() as uow:
            engine.fan_out(uow)
        recovery = recover(api, made)
        assert recovery["matched"] == 3
        drain()
        receiver.default = receivers.Answer(200)
        advance(resources)
        assert drain() == 4
    assert (look(api, recovery)["matched"], look(api, recovery)["done"]) == (4, 4)
