"""Leases of endpoint queues: one pump at a time, nothing recorded without one, and no delivery that nobody looks at."""

import threading
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import select, update

from app.core.clock import now
from app.core.ids import new_id
from app.core.unit_of_work import Resources, UnitOfWork
from app.deliveries import engine, engine_repository
from app.deliveries.models import Attempt, Delivery, DeliveryStatus
from app.deliveries.work import NewAttempt, NewDelivery, Outcome
from app.endpoints import queues
from app.endpoints import service as endpoints
from app.endpoints.models import Endpoint, EndpointQueue
from app.endpoints.queues import LEASE_SECONDS, LeaseLost
from app.events import service as events
from app.events.service import Draft
from app.workspaces import service as workspaces
from config.wire import TaskName
from tests.flows.steps import pass_time

BLOCKED_SECONDS = 0.3  # after which what has not come through is taken to wait for a lock


@pytest.fixture
def workspace_id(resources) -> str:
    """Give a workspace."""
    with resources.transaction() as uow:
        made: str = workspaces.create(uow, name="Test").id
    return made


@pytest.fixture
def endpoint_ids(resources, workspace_id) -> list[str]:
    """Give three endpoints for everything, in the order of their ids."""
    with resources.transaction() as uow:
        return [
            endpoints.create(
                uow, workspace_id=workspace_id, url="https://hooks.example.com/", events=["*"]
            ).id
            for _ in range(3)
        ]


def publish(resources: Resources, workspace_id: str, count: int = 1) -> None:
    drafts = [Draft("message.received", {"text": "hi"}) for _ in range(count)]
    with resources.transaction() as uow:
        events.publish_many(uow, workspace_id=workspace_id, drafts=drafts)


def fan_out(resources: Resources) -> None:
    with resources.transaction() as uow:
        engine.fan_out(uow)


def make_due(resources: Resources, endpoint_ids: Sequence[str]) -> None:
    with resources.transaction() as uow:
        queues.wake(uow, endpoint_ids=endpoint_ids)


def lease(resources: Resources, lease_id: str, limit: int = 100) -> list[str]:
    with resources.transaction() as uow:
        return sorted(queue.endpoint_id for queue in queues.lease_due(uow, lease_id=lease_id, limit=limit))


def rows(resources: Resources) -> dict[str, EndpointQueue]:
    with resources.transaction(write=False) as uow:
        return {row.endpoint_id: row for row in uow.session.scalars(select(EndpointQueue))}


def deliveries(resources: Resources, endpoint_id: str) -> list[Delivery]:
    with resources.transaction(write=False) as uow:
        query = select(Delivery).where(Delivery.endpoint_id == endpoint_id).order_by(Delivery.id)
        return list(uow.session.scalars(query))


def release(resources: Resources, lease_id: str, endpoint_ids: Sequence[str], **changes: Any) -> None:
    with resources.transaction() as uow:
        limits: dict[str, datetime | None] = dict.fromkeys(endpoint_ids)
        engine.release(uow, lease_id=lease_id, rate_limits=limits, **changes)


def finished(delivery: Delivery, retry_in: float | None = None) -> tuple[NewAttempt, Outcome]:
    """Give what a pump records of an attempt: a success, or a failure that is retried."""
    attempt = NewAttempt(
        id=new_id("att"),
        workspace_id=delivery.workspace_id,
        delivery_id=delivery.id,
        event_id=delivery.event_id,
        event_type=delivery.event_type,
        endpoint_id=delivery.endpoint_id,
        number=1,
        trigger="auto",
        status="success" if retry_in is None else "failed",
        status_code=200 if retry_in is None else 500,
        duration_ms=5,
        error_code=None if retry_in is None else "http_status",
        error_detail=None,
        started_at=now(),
        url="https://hooks.example.com/",
        request_headers="[]",
        response_headers="[]",
        response_body=b"",
        response_truncated=False,
    )
    status = DeliveryStatus.SUCCEEDED if retry_in is None else DeliveryStatus.PENDING
    return attempt, Outcome(delivery.event_id, delivery.endpoint_id, "auto", status, 1, retry_in)


