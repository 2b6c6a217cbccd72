"""A pump records every attempt it makes, and what it has not recorded is as due as before, whatever goes wrong."""

import threading
import time
from datetime import timedelta

import pytest
from sqlalchemy import select, text, update
from sqlalchemy.exc import OperationalError

from app.core.clock import now
from app.core.unit_of_work import Resources
from app.deliveries import engine
from app.deliveries.models import Attempt, Delivery
from app.endpoints.models import EndpointQueue
from tests import receivers
from tests.flows.steps import (
    counting_receiver,
    deliveries_of,
    ids_received,
    log_of,
    make_endpoint,
    pass_time,
    publish,
    publish_many,
    queue_of,
    wait_until,
)
from tests.receivers import Answer
from worker import pump as pumping
from worker.pump import Pump
from worker.runtime import new_sender
from worker.sender import Sender


@pytest.fixture
def sender(resources, drain):
    """Give a sender for pumps that a test runs itself; `drain` lets it reach the receivers."""
    made = new_sender(resources)
    yield made
    made.close()


def fan_out(resources: Resources) -> None:
    with resources.transaction() as uow:
        engine.fan_out(uow)


def count(resources: Resources, table: type[Attempt | Delivery]) -> int:
    with resources.transaction(write=False) as uow:
        return len(uow.session.scalars(select(table)).all())


class Running:
    """A pump in a thread of its own."""

    def __init__(self, pump: Pump) -> None:
        self.pump = pump
        self.attempts: int | None = None
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            self.attempts = self.pump.run()
        except BaseException as error:  # noqa: BLE001 - the test looks at it
            self.error = error

    def join(self, seconds: float = 15) -> int:
        self._thread.join(seconds)
        assert not self._thread.is_alive(), "the pump did not end"
        if self.error:
            raise self.error
        assert self.attempts is not None
        return self.attempts


def test_with_nothing_due_it_ends_at_once(resources, sender):
    started = time.monotonic()
    assert Pump(resources, sender).run() == 0
    assert time.monotonic() - started < 2


def test_it_gives_its_queues_back_due_when_the_earliest_delivery_is(api, resources, sender):
    with receivers.ok() as receiver, receivers.ok(500) as failing:
        done, waits = make_endpoint(api, receiver), make_endpoint(api, failing)
        publish(api)
        fan_out(resources)
        assert Pump(resources, sender).run() == 2
    queue = queue_of(resources, done)
    assert (queue.due_at, queue.lease_id, queue.leased_until) == (None, None, None)
    assert queue.last_attempt_at == queue.last_success_at is not None
    queue = queue_of(resources, waits)
    assert (queue.lease_id, queue.leased_until, queue.last_success_at) == (None, None, None)
    with resources.transaction(write=False) as uow:
        assert queue.due_at == uow.session.scalar(
            select(Delivery.next_attempt_at).where(Delivery.endpoint_id == waits["id"])
        )


def test_it_gets_through_more_than_its_buffers_hold(api, resources, sender, monkeypatch):
    monkeypatch.setattr(pumping, "CLAIM_ROWS", 20)
    monkeypatch.setattr(pumping, "BUFFER_ROWS", 40)
    monkeypatch.setattr(pumping, "BUFFER_BYTES", 10_000)
    monkeypatch.setattr(pumping, "LEASE_QUEUES", 3)
    monkeypatch.setattr(pumping, "RECORD_ROWS", 7)
    with receivers.ok() as receiver:
        made = [make_endpoint(api, receiver, f"/{number}") for number in range(10)]
        publish_many(api, 20)
        publish(api, text="a" * 20_000)
        fan_out(resources)
        assert Pump(resources, sender).run() == 210
        assert set(ids_received(receiver.requests).values()) == {1}
        assert len(receiver.requests) == 210
    assert {row["status"] for endpoint in made for row in deliveries_of(api, endpoint)} == {"succeeded"}
    assert count(resources, Attempt) == 210


def test_it_gives_queues_back_after_their_turn_and_they_stay_due(api, resources, sender, monkeypatch):
    monkeypatch.setattr(pumping, "QUEUE_TURN_SECONDS", 0.2)
    given_back: list[int] = []  # how many requests had been made by then
    with receivers.ok(delay=0.02) as receiver:
        make_endpoint(api, receiver, policy={"max_in_flight": 2})
        publish_many(api, 60)
        fan_out(resources)
        pump = Pump(resources, sender)
        release = pump._release

        def note(queues):
            given_back.extend(len(receiver.requests) for _ in queues)
            release(queues)

        pump._release = note  # type: ignore[method-assign]
        assert pump.run() == 60
        assert set(ids_received(receiver.requests).values()) == {1}
        assert len(receiver.requests) == 60
    assert 0 < given_back[0] < 50
    assert count(resources, Attempt) == 60


