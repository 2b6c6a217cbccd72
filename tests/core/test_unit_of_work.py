"""One block, one transaction: committed at its end or not at all, and bells ring for what is committed only."""

import threading

import pytest
from sqlalchemy import select, text

from app.core.database import copy_in
from app.core.unit_of_work import Resources, UnitOfWork
from app.workspaces.models import Workspace
from config.wire import TaskName

RING = TaskName.EVENTS_FAN_OUT


def names(resources: Resources) -> list[str]:
    with resources.transaction(write=False) as uow:
        return sorted(uow.session.scalars(select(Workspace.name)))


def add(uow: UnitOfWork, name: str) -> None:
    uow.session.add(Workspace(id=f"ws_{name}", name=name))
    uow.session.flush()


def test_a_block_is_committed_at_its_end(resources, doorbell):
    with resources.transaction() as uow:
        add(uow, "kept")
        uow.ring(RING)
    assert names(resources) == ["kept"]
    assert doorbell.rings == [(RING, 0)]


def test_a_block_that_raises_leaves_nothing_and_rings_nothing(resources, doorbell):
    def fail() -> None:
        with resources.transaction() as uow:
            add(uow, "lost")
            uow.ring(RING)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert names(resources) == []
    assert doorbell.rings == []


def test_a_rollback_forgets_rows_and_rings_and_the_transaction_can_go_on(resources, doorbell):
    with resources.transaction() as uow:
        add(uow, "lost")
        uow.ring(RING)
        uow.rollback()
        add(uow, "kept")
        uow.ring(TaskName.DELIVERIES_PUMP, countdown=5)
    assert names(resources) == ["kept"]
    assert doorbell.rings == [(TaskName.DELIVERIES_PUMP, 5)]


def test_bells_ring_after_the_commit_when_others_see_the_rows(resources, doorbell):
    seen: list[list[str]] = []
    doorbell.ring = lambda task, *, countdown=0: seen.append(names(resources))
    with resources.transaction() as uow:
        add(uow, "kept")
        uow.ring(RING)
        assert seen == []
    assert seen == [["kept"]]


def test_the_same_ring_twice_is_one(resources, doorbell):
    with resources.transaction() as uow:
        for _ in range(3):
            uow.ring(RING)
            uow.ring(RING, countdown=10)
    assert sorted(doorbell.rings) == [(RING, 0), (RING, 10)]


def test_a_commit_in_between_rings_once(resources, doorbell):
    with resources.transaction() as uow:
        add(uow, "first")
        uow.ring(RING)
        uow.commit()
        assert doorbell.rings == [(RING, 0)]
        add(uow, "second")
    assert doorbell.rings == [(RING, 0)]
    assert names(resources) == ["first", "second"]


def test_statements_and_objects_share_the_transaction(resources):
    with resources.transaction() as uow:
        add(uow, "object")
        count = text("SELECT count(*) FROM workspaces")
        assert uow.connection.scalar(count) == 1
        assert names_of_others(resources) == []
        uow.connection.execute(text("UPDATE workspaces SET name = 'changed'"))
        uow.session.expire_all()
        assert uow.session.scalars(select(Workspace.name)).all() == ["changed"]
    assert names(resources) == ["changed"]


def names_of_others(resources: Resources) -> list[str]:
    """Give what another connection sees."""
    seen: list[list[str]] = []
    thread = threading.Thread(target=lambda: seen.append(names(resources)))
    thread.start()
    thread.join(10)
    return seen[0]


def test_what_is_copied_in_is_committed_and_rolled_back_like_the_rest(resources):
    if resources.database.is_sqlite:
        pytest.skip("COPY is PostgreSQL's")
    copy = "COPY workspaces (id, name, created_at) FROM STDIN"
    with resources.transaction() as uow:
        copy_in(uow.connection, copy, "ws_1\tfirst statement\t2026-01-01\n")
    assert names(resources) == ["first statement"]

    with resources.transaction() as uow:
        copy_in(uow.connection, copy, "ws_2\tlost\t2026-01-01\n")
        uow.rollback()
        copy_in(uow.connection, copy, "ws_3\tsecond\t2026-01-01\n")
    assert names(resources) == ["first statement", "second"]


def test_what_cannot_be_copied_in_fails_like_any_statement(resources):
    from sqlalchemy.exc import DBAPIError, IntegrityError, OperationalError

    if resources.database.is_sqlite:
        pytest.skip("COPY is PostgreSQL's")
    copy = "COPY workspaces (id, name, created_at) FROM STDIN"
    with resources.transaction() as uow:
        with pytest.raises(DBAPIError):
            copy_in(uow.connection, copy, "ws_1\tx\tno time\n")
        uow.rollback()
        with pytest.raises(IntegrityError):
            copy_in(uow.connection, copy, "ws_1\ta\t2026-01-01\nws_1\ta\t2026-01-01\n")
        uow.rollback()
        own = uow.connection.scalar(text("SELECT pg_backend_pid()"))
        with resources.transaction() as other:
            other.connection.execute(text("SELECT pg_terminate_backend(:own)"), {"own": own})
        with pytest.raises(OperationalError):
            copy_in(uow.connection, copy, "ws_1\ta\t2026-01-01\n")
        assert uow.connection.invalidated
        uow.rollback()
        add(uow, "afterwards")
    assert names(resources) == ["afterwards"]


def test_a_block_that_touches_no_database_takes_no_connection(resources, doorbell):
    with resources.transaction() as uow:
        uow.ring(RING)
    assert resources.database.engine.pool.checkedin() == 0
    assert doorbell.rings == [(RING, 0)]


def test_two_writers_on_sqlite_wait_for_each_other(resources):
    if not resources.database.is_sqlite:
        pytest.skip("PostgreSQL has many writers")
    reading, written = threading.Event(), threading.Event()

    def write() -> None:
        with resources.transaction() as uow:
            reading.set()
            add(uow, "second")
        written.set()

    with resources.transaction() as uow:
        add(uow, "first")
        thread = threading.Thread(target=write)
        thread.start()
        assert reading.wait(5)
        assert not written.wait(0.3)
    thread.join(10)
    assert names(resources) == ["first", "second"]
