"""Housekeeping tasks."""

from collections.abc import Iterator
from contextlib import contextmanager

from app.core import idempotency
from app.core.actor import Actor
from app.core.unit_of_work import UnitOfWork
from config.wire import TaskName
from worker import runtime
from worker.main import celery


@contextmanager
def _transaction() -> Iterator[UnitOfWork]:
    """Give a transaction of beat's: its changes are recorded as such."""
    with runtime.resources().transaction() as uow:
        uow.actor = Actor("beat")
        yield uow


@celery.task(name=TaskName.IDEMPOTENCY_PRUNE.value)
def prune_idempotency_keys() -> None:
    """Delete idempotency keys that are no longer honoured."""
    with _transaction() as uow:
        idempotency.prune_all_workspaces(uow)
