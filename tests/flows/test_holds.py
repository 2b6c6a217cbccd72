"""An endpoint that keeps failing: what is shown and told of it, and how it is held, probed, released and disabled."""

from datetime import datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import select, update

from app.core.clock import now
from app.core.unit_of_work import Resources
from app.deliveries import engine, hold_repository
from app.endpoints import queues
from app.endpoints.health import HELD_AT_MOST
from app.endpoints.models import Endpoint, EndpointQueue
from tests import receivers
from tests.conftest import Api
from tests.flows.steps import (
    accepted,
    change_endpoint,
    counting_receiver,
    deliveries_of,
    make_endpoint,
    pass_time,
    publish,
    publish_many,
    queue_of,
    wait_until,
    workers,
)
from tests.receivers import FriendlyReceiver
from worker import pump as pumping
from worker.pump import Pump
from worker.runtime import new_sender

DAY = 86_400.0
HOLD = {"when_failing": "hold"}


def status_of(api: Api, made: dict[str, Any]) -> str:
    status: str = accepted(api.get(f"/v1/endpoints/{made['id']}"))["status"]
    return status


def shown(api: Api, made: dict[str, Any]) -> dict[str, Any]:
    view: dict[str, Any] = accepted(api.get(f"/v1/endpoints/{made['id']}"))
    return view


def told(api: Api) -> list[tuple[str, dict[str, Any]]]:
    """Give the types and data of the workspace's endpoint events, oldest first."""
    listed = accepted(api.get("/v1/events?limit=100"))["data"]
    return [
        (row["type"], accepted(api.get(f"/v1/events/{row['id']}"))["data"])
        for row in reversed(listed)
        if row["type"].startswith("endpoint.")
    ]


def types_told(api: Api) -> list[str]:
    return [event_type for event_type, _ in told(api)]


def resume(api: Api, made: dict[str, Any]) -> None:
    assert accepted(api.post(f"/v1/endpoints/{made['id']}/resume"))["status"] == "active"


def pause(api: Api, made: dict[str, Any]) -> None:
    assert accepted(api.post(f"/v1/endpoints/{made['id']}/pause"))["status"] == "paused"


def attempted(api: Api, made: dict[str, Any]) -> int:
    return sum(row["attempt_count"] for row in deliveries_of(api, made))


def statuses(api: Api, made: dict[str, Any]) -> set[str]:
    return {row["status"] for row in deliveries_of(api, made)}


def hold(
    api: Api, drain: Any, receiver: FriendlyReceiver, *, waiting: int = 5, **fields: Any
) -> dict[str, Any]:
    """Make an endpoint that is held after exactly ten attempts, of ten deliveries, while others wait."""
    receiver.script("/hook", [500] * 10)
    policy = {**HOLD, "max_in_flight": 1, **fields.pop("policy", {})}
    made = make_endpoint(api, receiver, policy=policy, **fields)
    publish_many(api, 10)
    assert drain() == 10
    assert status_of(api, made) == "failing"
    publish_many(api, waiting)
    assert drain() == 0
    receiver.requests.clear()
    return made


# --- what is shown and told