def test_told_to_stop_it_records_what_is_under_way_and_leaves_the_rest_due(api, resources, sender):
    stopping = threading.Event()
    with receivers.ok(delay=0.3) as receiver:
        made = make_endpoint(api, receiver, policy={"max_in_flight": 4})
        publish_many(api, 30)
        fan_out(resources)
        running = Running(Pump(resources, sender, stopping=stopping.is_set))
        receiver.wait_for_requests(4)
        stopping.set()
        attempts = running.join()
        assert len(receiver.requests) == attempts < 30
        assert len(log_of(api, made)) == attempts
        queue = queue_of(resources, made)
        assert queue.lease_id is None
        with resources.transaction(write=False) as uow:
            assert engine.any_due(uow)

        assert Pump(resources, sender).run() == 30 - attempts
        assert set(ids_received(receiver.requests).values()) == {1}


def test_stopping_before_it_starts_sends_nothing(api, resources, sender):
    with receivers.ok() as receiver:
        make_endpoint(api, receiver)
        publish(api)
        fan_out(resources)
        assert Pump(resources, sender, stopping=lambda: True).run() == 0
        assert receiver.connections == 0
        assert Pump(resources, sender).run() == 1


# --- lost leases


def test_who_lost_a_lease_records_nothing_and_sends_nothing_more(api, resources, sender):
    with counting_receiver(delay=0.3) as (receiver, load):
        lost = make_endpoint(api, receiver, "/lost", policy={"max_in_flight": 2})
        kept = make_endpoint(api, receiver, "/kept", policy={"max_in_flight": 2})
        publish_many(api, 10)
        fan_out(resources)
        running = Running(Pump(resources, sender))
        wait_until(lambda: len(load.times("/lost")) == 2)
        with resources.transaction() as uow:
            uow.session.execute(
                update(EndpointQueue)
                .where(EndpointQueue.endpoint_id == lost["id"])
                .values(lease_id="another", leased_until=now() + timedelta(seconds=60))
            )
        wait_until(lambda: len(load.times("/kept")) == 10)
        running.join()

        # Those under way when the lease went, and at most one more round before the pump heard of it.
        assert len(load.times("/lost")) <= 4
        assert log_of(api, lost) == []
        assert {row["attempt_count"] for row in deliveries_of(api, lost)} == {0}
        assert queue_of(resources, lost).lease_id == "another"
        assert {row["status"] for row in deliveries_of(api, kept)} == {"succeeded"}
        assert len(log_of(api, kept)) == 10

        pass_time(resources, 100)
        assert Pump(resources, sender).run() == 10
    assert {row["status"] for row in deliveries_of(api, lost)} == {"succeeded"}
    assert len(log_of(api, lost)) == 10


def test_a_lease_that_ran_out_and_that_nobody_took_still_records(api, resources, sender):
    with receivers.ok(delay=0.3) as receiver:
        made = make_endpoint(api, receiver)
        publish(api)
        fan_out(resources)
        running = Running(Pump(resources, sender))
        receiver.wait_for_requests(1)
        pass_time(resources, 100)
        assert running.join() == 1
    assert len(log_of(api, made)) == 1


def test_leases_are_renewed_while_requests_take_long(api, resources, sender, monkeypatch):
    monkeypatch.setattr(pumping, "RENEWED_EVERY", 0.1)
    with receivers.ok(delay=1.0) as receiver:
        made = make_endpoint(api, receiver)
        publish(api)
        fan_out(resources)
        running = Running(Pump(resources, sender))
        receiver.wait_for_requests(1)
        pass_time(resources, 30)
        soon = now() + timedelta(seconds=30)
        wait_until(lambda: (queue_of(resources, made).leased_until or soon) > soon, 2)
        running.join()


# --- failures of ours


def test_a_connection_to_the_database_that_breaks_costs_no_attempt_and_no_duplicate(api, resources, sender):
    if resources.database.is_sqlite:
        pytest.skip("SQLite has no connections that can break")
    ending = text(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )
    with receivers.ok(delay=0.01) as receiver:
        made = make_endpoint(api, receiver)
        publish_many(api, 300)
        fan_out(resources)
        running = Running(Pump(resources, sender))
        for number in (20, 80, 140):
            receiver.wait_for_requests(number, timeout=10)
            other = resources.database.engine.execution_options()
            with other.connect() as connection:
                connection.detach()
                connection.execute(ending)
        assert running.join(30) == 300
        assert set(ids_received(receiver.requests).values()) == {1}
    assert len(log_of(api, made)) == 300
    assert {row["status"] for row in deliveries_of(api, made)} == {"succeeded"}


