"""Recovery: restart all of an endpoint's failed deliveries of a span of time, by a job in the database.

A job is advanced in steps, a transaction each, which holds the job's row until its commit: no two workers do the same
step, and one that dies has done nothing of it. First it counts, then it restarts, each delivery at most once, however
that ends. A delivery is in the span when it was made in it, which is when its event was published or replayed.

Fresh events come first: never more than `PENDING_AT_ONCE` of an endpoint's restarted deliveries are due at a time, and
pumps take them for retries, which leave a quarter of an endpoint's slots free.
"""

from datetime import datetime, timedelta

from app.audit import service as audit
from app.core.clock import now
from app.core.errors import Conflict, NotFound, invalid_field
from app.core.ids import first_id_at, new_id
from app.core.pagination import Page, PageRequest, page_of
from app.core.unit_of_work import UnitOfWork
from app.deliveries import redelivery_repository as repository
from app.deliveries import rendering
from app.deliveries.models import (
    DELIVERY_PREFIX,
    RECOVERY_PREFIX,
    DeliveryStatus,
    Recovery,
    RecoveryStatus,
)
from app.endpoints import queues
from app.endpoints import service as endpoints
from config.wire import TaskName

MAX_AGE = timedelta(days=14)
STEP_DELIVERIES = 2000  # looked at in one transaction
PENDING_AT_ONCE = 300
_PAUSE = timedelta(seconds=1)
# While an endpoint takes nothing, being paused or held; the sweep finds it.
_LONG_PAUSE = timedelta(seconds=5)


class RecoveryRunning(Conflict):
    """An endpoint has one recovery at a time: wait for it, or cancel it."""

    code = "recovery_running"
    title = "A recovery of this endpoint is running"


class RecoveryDone(Conflict):
    """What has been done cannot be canceled."""

    code = "recovery_done"
    title = "The recovery is done"


def start(
    uow: UnitOfWork,
    *,
    workspace_id: str,
    endpoint_id: str,
    since: datetime,
    until: datetime | None = None,
    dry_run: bool = False,
) -> Recovery:
    """Start to recover what was made from `since` until `until`, which is now at the latest; a dry run only counts.

    Where the first step has counted all, `matched` is complete in the answer. Raises `NotFound`, `Invalid` or
    `RecoveryRunning`.
    """
    endpoints.find(uow, workspace_id=workspace_id, endpoint_id=endpoint_id)
    moment = now()
    until = min(until or moment, moment)
    if since < moment - MAX_AGE:
        raise invalid_field("/since", "too_old", f"Go back by up to {MAX_AGE.days} days.")
    if since >= until:
        raise invalid_field("/since", "not_before_until", "`since` is before `until`, and before now.")
    recovery_id = new_id(RECOVERY_PREFIX)
    row = {
        "id": recovery_id,
        "workspace_id": workspace_id,
        "endpoint_id": endpoint_id,
        "since": since,
        "until": until,
        "dry_run": dry_run,
        "cursor": _first_cursor(since),
        "next_step_at": moment,
        "created_at": moment,
    }
    if not repository.add_recovery(uow, row):
        raise RecoveryRunning
    recovery = get(uow, workspace_id=workspace_id, endpoint_id=endpoint_id, recovery_id=recovery_id)
    _count(uow, recovery, moment)
    uow.session.flush()
    uow.ring(TaskName.RECOVERIES_ADVANCE)
    audit.record(uow, workspace_id=workspace_id, action="endpoint.recovery_started", resource_id=endpoint_id)
    return recovery


def get(
    uow: UnitOfWork, *, workspace_id: str, endpoint_id: str, recovery_id: str, lock: bool = False
) -> Recovery:
    """Give a recovery; raises `NotFound`."""
    endpoints.find(uow, workspace_id=workspace_id, endpoint_id=endpoint_id)
    recovery = repository.find_recovery(uow.session, workspace_id, endpoint_id, recovery_id, lock=lock)
    if recovery is None:
        raise NotFound
    return recovery


def list_recoveries(
    uow: UnitOfWork, *, workspace_id: str, endpoint_id: str, page: PageRequest
) -> Page[Recovery]:
    """Give a page of an endpoint's recoveries, newest first; raises `NotFound`."""
    endpoints.find(uow, workspace_id=workspace_id, endpoint_id=endpoint_id)
    return page_of(repository.list_recoveries(uow.session, workspace_id, endpoint_id, page), page)