def test_ten_failures_in_a_row_are_shown_and_told_once_and_so_is_the_recovery(api, drain, resources):
    with receivers.ok(503) as receiver, receivers.ok() as listening:
        made = make_endpoint(api, receiver, description="Order system", policy={"max_in_flight": 1})
        make_endpoint(api, listening, "/ops", events=["endpoint.*"])
        publish_many(api, 9)
        assert drain() == 9
        assert (shown(api, made)["status"], shown(api, made)["status_reason"]) == ("active", None)
        publish(api)
        assert (drain(), drain()) == (1, 1)
        reason = "10 attempts in a row have failed, the last with status 503."
        assert (shown(api, made)["status"], shown(api, made)["status_reason"]) == ("failing", reason)
        assert [row["id"] for row in api.get("/v1/endpoints?status=failing").json["data"]] == [made["id"]]

        publish_many(api, 40)
        assert drain() == 40
        receiver.default = receivers.Answer(200)
        pass_time(resources, 12)
        assert (drain(), drain()) == (50, 1)
        assert (shown(api, made)["status"], shown(api, made)["status_reason"]) == ("active", None)
        publish_many(api, 20)
        assert drain() == 20
        assert [request.header("X-BotBat-Event") for request in listening.requests_to("/ops")] == [
            "endpoint.failing",
            "endpoint.recovered",
        ]

    (failing, lost), (recovered, found) = told(api)
    assert (failing, recovered) == ("endpoint.failing", "endpoint.recovered")
    about = {"endpoint_id": made["id"], "url": made["url"], "description": "Order system"}
    since = lost.pop("since")
    assert abs(datetime.fromisoformat(since) - now()) < timedelta(seconds=60)
    assert lost == {**about, "status": "failing", "reason": reason, "failures_in_row": 10}
    assert datetime.fromisoformat(found.pop("since")) < datetime.fromisoformat(since)  # the clock was moved
    assert found == {**about, "status": "active", "reason": None, "failures_in_row": 0}


def test_a_success_in_between_begins_the_count_anew(api, drain):
    with receivers.ok(500) as receiver:
        receiver.script("/hook", [*[500] * 9, 200, *[500] * 9, 200])
        made = make_endpoint(api, receiver, policy={"max_in_flight": 1})
        publish_many(api, 29)
        assert drain() == 29
    assert status_of(api, made) == "active"
    assert told(api) == []


def test_by_default_every_delivery_gets_all_its_attempts_however_long_its_endpoint_fails(
    api, drain, resources
):
    delays = [10, 30, 120, 600, 1800]
    with receivers.ok(500) as receiver:
        made = make_endpoint(api, receiver)
        publish_many(api, 12)
        assert drain() == 12
        for number, delay in enumerate(delays, start=1):
            assert status_of(api, made) == "failing"
            publish(api)
            assert drain() == 1  # what is published meanwhile goes out at once
            pass_time(resources, delay * 1.1 + 1)
            assert drain() >= 12, number
        pass_time(resources, DAY / 4)
        drain()
        for _ in delays:
            pass_time(resources, 2000)
            drain()
    assert {(row["status"], row["attempt_count"]) for row in deliveries_of(api, made)} == {("failed", 6)}
    assert len(deliveries_of(api, made)) == 17
    assert types_told(api) == ["endpoint.failing"]


def test_one_that_is_told_of_its_own_failing_multiplies_nothing(api, drain, resources):
    with receivers.ok(500) as receiver:
        made = make_endpoint(api, receiver, events=["*"], policy={"max_in_flight": 1})
        publish_many(api, 30)
        assert drain() == 30
        for _ in range(8):
            drain()
            pass_time(resources, 2000)
        assert types_told(api) == ["endpoint.failing"]
        assert len(deliveries_of(api, made)) == 31
        receiver.default = receivers.Answer(200)
        publish(api)
        for _ in range(3):
            drain()
    assert types_told(api) == ["endpoint.failing", "endpoint.recovered"]
    assert len(deliveries_of(api, made)) == 33


def test_two_pumps_tell_it_once(api, drain, resources):
    with counting_receiver(delay=0.005, status=500) as (receiver, load), workers(resources, pumps=2):
        made = [make_endpoint(api, receiver, f"/{number}") for number in range(4)]
        for _ in range(5):
            publish_many(api, 20)
        wait_until(lambda: len(load.arrivals) >= 400, 30)
        wait_until(lambda: {status_of(api, each) for each in made} == {"failing"})
    assert sorted(data["endpoint_id"] for _, data in told(api)) == sorted(each["id"] for each in made)


