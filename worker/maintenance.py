"""Housekeeping tasks."""

from app.core import idempotency
from app.endpoints import service as endpoints
from config.wire import TaskName
from worker import runtime
from worker.main import celery


@celery.task(name=TaskName.IDEMPOTENCY_PRUNE.value)
def prune_idempotency_keys() -> None:
    """Delete idempotency keys that are no longer honoured."""
    with runtime.resources().transaction() as uow:
        idempotency.prune_all_workspaces(uow)


@celery.task(name=TaskName.ENDPOINTS_FORGET_SECRETS.value)
def forget_ended_secrets() -> None:
    """Delete the signing secrets that were rotated and sign no longer."""
    with runtime.resources().transaction() as uow:
        endpoints.forget_ended_secrets(uow)
