"""Housekeeping tasks."""

from collections.abc import Iterator
from contextlib import contextmanager

import structlog

from app.api_keys import expiry
from app.core import idempotency
from app.core.actor import Actor
from app.core.unit_of_work import UnitOfWork
from app.endpoints import service as endpoints
from app.events import service as events
from app.events.service import Draft
from config.wire import TaskName
from worker import runtime
from worker.main import celery

log = structlog.get_logger()


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


@celery.task(name=TaskName.ENDPOINTS_FORGET_SECRETS.value)
def forget_ended_secrets() -> None:
    """Delete the signing secrets that were rotated and sign no longer."""
    with _transaction() as uow:
        endpoints.forget_ended_secrets(uow)


@celery.task(name=TaskName.API_KEYS_EXPIRE.value)
def expire_api_keys() -> int:
    """Record and publish what is due to be told of keys that expire or have expired; gives how many notices."""
    total = 0
    while True:
        with _transaction() as uow:
            notices = expiry.give_notices_of_all_workspaces(uow)
            for notice in notices:
                draft = Draft(notice.event_type, notice.data)
                events.publish(uow, workspace_id=notice.workspace_id, draft=draft)
        if not notices:
            break
        total += len(notices)
    if total:
        log.info("api_keys.noticed", notices=total)
    return total