def test_a_healthy_endpoint_costs_a_batch_no_statement(api, drain, resources, monkeypatch):
    locked: list[Any] = []
    from app.endpoints import repository

    lock = repository.lock_unlocked_all_workspaces

    def note(session, endpoint_ids):
        locked.append(list(endpoint_ids))
        return lock(session, endpoint_ids)

    monkeypatch.setattr(repository, "lock_unlocked_all_workspaces", note)
    with receivers.ok() as receiver:
        receiver.script("/hook", [500] * 9)
        made = make_endpoint(api, receiver, policy={"max_in_flight": 1})
        publish_many(api, 40)
        assert drain() == 40
        assert locked == []
        receiver.script("/hook", [500] * 40)
        publish_many(api, 40)
        assert drain() == 40
    # Nor does one that goes on failing.
    assert locked == [[made["id"]]]


def test_who_changes_an_endpoint_holds_up_no_pump_and_the_next_batch_makes_up_for_it(api, drain, resources):
    if resources.database.is_sqlite:
        pytest.skip("SQLite has one writer at a time")
    with receivers.ok(500) as receiver:
        made = make_endpoint(api, receiver)
        publish_many(api, 15)
        with resources.transaction() as uow:
            assert engine.fan_out(uow) == 15
        with resources.transaction() as uow:
            uow.session.scalars(select(Endpoint).with_for_update()).all()
            assert drain() == 15
        assert status_of(api, made) == "active"
        publish(api)
        assert drain() == 1
    assert status_of(api, made) == "failing"
    assert types_told(api) == ["endpoint.failing"]


# --- holds


def test_what_waits_in_a_hold_is_not_attempted_while_one_probe_at_a_time_goes_out(api, drain, resources):
    with receivers.ok(500) as receiver:
        made = hold(api, drain, receiver, waiting=20)
        assert drain() == 0
        for probes, delay in enumerate([10, 20, 40, 80, 160, 320, 600, 600, 600]):
            queue = queue_of(resources, made)
            assert queue.probe_at is not None
            assert abs((queue.probe_at - now()).total_seconds() - delay) < 3
            assert attempted(api, made) == 10 + probes
            publish(api)
            assert drain() == 0
            pass_time(resources, delay - 5)
            assert drain() == 0
            pass_time(resources, 6)
            assert drain() == 1
            assert drain() == 0
        # Each is an ordinary attempt of what had waited longest, so that none is used up by probes alone.
        assert {row["attempt_count"] for row in deliveries_of(api, made)} == {0, 1}
    assert types_told(api) == ["endpoint.failing"]


def test_a_queue_that_is_held_costs_the_claim_nothing(api, drain, resources, doorbell):
    with receivers.ok(500) as receiver:
        made = hold(api, drain, receiver)
        queue = queue_of(resources, made)
        assert queue.due_at == queue.probe_at
        assert queue.lease_id is None
        publish_many(api, 10)
        with resources.transaction() as uow:
            engine.fan_out(uow)
        assert queue_of(resources, made).due_at == queue.probe_at
        with resources.transaction(write=False) as uow:
            assert not engine.any_due(uow)
        assert ("deliveries.pump", 10) in doorbell.rings  # a worker is woken for the probe
        with resources.transaction() as uow:
            assert engine.requeue(uow) == 0


def test_the_first_success_releases_it_and_what_waited_goes_out_in_order_of_age(api, drain, resources):
    with receivers.ok() as receiver:
        made = hold(api, drain, receiver, waiting=30)
        waiting = sorted(row["event_id"] for row in deliveries_of(api, made))
        pass_time(resources, 11.5)
        assert drain() == 40
        order = [str(request.header("webhook-id")) for request in receiver.requests]
        assert sorted(order) == waiting
        assert order[1:] == sorted(order[1:])
        assert (shown(api, made)["status"], shown(api, made)["status_reason"]) == ("active", None)
        assert queue_of(resources, made).probe_at is None
    assert statuses(api, made) == {"succeeded"}
    assert types_told(api) == ["endpoint.failing", "endpoint.recovered"]


