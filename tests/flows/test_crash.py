"""Real worker processes are killed, stopped and cut off from the broker: nothing is lost, and little is sent twice.

On PostgreSQL and Redis where the environment names them, and always on SQLite and the embedded broker.
"""

import os
import signal
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import delete, func, select, update

from app import processes
from app.core.clock import now
from app.core.doorbell import CeleryDoorbell
from app.core.unit_of_work import Resources
from app.deliveries import engine
from app.deliveries.models import Attempt, AttemptStatus, Delivery, DeliveryStatus, PendingDelivery
from app.deliveries.recoveries import PENDING_AT_ONCE
from app.endpoints.models import EndpointQueue
from app.endpoints.queues import LEASE_SECONDS
from config.settings import Settings
from config.wire import TaskName
from tests import receivers
from tests.flows.steps import counting_receiver, make_endpoint, pass_time, publish, publish_many, wait_until

PATIENCE_SECONDS = 25


@pytest.fixture
def settings(process_settings: Settings) -> Settings:
    """Give those of the processes."""
    return process_settings


@pytest.fixture
def doorbell(settings) -> CeleryDoorbell:
    """Give the real doorbell."""
    return CeleryDoorbell(settings)


def statuses(resources: Resources) -> Counter[str]:
    with resources.transaction(write=False) as uow:
        return Counter(uow.session.scalars(select(Delivery.status)))


def recorded(resources: Resources) -> Counter[str]:
    """Count the log's successes per event."""
    with resources.transaction(write=False) as uow:
        query = select(Attempt.event_id).where(Attempt.status == AttemptStatus.SUCCESS)
        return Counter(uow.session.scalars(query))


def leases(resources: Resources) -> int:
    with resources.transaction(write=False) as uow:
        held = select(func.count()).where(EndpointQueue.lease_id.is_not(None))
        return uow.session.scalars(held).one()


def received(load: Any) -> Counter[str]:
    with load.lock:
        return Counter(f"{event} {path}" for _, path, event in load.arrivals)


def sweep_until(resources: Resources, condition: Callable[[], bool]) -> None:
    """Send the sweeps as beat does, until something is true."""

    def swept() -> bool:
        for task in (TaskName.EVENTS_SWEEP, TaskName.DELIVERIES_SWEEP, TaskName.RECOVERIES_ADVANCE):
            resources.doorbell.ring(task)
        return condition()

    deadline = time.monotonic() + PATIENCE_SECONDS
    while not swept():
        assert time.monotonic() < deadline, f"deliveries are {statuses(resources)}"
        time.sleep(0.1)


def all_succeeded(resources: Resources, count: int) -> Callable[[], bool]:
    return lambda: statuses(resources) == {DeliveryStatus.SUCCEEDED.value: count}