def attempts(resources: Resources) -> int:
    with resources.transaction(write=False) as uow:
        return len(uow.session.scalars(select(Attempt.id)).all())


# --- lease


def test_only_queues_with_something_due_are_leased(resources, endpoint_ids):
    assert lease(resources, "one") == []
    make_due(resources, endpoint_ids[:2])
    assert lease(resources, "one") == endpoint_ids[:2]
    row = rows(resources)[endpoint_ids[0]]
    assert row.lease_id == "one"
    assert row.leased_until is not None
    assert abs(row.leased_until - now() - timedelta(seconds=LEASE_SECONDS)) < timedelta(seconds=5)


def test_a_leased_queue_is_not_leased_again(resources, endpoint_ids):
    make_due(resources, endpoint_ids)
    assert lease(resources, "one", limit=2) != []
    assert len(lease(resources, "two")) == 1
    assert lease(resources, "three") == []
    with resources.transaction(write=False) as uow:
        assert not queues.any_due(uow)


def test_the_longest_due_come_first_and_the_limit_holds(resources, workspace_id):
    with resources.transaction() as uow:
        made = [
            endpoints.create(
                uow, workspace_id=workspace_id, url="https://hooks.example.com/", events=["*"]
            ).id
            for _ in range(20)
        ]
        for minutes, endpoint_id in enumerate(made):
            uow.session.execute(
                update(EndpointQueue)
                .where(EndpointQueue.endpoint_id == endpoint_id)
                .values(due_at=now() - timedelta(minutes=1 + minutes))
            )
    assert lease(resources, "one", limit=5) == sorted(made[-5:])
    assert lease(resources, "two", limit=5) == sorted(made[-10:-5])