def test_what_waited_keeps_its_order_when_the_queue_changes_hands(api, drain, resources, monkeypatch):
    monkeypatch.setattr(pumping, "QUEUE_TURN_SECONDS", 0.05)
    with receivers.ok(delay=0.01) as receiver:
        hold(api, drain, receiver, waiting=30)
        pass_time(resources, 11.5)
        assert drain() == 40
        order = [str(request.header("webhook-id")) for request in receiver.requests]
    assert order[1:] == sorted(order[1:])


def test_what_waited_goes_out_at_the_endpoints_rate_limit(api, drain, resources):
    limit = {"rate_limit": {"count": 12, "seconds": 600}}
    with receivers.ok() as receiver:
        made = hold(api, drain, receiver, waiting=30, policy=limit)
        pass_time(resources, 601)
        assert drain() == 12
        assert status_of(api, made) == "active"
        pass_time(resources, 601)
        assert drain() == 12


def test_no_request_but_a_probe_is_under_way_while_it_is_held(api, drain, resources):
    with counting_receiver(delay=0.1, status=500) as (receiver, load), workers(resources, pumps=2):
        made = make_endpoint(api, receiver, policy={**HOLD, "max_in_flight": 5})
        publish_many(api, 100)
        wait_until(lambda: queue_of(resources, made).probe_at)
        wait_until(lambda: queue_of(resources, made).lease_id is None)
        # Ten failures, and what was under way when the tenth was recorded.
        sent = len(load.arrivals)
        assert 10 <= sent <= 25
        load.most.clear()
        for probes in range(1, 4):
            pass_time(resources, 1000)
            wait_until(lambda: queue_of(resources, made).failed_probes == probes)  # noqa: B023 - at once
            assert len(load.arrivals) == sent + probes
        assert load.most["/hook"] == 1


def test_a_manual_retry_goes_through_a_hold_and_moves_no_probe(api, drain, resources):
    with receivers.ok(500) as receiver:
        made = hold(api, drain, receiver)
        probe_at = queue_of(resources, made).probe_at
        newest = deliveries_of(api, made)[0]
        accepted(api.post(f"/v1/deliveries/{newest['id']}/retry"), 202)
        assert drain() == 1
        assert receiver.requests[0].header("X-BotBat-Delivery") == newest["id"]
        queue = queue_of(resources, made)
        assert (queue.probe_at, queue.failed_probes, queue.due_at) == (probe_at, 0, probe_at)
        # One that succeeds releases all.
        receiver.default = receivers.Answer(200)
        accepted(api.post(f"/v1/deliveries/{newest['id']}/retry"), 202)
        assert drain() >= 5
        assert status_of(api, made) == "active"


def test_what_has_been_held_for_three_days_gets_its_attempts_by_the_schedule(
    api, drain, resources, monkeypatch
):
    with receivers.ok(500) as receiver:
        made = hold(api, drain, receiver, waiting=1)
        pass_time(resources, 2.9 * DAY)
        assert drain() == 1  # the probe
        pass_time(resources, 0.1 * DAY)
        monkeypatch.setattr(hold_repository, "now", lambda: now() + timedelta(days=3))
        wait_for_next_probe(resources, made)
        assert drain() == 11
        for number, delay in enumerate([30, 120, 600, 1800], start=3):
            wait_for_next_probe(resources, made)
            pass_time(resources, delay - 5)
            assert drain() == 0
            pass_time(resources, 0.1 * delay + 6)
            assert drain() == 11
            assert {row["attempt_count"] for row in deliveries_of(api, made)} == {number}
        pass_time(resources, DAY)
        drain()
        assert (statuses(api, made), attempted(api, made)) == ({"failed"}, 66)
        assert status_of(api, made) == "failing"