def test_an_attempt_is_recorded_however_often_the_database_fails(api, resources, sender, monkeypatch):
    monkeypatch.setattr(pumping, "_DATABASE_RETRY_SECONDS", 0.01)
    failures = iter(range(5))
    record = engine.record

    def fail_first(*arguments, **keywords):
        if next(failures, None) is not None:
            raise OperationalError("COPY", None, ConnectionError())
        return record(*arguments, **keywords)

    monkeypatch.setattr(engine, "record", fail_first)
    with receivers.ok() as receiver:
        made = make_endpoint(api, receiver)
        publish_many(api, 3)
        fan_out(resources)
        assert Pump(resources, sender).run() == 3
        assert len(receiver.requests) == 3
    assert len(log_of(api, made)) == 3


def test_claiming_goes_on_after_the_database_was_away(api, resources, sender, monkeypatch):
    monkeypatch.setattr(pumping, "_DATABASE_RETRY_SECONDS", 0.01)
    failures = iter(range(3))
    claim = engine.claim

    def fail_first(*arguments, **keywords):
        if next(failures, None) is not None:
            raise OperationalError("SELECT", None, ConnectionError())
        return claim(*arguments, **keywords)

    monkeypatch.setattr(engine, "claim", fail_first)
    with receivers.ok() as receiver:
        make_endpoint(api, receiver)
        publish_many(api, 3)
        fan_out(resources)
        assert Pump(resources, sender).run() == 3
        assert len(receiver.requests) == 3


@pytest.mark.parametrize("place", ["claim", "record"])
def test_a_fault_of_ours_ends_the_pump_and_leaves_the_work_due(api, resources, sender, monkeypatch, place):
    def fail(*_arguments, **_keywords):
        raise ZeroDivisionError

    with receivers.ok() as receiver:
        made = make_endpoint(api, receiver)
        publish_many(api, 3)
        fan_out(resources)
        with monkeypatch.context() as patch:
            patch.setattr(engine, place, fail)
            with pytest.raises(ZeroDivisionError):
                Pump(resources, sender).run()
        assert sender.in_flight == 0
        assert queue_of(resources, made).lease_id is None
        receiver.requests.clear()
        assert Pump(resources, sender).run() == 3
        assert len(receiver.requests) == 3
    assert len(log_of(api, made)) == 3


def test_a_fault_of_the_sender_aborts_what_is_under_way_and_it_is_sent_again(api, resources, monkeypatch):
    class Broken(Sender):
        """Fails when it has something under way."""

        def run(self, timeout):
            if self.in_flight:
                raise ZeroDivisionError
            return super().run(timeout)

    policy, ca_file = resources.egress_policy, receivers.ca_file()
    made = make_endpoint(api, "https://hooks.example.com")
    publish(api)
    fan_out(resources)
    with Broken(policy=policy, ca_file=ca_file) as broken:
        broken._resolve = ["hooks.example.com:443:127.0.0.1"]
        with pytest.raises(ZeroDivisionError):
            Pump(resources, broken).run()
    assert broken.in_flight == 0
    assert log_of(api, made) == []
    assert queue_of(resources, made).lease_id is None
    with resources.transaction(write=False) as uow:
        assert engine.any_due(uow)


def test_countdown_doorbells_ring_after_the_record_is_committed(api, resources, sender, doorbell):
    seen: list[tuple[int, float]] = []
    ring = doorbell.ring

    def look(task, *, countdown=0.0):
        if countdown:
            seen.append((count(resources, Attempt), countdown))
        ring(task, countdown=countdown)

    doorbell.ring = look
    with receivers.ok() as receiver:
        receiver.script("/hook", [Answer(500)])
        make_endpoint(api, receiver)
        publish(api)
        fan_out(resources)
        Pump(resources, sender).run()
    ((recorded, countdown),) = seen
    assert recorded == 1
    assert 10 <= countdown <= 11


def test_a_commit_whose_answer_was_lost_is_recorded_once(api, resources, sender, monkeypatch):
    record = engine.record
    lost: list[bool] = []

    def record_and_lose_the_answer(uow, **arguments):
        on_hold = record(uow, **arguments)
        if not lost:
            lost.append(True)
            uow.commit()
            raise OperationalError("COMMIT", {}, Exception("the connection broke"))
        return on_hold

    monkeypatch.setattr(engine, "record", record_and_lose_the_answer)
    with receivers.ok() as receiver:
        make_endpoint(api, receiver)
        publish(api)
        fan_out(resources)
        assert Pump(resources, sender).run() == 1
        assert len(receiver.requests) == 1
    assert lost
    assert count(resources, Attempt) == 1
    (delivery,) = api.get("/v1/deliveries").json["data"]
    assert (delivery["status"], delivery["attempt_count"]) == ("succeeded", 1)