def cancel(uow: UnitOfWork, *, workspace_id: str, endpoint_id: str, recovery_id: str) -> Recovery:
    """Do no further step; what is restarted already goes on. Once more changes nothing.

    Raises `NotFound` or `RecoveryDone`.
    """
    recovery = get(
        uow, workspace_id=workspace_id, endpoint_id=endpoint_id, recovery_id=recovery_id, lock=True
    )
    if recovery.status == RecoveryStatus.DONE:
        raise RecoveryDone
    if recovery.status == RecoveryStatus.RUNNING:
        _finish(recovery, RecoveryStatus.CANCELED, now())
        uow.session.flush()
        audit.record(
            uow, workspace_id=workspace_id, action="endpoint.recovery_canceled", resource_id=endpoint_id
        )
    return recovery


def any_due(uow: UnitOfWork) -> bool:
    """Tell whether a recovery of any workspace has a step to do."""
    return repository.any_recovery_due(uow.session)


def advance(uow: UnitOfWork) -> bool:
    """Do one step of the recovery of any workspace that has waited longest; False when none is due."""
    claimed = repository.claim_recovery_all_workspaces(uow.session)
    if claimed is None:
        return False
    recovery, moment = claimed
    recovery.next_step_at = moment  # behind all others that are due
    if recovery.counted:
        _restart(uow, recovery, moment)
    else:
        _count(uow, recovery, moment)
    uow.session.flush()
    return True


def _count(uow: UnitOfWork, recovery: Recovery, moment: datetime) -> None:
    scanned = repository.scan(uow.session, recovery, limit=STEP_DELIVERIES)
    recovery.matched += len(scanned.failed)
    if scanned.last_id is not None:
        recovery.cursor = scanned.last_id
        return
    recovery.counted = True
    recovery.cursor = _first_cursor(recovery.since)
    if recovery.dry_run or recovery.matched == 0:
        _finish(recovery, RecoveryStatus.DONE, moment)


def _restart(uow: UnitOfWork, recovery: Recovery, moment: datetime) -> None:
    waiting = repository.count_due_retries(uow.session, recovery.endpoint_id, limit=PENDING_AT_ONCE)
    room = PENDING_AT_ONCE - waiting
    if room == 0 or queues.is_held(uow, endpoint_id=recovery.endpoint_id):
        recovery.next_step_at = moment + _LONG_PAUSE
        return
    scanned = repository.scan(uow.session, recovery, limit=STEP_DELIVERIES)
    failed = scanned.failed[:room]
    if failed and not _restart_these(uow, recovery, [event_id for _, event_id in failed]):
        _finish(recovery, RecoveryStatus.CANCELED, moment)
    elif len(failed) < len(scanned.failed):
        recovery.cursor = failed[-1][0]
        recovery.next_step_at = moment + _PAUSE
        uow.ring(TaskName.RECOVERIES_ADVANCE, countdown=_PAUSE.total_seconds())
    elif scanned.last_id is not None:
        recovery.cursor = scanned.last_id
    else:
        _finish(recovery, RecoveryStatus.DONE, moment)


def _restart_these(uow: UnitOfWork, recovery: Recovery, event_ids: list[str]) -> bool:
    """Restart the deliveries of these events; False when the endpoint is gone."""
    held = repository.hold_payloads(uow.session, recovery.workspace_id, event_ids)
    if not queues.wake(uow, endpoint_ids=[recovery.endpoint_id], through_hold=False):
        return False
    rendering.renew(uow, deliveries=[(event_id, recovery.endpoint_id) for event_id in held])
    recovery.done += repository.restart(
        uow.session,
        recovery.workspace_id,
        held,
        [recovery.endpoint_id],
        statuses=[DeliveryStatus.FAILED],
        is_retry=True,
    )
    # What has failed since it was counted is restarted too.
    recovery.matched = max(recovery.matched, recovery.done)
    uow.ring(TaskName.DELIVERIES_PUMP)
    return True


def _first_cursor(since: datetime) -> str:
    return first_id_at(DELIVERY_PREFIX, since)


def _finish(recovery: Recovery, status: RecoveryStatus, moment: datetime) -> None:
    recovery.status = status.value
    recovery.finished_at = moment
