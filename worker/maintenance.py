"""Housekeeping tasks."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime

import structlog

from app.api_keys import expiry
from app.core import idempotency
from app.core.actor import Actor
from app.core.unit_of_work import UnitOfWork
from app.deliveries import retention
from app.deliveries.retention import OldRows
from app.endpoints import service as endpoints
from app.events import service as events
from app.events.service import Draft
from config.wire import TaskName
from worker import runtime
from worker.main import celery

log = structlog.get_logger()

# Between batches of a deletion: on SQLite whoever waits for the one write lock looks for it every so often.
_PAUSE_SECONDS = 0.1


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


@celery.task(name=TaskName.RETENTION_APPLY.value)
def apply_retention() -> None:
    """Delete what is older than it is kept, and make the partitions of the days to come."""
    resources = runtime.resources()
    limit = retention.limit_of(resources)
    with _transaction() as uow:
        missing = retention.create_ahead(uow)
    if missing:
        log.warning("retention.partitions_missing", partitions=missing)
    _delete_all(retention.old_external_ids(limit))
    if not resources.database.is_sqlite:
        _drop_partitions(limit)
    with resources.transaction(write=False) as uow:
        old_rows = retention.list_old_rows(uow, limit=limit)
    for rows in old_rows:
        _delete_all(rows)


def _drop_partitions(limit: datetime) -> None:
    with runtime.resources().transaction(write=False) as uow:
        old = retention.list_partitions(uow, limit=limit)
    busy = set()
    for table, day in old:
        if table in busy:
            continue  # each further try would hold others up as well
        with _transaction() as uow:
            dropped = retention.drop_partition(uow, of=table, day=day)
        log.info(
            "retention.partition_dropped" if dropped else "retention.partition_busy",
            partition=table.partition(day),
        )
        if not dropped:
            busy.add(table)


def _delete_all(rows: OldRows) -> None:
    after = None
    while True:
        with _transaction() as uow:
            after = retention.delete_batch(uow, rows=rows, after=after)
        if after is None:
            return
        time.sleep(_PAUSE_SECONDS)


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