def test_two_that_lease_at_once_never_get_the_same(resources, workspace_id):
    with resources.transaction() as uow:
        made = [
            endpoints.create(
                uow, workspace_id=workspace_id, url="https://hooks.example.com/", events=["*"]
            ).id
            for _ in range(60)
        ]
    make_due(resources, made)
    taken: dict[str, list[str]] = {}
    start = threading.Barrier(4)

    def take(name: str) -> None:
        start.wait()
        mine: list[str] = []
        while part := lease(resources, name, limit=4):
            mine += part
        taken[name] = mine

    threads = [threading.Thread(target=take, args=(f"pump{number}",)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(endpoint_id for part in taken.values() for endpoint_id in part) == sorted(made)
    for endpoint_id, row in rows(resources).items():
        assert row.lease_id is not None
        assert endpoint_id in taken[row.lease_id]


def test_two_open_transactions_do_not_wait_for_each_other_and_share(resources, endpoint_ids):
    if resources.database.is_sqlite:
        pytest.skip("SQLite has one writer at a time")
    make_due(resources, endpoint_ids)
    with resources.transaction() as one:
        first = queues.lease_due(one, lease_id="one", limit=2)
        with resources.transaction() as two:
            second = queues.lease_due(two, lease_id="two", limit=2)
    assert (len(first), len(second)) == (2, 1)
    assert sorted(queue.endpoint_id for queue in (*first, *second)) == endpoint_ids


def test_a_lease_that_ran_out_is_taken_over(resources, endpoint_ids):
    make_due(resources, endpoint_ids)
    lease(resources, "one")
    pass_time(resources, LEASE_SECONDS - 5)
    assert lease(resources, "two") == []
    pass_time(resources, 6)
    with resources.transaction(write=False) as uow:
        assert queues.any_due(uow)
    assert lease(resources, "two") == endpoint_ids


def test_a_queue_that_is_due_later_is_not_leased(resources, endpoint_ids):
    with resources.transaction() as uow:
        uow.session.execute(update(EndpointQueue).values(due_at=now() + timedelta(seconds=30)))
    assert lease(resources, "one") == []
    pass_time(resources, 31)
    assert lease(resources, "one") == endpoint_ids


def test_the_rate_limit_goes_with_the_queue(resources, endpoint_ids):
    until = now() + timedelta(seconds=90)
    make_due(resources, endpoint_ids[:1])
    lease(resources, "one")
    with resources.transaction() as uow:
        engine.release(uow, lease_id="one", rate_limits={endpoint_ids[0]: until})
    make_due(resources, endpoint_ids[:1])
    with resources.transaction() as uow:
        (leased,) = queues.lease_due(uow, lease_id="two", limit=1)
    assert leased.rate_limited_until == until


# --- renew


def test_renewing_prolongs_what_is_held_and_tells_what_is_lost(resources, endpoint_ids):
    make_due(resources, endpoint_ids)
    lease(resources, "one")
    pass_time(resources, LEASE_SECONDS + 1)
    assert lease(resources, "two", limit=1) == [taken := lease_of(resources, "two")]
    with resources.transaction() as uow:
        held = queues.renew(uow, lease_id="one", endpoint_ids=endpoint_ids)
    assert held == set(endpoint_ids) - {taken}
    for endpoint_id, row in rows(resources).items():
        assert row.lease_id == ("two" if endpoint_id == taken else "one")
        assert row.leased_until is not None
        assert row.leased_until > now() + timedelta(seconds=LEASE_SECONDS - 10)
    assert lease(resources, "three") == []


def lease_of(resources: Resources, lease_id: str) -> str:
    """Give the one queue that a lease holds."""
    (held,) = [row.endpoint_id for row in rows(resources).values() if row.lease_id == lease_id]
    return held


def test_renewing_nothing_and_what_is_gone(resources, endpoint_ids):
    with resources.transaction() as uow:
        assert queues.renew(uow, lease_id="one", endpoint_ids=[]) == set()
        assert queues.renew(uow, lease_id="one", endpoint_ids=["ep_gone"]) == set()


# --- record


def test_a_batch_is_recorded_under_its_lease(resources, workspace_id, endpoint_ids):
    publish(resources, workspace_id, 2)
    fan_out(resources)
    lease(resources, "one")
    good, bad = deliveries(resources, endpoint_ids[0])
    before = now()
    with resources.transaction() as uow:
        engine.record(uow, lease_id="one", finished=[finished(good), finished(bad, retry_in=100)])
    good, bad = deliveries(resources, endpoint_ids[0])
    assert (good.status, good.attempt_count, good.next_attempt_at) == ("succeeded", 1, None)
    assert good.finished_at is not None
    assert (bad.status, bad.attempt_count, bad.finished_at) == ("pending", 1, None)
    assert bad.next_attempt_at is not None
    assert timedelta(seconds=99) < bad.next_attempt_at - before < timedelta(seconds=110)
    row = rows(resources)[endpoint_ids[0]]
    assert row.last_attempt_at is not None
    assert row.last_success_at is not None
    assert row.last_success_at <= row.last_attempt_at
    assert attempts(resources) == 2


def test_who_lost_its_lease_records_nothing_at_all(resources, workspace_id, endpoint_ids):
    publish(resources, workspace_id)
    fan_out(resources)
    lease(resources, "one")
    mine = [finished(row) for each in endpoint_ids for row in deliveries(resources, each)]
    with resources.transaction() as uow:
        uow.session.execute(
            update(EndpointQueue).where(EndpointQueue.endpoint_id == endpoint_ids[1]).values(lease_id="two")
        )

    def record(batch: list[tuple[NewAttempt, Outcome]]) -> None:
        with resources.transaction() as uow:
            engine.record(uow, lease_id="one", finished=batch)

    with pytest.raises(LeaseLost) as lost:
        record(mine)
    assert lost.value.endpoint_ids == {endpoint_ids[1]}
    assert attempts(resources) == 0
    for endpoint_id in endpoint_ids:
        assert [row.status for row in deliveries(resources, endpoint_id)] == ["pending"]
        assert rows(resources)[endpoint_id].last_attempt_at is None

    record([item for item in mine if item[0].endpoint_id != endpoint_ids[1]])
    assert attempts(resources) == 2
    assert [row.status for row in deliveries(resources, endpoint_ids[1])] == ["pending"]


def test_who_gave_its_queue_back_records_nothing(resources, workspace_id, endpoint_ids):
    publish(resources, workspace_id)
    fan_out(resources)
    lease(resources, "one")
    (delivery,) = deliveries(resources, endpoint_ids[0])
    release(resources, "one", endpoint_ids)

    def record() -> None:
        with resources.transaction() as uow:
            engine.record(uow, lease_id="one", finished=[finished(delivery)])

    with pytest.raises(LeaseLost):
        record()
    assert attempts(resources) == 0


def test_what_was_sent_before_its_endpoint_was_deleted_is_told_and_changes_nothing(
    resources, workspace_id, endpoint_ids
):
    from app.deliveries import service

    publish(resources, workspace_id)
    fan_out(resources)
    lease(resources, "one")
    (delivery,) = deliveries(resources, endpoint_ids[0])
    with resources.transaction() as uow:
        service.delete_endpoint(uow, workspace_id=workspace_id, endpoint_id=endpoint_ids[0])
    with resources.transaction() as uow:
        engine.record(uow, lease_id="one", finished=[finished(delivery)])
    assert attempts(resources) == 1
    assert [row.status for row in deliveries(resources, endpoint_ids[0])] == ["canceled"]


def test_a_lease_cannot_be_taken_over_while_its_attempts_are_being_committed(
    resources, workspace_id, endpoint_ids
):
    if resources.database.is_sqlite:
        pytest.skip("SQLite has one writer at a time")
    publish(resources, workspace_id)
    fan_out(resources)
    lease(resources, "one")
    pass_time(resources, LEASE_SECONDS + 1)
    (delivery,) = deliveries(resources, endpoint_ids[0])
    with resources.transaction() as uow:
        engine.record(uow, lease_id="one", finished=[finished(delivery)])
        assert endpoint_ids[0] not in lease(resources, "two")


# --- release


def test_a_queue_is_due_when_its_earliest_pending_delivery_is(resources, workspace_id, endpoint_ids):
    publish(resources, workspace_id, 4)
    fan_out(resources)
    lease(resources, "one")
    waits: dict[str, list[float | None]] = {
        endpoint_ids[0]: [None, 300, 100, 200],
        endpoint_ids[1]: [None, None, None, None],
    }
    for endpoint_id, retry_ins in waits.items():
        batch = [
            finished(delivery, retry_in)
            for delivery, retry_in in zip(deliveries(resources, endpoint_id), retry_ins, strict=True)
        ]
        with resources.transaction() as uow:
            engine.record(uow, lease_id="one", finished=batch)
    release(resources, "one", endpoint_ids)

    after = rows(resources)
    assert {row.lease_id for row in after.values()} == {None}
    assert {row.leased_until for row in after.values()} == {None}
    assert after[endpoint_ids[0]].due_at == deliveries(resources, endpoint_ids[0])[2].next_attempt_at
    assert after[endpoint_ids[1]].due_at is None
    # The third was not touched: first attempts count as well as retries.
    assert after[endpoint_ids[2]].due_at == deliveries(resources, endpoint_ids[2])[0].next_attempt_at
    assert lease(resources, "two") == [endpoint_ids[2]]


def test_a_lease_that_is_not_ours_is_left_alone(resources, workspace_id, endpoint_ids):
    publish(resources, workspace_id)
    fan_out(resources)
    lease(resources, "one")
    release(resources, "two", endpoint_ids)
    assert {row.lease_id for row in rows(resources).values()} == {"one"}


def test_a_rate_limit_that_is_used_up_puts_a_queue_off_and_a_paused_one_rests(
    resources, workspace_id, endpoint_ids
):
    publish(resources, workspace_id)
    fan_out(resources)
    lease(resources, "one")
    later = now() + timedelta(seconds=500)
    with resources.transaction() as uow:
        versions = endpoints.list_versions(uow, endpoint_ids=endpoint_ids)
    release(
        resources,
        "one",
        endpoint_ids,
        inactive={endpoint_ids[1]},
        not_before={endpoint_ids[0]: later, endpoint_ids[2]: now() - timedelta(hours=1)},
        versions=versions,
    )
    after = rows(resources)
    assert after[endpoint_ids[0]].due_at == later
    assert after[endpoint_ids[1]].due_at is None
    assert after[endpoint_ids[2]].due_at == deliveries(resources, endpoint_ids[2])[0].next_attempt_at


def test_what_a_pump_knew_of_an_endpoint_that_was_changed_since_puts_nothing_off(
    resources, workspace_id, endpoint_ids
):
    publish(resources, workspace_id)
    fan_out(resources)
    lease(resources, "one")
    with resources.transaction() as uow:
        versions = endpoints.list_versions(uow, endpoint_ids=endpoint_ids)
    with resources.transaction() as uow:
        uow.session.execute(update(Endpoint).values(updated_at=now()))
    later = now() + timedelta(seconds=500)
    release(
        resources,
        "one",
        endpoint_ids,
        inactive={endpoint_ids[1]},
        not_before={endpoint_ids[0]: later},
        versions=versions,
    )
    assert lease(resources, "two") == endpoint_ids


class Blocked:
    """A step in a thread and a transaction of its own."""

    def __init__(self, resources: Resources, step: Any) -> None:
        self._resources = resources
        self._step = step
        self._error: BaseException | None = None
        self.done = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            with self._resources.transaction() as uow:
                self._step(uow)
        except BaseException as error:  # noqa: BLE001 - raised by join
            self._error = error
        self.done.set()

    def join(self) -> None:
        self._thread.join(15)
        assert self.done.is_set(), "it waits still"
        if self._error:
            raise self._error


@pytest.fixture
def leased_and_empty(resources, workspace_id, endpoint_ids) -> str:
    """Give a queue that lease "one" holds and in which nothing is pending, while an event waits for its fan-out."""
    if resources.database.is_sqlite:
        pytest.skip("SQLite has one writer at a time")
    make_due(resources, endpoint_ids[:1])
    assert lease(resources, "one") == endpoint_ids[:1]
    publish(resources, workspace_id)
    first: str = endpoint_ids[0]
    return first


def test_a_release_that_meets_a_fan_out_before_its_commit_waits_and_sees_its_deliveries(
    resources, leased_and_empty
):
    with resources.transaction() as uow:
        engine.fan_out(uow)
        releasing = Blocked(
            resources,
            lambda other: engine.release(other, lease_id="one", rate_limits={leased_and_empty: None}),
        )
        assert not releasing.done.wait(BLOCKED_SECONDS)
    releasing.join()
    row = rows(resources)[leased_and_empty]
    assert row.lease_id is None
    assert row.due_at is not None
    assert leased_and_empty in lease(resources, "two")


def test_a_fan_out_that_meets_a_release_before_its_commit_waits_and_wakes_the_queue(
    resources, leased_and_empty
):
    with resources.transaction() as uow:
        engine.release(uow, lease_id="one", rate_limits={leased_and_empty: None})
        fanning_out = Blocked(resources, engine.fan_out)
        assert not fanning_out.done.wait(BLOCKED_SECONDS)
    fanning_out.join()
    assert leased_and_empty in lease(resources, "two")


def test_a_release_between_a_fan_outs_insert_and_its_wake_leaves_the_queue_due(
    resources, leased_and_empty, monkeypatch
):
    inserted, go_on = threading.Event(), threading.Event()
    insert = engine_repository.insert_deliveries

    def insert_and_wait(uow: UnitOfWork, new: Sequence[NewDelivery]) -> None:
        insert(uow, new)
        inserted.set()
        assert go_on.wait(10)

    monkeypatch.setattr(engine_repository, "insert_deliveries", insert_and_wait)
    fanning_out = Blocked(resources, engine.fan_out)
    assert inserted.wait(10)
    release(resources, "one", [leased_and_empty])
    assert rows(resources)[leased_and_empty].due_at is None
    go_on.set()
    fanning_out.join()
    assert leased_and_empty in lease(resources, "two")


def test_an_endpoint_deleted_while_its_deliveries_are_being_made_leaves_none_pending(
    resources, workspace_id, endpoint_ids, monkeypatch
):
    from app.deliveries import service

    if resources.database.is_sqlite:
        pytest.skip("SQLite has one writer at a time")
    publish(resources, workspace_id)
    with resources.transaction() as uow:
        engine.fan_out(uow)
        deleting = Blocked(
            resources,
            lambda other: service.delete_endpoint(
                other, workspace_id=workspace_id, endpoint_id=endpoint_ids[0]
            ),
        )
        assert not deleting.done.wait(BLOCKED_SECONDS)
    deleting.join()
    assert [row.status for row in deliveries(resources, endpoint_ids[0])] == ["canceled"]


# --- wake, rest, requeue


def test_waking_makes_due_now_and_never_later(resources, endpoint_ids):
    past, future = now() - timedelta(seconds=60), now() + timedelta(seconds=60)
    for endpoint_id, due_at in zip(endpoint_ids, (past, future, None), strict=True):
        with resources.transaction() as uow:
            uow.session.execute(
                update(EndpointQueue).where(EndpointQueue.endpoint_id == endpoint_id).values(due_at=due_at)
            )
    make_due(resources, endpoint_ids)
    after = rows(resources)
    assert after[endpoint_ids[0]].due_at == past
    for endpoint_id in endpoint_ids[1:]:
        due_at = after[endpoint_id].due_at
        assert due_at is not None
        assert abs(due_at - now()) < timedelta(seconds=5)


def test_a_paused_queue_is_not_woken(resources, workspace_id, endpoint_ids):
    from app.deliveries import service

    with resources.transaction() as uow:
        service.pause_endpoint(uow, workspace_id=workspace_id, endpoint_id=endpoint_ids[0])
    make_due(resources, endpoint_ids)
    assert lease(resources, "one") == endpoint_ids[1:]
    publish(resources, workspace_id)
    fan_out(resources)
    assert rows(resources)[endpoint_ids[0]].due_at is None
    assert len(deliveries(resources, endpoint_ids[0])) == 1
    with resources.transaction() as uow:
        service.resume_endpoint(uow, workspace_id=workspace_id, endpoint_id=endpoint_ids[0])
    assert lease(resources, "two") == endpoint_ids[:1]


def test_waking_what_is_gone_is_nothing(resources, endpoint_ids):
    make_due(resources, ["ep_gone"])
    assert lease(resources, "one") == []


def test_requeue_finds_the_stranded_and_no_others(resources, workspace_id, endpoint_ids, doorbell):
    from app.deliveries import service

    stranded, leased, paused = endpoint_ids
    publish(resources, workspace_id)
    fan_out(resources)
    with resources.transaction() as uow:
        assert engine.requeue(uow) == 0
    with resources.transaction() as uow:
        uow.session.execute(update(EndpointQueue).values(due_at=None))
        uow.session.execute(
            update(EndpointQueue).where(EndpointQueue.endpoint_id == leased).values(lease_id="one")
        )
        service.pause_endpoint(uow, workspace_id=workspace_id, endpoint_id=paused)
    doorbell.rings.clear()
    with resources.transaction() as uow:
        assert engine.requeue(uow) == 1
    assert doorbell.rings == [(TaskName.DELIVERIES_PUMP, 0)]
    assert lease(resources, "two") == [stranded]
    with resources.transaction() as uow:
        assert engine.requeue(uow) == 0


@pytest.mark.parametrize("due", [True, False])
def test_the_sweep_rings_when_something_is_due(resources, endpoint_ids, doorbell, due):
    if due:
        make_due(resources, endpoint_ids)
    doorbell.rings.clear()
    with resources.transaction(write=False) as uow:
        engine.sweep_deliveries(uow)
    assert doorbell.rings == [(TaskName.DELIVERIES_PUMP, 0)] * due


@pytest.mark.parametrize("waits", [True, False])
def test_the_sweep_rings_when_an_event_waits_for_its_fan_out(resources, workspace_id, doorbell, waits):
    publish(resources, workspace_id)
    if not waits:
        fan_out(resources)
    doorbell.rings.clear()
    with resources.transaction(write=False) as uow:
        engine.sweep_events(uow)
    assert doorbell.rings == [(TaskName.EVENTS_FAN_OUT, 0)] * waits