def test_killed_workers_lose_nothing_and_repeat_only_what_was_not_recorded(api, resources, run):
    count = 400
    with counting_receiver(delay=0.02) as (receiver, load):
        for path in ("/a", "/b"):
            make_endpoint(api, receiver, path, policy={"max_in_flight": 5})
        for _ in range(count // 100):
            publish_many(api, 50)
        may_repeat: Counter[str] = Counter()
        for kill_after in (40, 200):
            worker = run.worker()
            sweep_until(resources, lambda: len(load.arrivals) >= kill_after)  # noqa: B023 - called here
            run.kill(worker)
            time.sleep(0.3)  # what is in the sockets still arrives
            assert not all_succeeded(resources, count)()
            sent, logged = received(load), logged_by_path(resources)
            may_repeat += Counter(key for key in sent if key not in logged)
            assert leases(resources) > 0
            pass_time(resources, LEASE_SECONDS + 1)  # instead of waiting for the leases to run out
        run.worker()
        sweep_until(resources, all_succeeded(resources, count))
        wait_until(lambda: leases(resources) == 0)  # queues are given back a moment after the last record

    arrived = received(load)
    assert len(arrived) == count
    repeated = Counter({key: times - 1 for key, times in arrived.items() if times > 1})
    assert repeated <= may_repeat
    # Ten are in flight at most, and some milliseconds' worth wait to be recorded.
    assert sum(repeated.values()) < count / 4
    assert set(logged_by_path(resources).values()) == {1}


def logged_by_path(resources: Resources) -> Counter[str]:
    """Count the log's rows per event and path, in the words of `received`."""
    with resources.transaction(write=False) as uow:
        rows = uow.session.execute(select(Attempt.event_id, Attempt.url))
        return Counter(f"{row.event_id} /{row.url.rpartition('/')[2]}" for row in rows)


def test_a_worker_that_is_stopped_finishes_what_it_began_and_nothing_is_sent_twice(api, resources, run):
    count = 300
    with counting_receiver(delay=0.03) as (receiver, load):
        make_endpoint(api, receiver, policy={"max_in_flight": 8})
        publish_many(api, count)
        # Told alone, as by a container's runtime; or with its children, as by honcho and systemd.
        for stop_after, stop in ((20, os.kill), (120, os.killpg)):
            worker = run.worker()
            sweep_until(resources, lambda: len(load.arrivals) >= stop_after)  # noqa: B023 - called here
            stop(worker.pid, signal.SIGTERM)
            assert worker.wait(PATIENCE_SECONDS) == 0
            assert len(load.arrivals) == sum(recorded(resources).values()) < count
            assert leases(resources) == 0
        run.worker()
        sweep_until(resources, all_succeeded(resources, count))
    assert set(received(load).values()) == {1}
    assert set(recorded(resources).values()) == {1}


def test_work_whose_doorbells_were_lost_is_found_by_beats_sweeps(api, resources, run, keyspace):
    with counting_receiver() as (receiver, load):
        make_endpoint(api, receiver)
        publish_many(api, 20)
        keyspace.empty()
        run.worker()
        run.start(processes.beat(["--loglevel=INFO"]))
        wait_until(all_succeeded(resources, 20), PATIENCE_SECONDS)

        # The broker is emptied under running processes: they go on as before.
        keyspace.empty()
        started = time.monotonic()
        publish(api)
        wait_until(all_succeeded(resources, 21), PATIENCE_SECONDS)
        assert time.monotonic() - started < 4  # by the doorbell: the next sweep is up to 5 s away
    assert set(received(load).values()) == {1}


def test_a_published_event_is_delivered_at_once_and_its_retry_when_it_is_due(api, resources, run):
    """The way of all events: doorbell, fan-out, pump; and a countdown doorbell for the second attempt. No sweeps."""
    with receivers.ok() as receiver:
        receiver.script("/hook", [500])
        make_endpoint(api, receiver, policy={"retry_schedule": [2]})
        run.worker()
        publish(api)
        receiver.wait_for_requests(1, timeout=PATIENCE_SECONDS)
        failed = time.monotonic()
        receiver.wait_for_requests(2, timeout=10)
        assert 2 <= time.monotonic() - failed + 0.1 < 5
        wait_until(all_succeeded(resources, 1))
    assert sum(recorded(resources).values()) == 1


def let_all_have_failed(resources: Resources) -> None:
    with resources.transaction() as uow:
        while engine.fan_out(uow):
            pass
        uow.session.execute(delete(PendingDelivery))
        failed = {"status": DeliveryStatus.FAILED.value, "attempt_count": 1, "finished_at": now()}
        uow.session.execute(update(Delivery).values(failed))


def test_a_recovery_goes_on_after_its_workers_were_killed_and_restarts_each_delivery_once(
    api, resources, run
):
    count = 2 * PENDING_AT_ONCE + 50
    with counting_receiver(delay=0.01) as (receiver, load):
        made = make_endpoint(api, receiver, policy={"max_in_flight": 8, "retry_schedule": []})
        since = now().isoformat()
        for _ in range(count // 50):
            publish_many(api, 50)
        let_all_have_failed(resources)
        answer = api.post(f"/v1/endpoints/{made['id']}/recover", {"since": since}).json
        assert (answer["matched"], answer["done"]) == (count, 0)
        for kill_after in (20, PENDING_AT_ONCE + 50):
            worker = run.worker()
            sweep_until(resources, lambda: len(load.arrivals) >= kill_after)  # noqa: B023 - called here
            run.kill(worker)
            pass_time(resources, LEASE_SECONDS + 1)  # instead of waiting for the leases to run out
            assert not all_succeeded(resources, count)()
        run.worker()
        sweep_until(resources, all_succeeded(resources, count))
        path = f"/v1/endpoints/{made['id']}/recoveries/{answer['id']}"
        wait_until(lambda: api.get(path).json["status"] == "done")
        assert api.get(path).json["done"] == count
    assert len(recorded(resources)) == count
    assert set(recorded(resources).values()) == {1}
    assert len(load.arrivals) < count + 2 * 100  # what was under way twice, and what waited to be recorded