def wait_for_next_probe(resources: Resources, made: dict[str, Any]) -> None:
    """Have the next probe so late that nothing goes out because of it."""
    with resources.transaction() as uow:
        later = now() + timedelta(days=2)
        row = uow.session.scalars(select(EndpointQueue).where(EndpointQueue.endpoint_id == made["id"])).one()
        if row.due_at == row.probe_at:
            row.due_at = now()
        row.probe_at = later


def test_what_is_young_waits_while_what_is_old_goes(api, drain, resources, monkeypatch):
    with receivers.ok(500) as receiver:
        made = hold(api, drain, receiver, waiting=3)
        old = sorted(row["event_id"] for row in deliveries_of(api, made))
        publish_many(api, 3)
        assert drain() == 0
        young = [row for row in deliveries_of(api, made) if row["event_id"] not in old]
        # All but the last three are older than a hold may last.
        boundary = datetime.fromisoformat(young[-1]["created_at"]) - timedelta(milliseconds=5)
        monkeypatch.setattr(hold_repository, "now", lambda: boundary + HELD_AT_MOST)
        with resources.transaction() as uow:
            queues.wake(uow, endpoint_ids=[made["id"]])
        assert drain() == 3  # the retries of the other ten are not due yet
        sent = {request.header("webhook-id") for request in receiver.requests}
        assert sent <= set(old)


def test_resuming_one_that_is_held_gives_it_one_fresh_try(api, drain, resources):
    with receivers.ok(500) as receiver:
        made = hold(api, drain, receiver, waiting=20)
        pass_time(resources, 11)
        assert drain() == 1
        resume(api, made)
        assert shown(api, made)["status_reason"] is None
        assert drain() == 1
        assert status_of(api, made) == "failing"
        queue = queue_of(resources, made)
        assert queue.probe_at is not None
        assert abs((queue.probe_at - now()).total_seconds() - 10) < 3
        assert drain() == 0

        receiver.default = receivers.Answer(200)
        resume(api, made)
        assert drain() >= 20
        pass_time(resources, 60)
        drain()
        assert status_of(api, made) == "active"
        assert statuses(api, made) == {"succeeded"}
    # Who resumes it knows that it is active; that it fails again is another change.
    assert types_told(api) == ["endpoint.failing", "endpoint.failing"]


def test_paused_stays_paused_whatever_is_recorded(api, drain, resources):
    with counting_receiver(delay=1.0, status=500) as (receiver, load), workers(resources):
        made = make_endpoint(api, receiver, policy={**HOLD, "max_in_flight": 30})
        publish_many(api, 30)
        wait_until(lambda: load.now["/hook"] >= 15)
        pause(api, made)
        wait_until(lambda: attempted(api, made) >= 10)
        wait_until(lambda: queue_of(resources, made).lease_id is None)
        wait_until(lambda: queue_of(resources, made).due_at is None)
        assert status_of(api, made) == "paused"
        assert told(api) == []


def test_a_policy_that_ceases_to_hold_frees_what_waits(api, drain, resources):
    with receivers.ok(500) as receiver:
        made = hold(api, drain, receiver, waiting=20)
        change_endpoint(api, made, policy={"when_failing": "retry"})
        assert drain() == 20
        assert status_of(api, made) == "failing"
        assert queue_of(resources, made).probe_at is None

        change_endpoint(api, made, policy=HOLD)
        publish_many(api, 20)
        assert drain() == 1
        assert drain() == 0
    assert types_told(api) == ["endpoint.failing"]


def test_a_pump_that_dies_with_a_probe_leaves_it_to_the_next(api, drain, resources):
    with receivers.ok(500) as receiver:
        made = hold(api, drain, receiver)
        pass_time(resources, 11)
        with resources.transaction() as uow:
            (leased,) = engine.lease_queues(uow, lease_id="dead", limit=5)
        assert leased.on_hold
        assert drain() == 0
        pass_time(resources, 60)
        assert drain() == 1
    assert queue_of(resources, made).failed_probes == 1


