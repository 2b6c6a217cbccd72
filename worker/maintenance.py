"""Housekeeping tasks."""

from app.core import idempotency
from config.wire import TaskName
from worker import runtime
from worker.main import celery


@celery.task(name=TaskName.IDEMPOTENCY_PRUNE.value)
def prune_idempotency_keys() -> None:
    """Delete idempotency keys that are no longer honoured."""
    with runtime.resources().transaction() as uow:
        idempotency.prune_all_workspaces(uow)