def test_the_dry_run_tells_that_a_held_endpoint_would_get_it_later(api, drain):
    with receivers.ok() as receiver:
        hold(api, drain, receiver)
    (verdict,) = accepted(api.post("/v1/endpoints/match", {"type": "message.received", "data": {}}))["data"]
    assert verdict["matches"]
    assert verdict["detail"].endswith(" held: the delivery would wait until a probe succeeds.")


def test_what_was_claimed_before_a_hold_began_waits_in_it(api, drain, resources, monkeypatch):
    """The claimer reads while the recorder finds the endpoint failing."""
    claim = engine.claim
    pump = Pump(resources, sender := new_sender(resources))

    def claim_and_hold(uow, **arguments):
        due = claim(uow, **arguments)
        if due:
            pump._queues[made["id"]].on_hold = True
        return due

    with receivers.ok() as receiver:
        made = hold(api, drain, receiver)
        with resources.transaction() as uow:
            uow.session.execute(update(EndpointQueue).values(due_at=now(), probe_at=None))
        monkeypatch.setattr(engine, "claim", claim_and_hold)
        monkeypatch.setattr(engine, "lease_queues", lease_and_hold(engine.lease_queues))
        assert pump.run() == 0
        assert receiver.requests == []
    sender.close()
    assert attempted(api, made) == 10


def lease_and_hold(lease_queues: Any) -> Any:
    """Lease, and then have the queue held in the database too, as the recorder does."""

    def lease(uow, **arguments):
        leased = lease_queues(uow, **arguments)
        moment = now() + timedelta(hours=1)
        uow.session.execute(update(EndpointQueue).values(probe_at=moment, due_at=moment))
        return leased

    return lease


# --- disabled


@pytest.fixture(params=[0, 2])
def disable_after_days(monkeypatch, request) -> int:
    """Set after how many days endpoints are disabled; comes before what reads the settings."""
    monkeypatch.setenv("BOTBAT_DISABLE_AFTER_DAYS", str(request.param))
    days: int = request.param
    return days


def fail_for(api: Api, drain: Any, resources: Resources, days: float) -> None:
    """Let time pass for what is failing; then one more attempt is made."""
    pass_time(resources, days * DAY)
    publish(api)
    drain()


@pytest.mark.parametrize("policy", [{}, HOLD])
def test_after_five_days_without_a_success_it_is_disabled_and_nothing_is_lost(api, drain, resources, policy):
    with receivers.ok(500) as receiver:
        made = make_endpoint(api, receiver, policy={"retry_schedule": [86_400] * 16, **policy})
        publish_many(api, 12)
        drain()
        fail_for(api, drain, resources, 4.9)
        assert status_of(api, made) == "failing"
        fail_for(api, drain, resources, 0.2)
        view = shown(api, made)
        assert view["status"] == "disabled"
        assert view["status_reason"].startswith("No attempt has succeeded since ")
        assert [row["id"] for row in api.get("/v1/endpoints?status=disabled").json["data"]] == [made["id"]]

        # What was pending waits, and so does what is published meanwhile.
        receiver.requests.clear()
        attempts = attempted(api, made)
        publish_many(api, 6)
        pass_time(resources, 40 * DAY)
        assert drain() == 0
        with resources.transaction() as uow:
            assert engine.requeue(uow) == 0
        assert attempted(api, made) == attempts
        assert statuses(api, made) == {"pending"}
        assert len(deliveries_of(api, made)) == 20

        receiver.default = receivers.Answer(200)
        resume(api, made)
        assert drain() == 20
    assert statuses(api, made) == {"succeeded"}
    assert types_told(api) == ["endpoint.failing", "endpoint.disabled"]
    (entry,) = api.get("/v1/audit-log?action=endpoint.disabled").json["data"]
    assert (entry["actor"]["type"], entry["resource"]["id"]) == ("system", made["id"])


def test_one_that_is_resumed_and_fails_again_has_five_days_more(api, drain, resources):
    with receivers.ok(500) as receiver:
        made = make_endpoint(api, receiver, policy={"retry_schedule": [60] * 16})
        publish_many(api, 12)
        drain()
        fail_for(api, drain, resources, 5.1)
        assert status_of(api, made) == "disabled"
        resume(api, made)
        pass_time(resources, 100)
        drain()
        assert status_of(api, made) == "failing"
        fail_for(api, drain, resources, 4.9)
        assert status_of(api, made) == "failing"
        fail_for(api, drain, resources, 0.2)
        assert status_of(api, made) == "disabled"
    assert types_told(api) == ["endpoint.failing", "endpoint.disabled"] * 2


def test_a_success_on_the_last_day_saves_it(api, drain, resources):
    with receivers.ok(500) as receiver:
        made = make_endpoint(api, receiver)
        publish_many(api, 12)
        drain()
        pass_time(resources, 4.9 * DAY)
        receiver.script("/hook", [200])
        publish(api)
        drain()
        fail_for(api, drain, resources, 0.2)
        publish_many(api, 10)
        drain()
        fail_for(api, drain, resources, 4.5)
    assert status_of(api, made) == "failing"


def test_the_number_of_days_is_a_setting_and_0_is_never(disable_after_days, api, drain, resources):
    with receivers.ok(500) as receiver:
        made = make_endpoint(api, receiver)
        publish_many(api, 12)
        drain()
        fail_for(api, drain, resources, 1.9)
        assert status_of(api, made) == "failing"
        fail_for(api, drain, resources, 3)
        assert status_of(api, made) == ("disabled" if disable_after_days else "failing")
        fail_for(api, drain, resources, 300)
        assert status_of(api, made) == ("disabled" if disable_after_days else "failing")


def test_a_running_pump_stops_sending_to_a_disabled_endpoint(api, drain, resources):
    with counting_receiver(delay=0.02, status=500) as (receiver, load):
        made = make_endpoint(api, receiver, policy={"max_in_flight": 1})
        publish_many(api, 12)
        drain()
        pass_time(resources, 6 * DAY)
        publish_many(api, 300)
        before = len(load.arrivals)
        drain()
        sent = len(load.arrivals) - before
        assert status_of(api, made) == "disabled"
        assert sent < 100
        assert attempted(api, made) == 12 + sent
        assert queue_of(resources, made).due_at is None


def test_the_dry_run_tells_that_a_disabled_endpoint_would_get_it_later(api, drain, resources):
    with receivers.ok(500) as receiver:
        make_endpoint(api, receiver)
        publish_many(api, 12)
        drain()
        fail_for(api, drain, resources, 6)
    event = {"type": "message.received", "data": {}}
    (verdict,) = accepted(api.post("/v1/endpoints/match", event))["data"]
    assert verdict["matches"]
    assert verdict["detail"].endswith("It is disabled: the delivery would wait until it is resumed.")


# --- the list


def test_each_of_the_four_states_can_be_asked_for(api, drain, resources):
    with receivers.ok(500) as receiver:
        disabled = make_endpoint(api, receiver, "/disabled")
        publish_many(api, 12)
        drain()
        fail_for(api, drain, resources, 6)
        failing = make_endpoint(api, receiver, "/failing")
        paused = make_endpoint(api, receiver, "/paused")
        pause(api, paused)
        publish_many(api, 12)
        drain()
        active = make_endpoint(api, receiver, "/active")
    made = {"active": active, "paused": paused, "failing": failing, "disabled": disabled}
    for status, endpoint in made.items():
        listed = accepted(api.get(f"/v1/endpoints?status={status}"))["data"]
        assert [(row["id"], row["status"]) for row in listed] == [(endpoint["id"], status)]
    assert len(accepted(api.get("/v1/endpoints?status=failing,disabled"))["data"]) == 2
    assert api.get("/v1/endpoints?status=broken").status_code == 422
