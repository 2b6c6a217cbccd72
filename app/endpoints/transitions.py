"""What an endpoint's attempts change: its status, its hold, and who is told. The rules are in health.py."""

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

from app.audit import service as audit
from app.core.clock import format_time
from app.core.unit_of_work import UnitOfWork
from app.endpoints import health as rules
from app.endpoints import queues, repository
from app.endpoints.health import Health, Tally
from app.endpoints.models import Endpoint, EndpointStatus
from app.endpoints.policy import read_policy
from app.events import service as events
from app.events.service import Draft
from config.wire import TaskName

_EVENTS = {
    EndpointStatus.ACTIVE: "endpoint.recovered",
    EndpointStatus.FAILING: "endpoint.failing",
    EndpointStatus.DISABLED: "endpoint.disabled",
}


def settle(
    uow: UnitOfWork, *, healths: Mapping[str, Health], tallies: Mapping[str, Tally], moment: datetime
) -> dict[str, bool]:
    """Draw the consequences of a recorded batch; gives whether endpoints are held that are or were till now.

    The caller holds their queues. Each change of status is told by one event, in the transaction that makes it. An
    endpoint that somebody is changing at this moment is left for its next batch: they lock it before its queue, so to
    wait for them here would be a circle.
    """
    days = uow.resources.settings.disable_after_days
    disable_after = timedelta(days=days) if days else None
    found = [
        endpoint_id
        for endpoint_id, health in healths.items()
        if rules.may_change(health, tallies[endpoint_id], moment, disable_after)
    ]
    if not found:
        return {}
    settled = {}
    for row in repository.lock_unlocked_all_workspaces(uow.session, found):
        before, tally, policy = healths[row.id], tallies[row.id], read_policy(row.policy)
        after, status = rules.judge(
            before,
            EndpointStatus(row.status),
            policy=policy,
            tally=tally,
            moment=moment,
            disable_after=disable_after,
        )
        if after != before:
            queues.set_health(uow, endpoint_id=row.id, health=after)
        if after.probe_at is not None and after.probe_at != before.probe_at:
            uow.ring(TaskName.DELIVERIES_PUMP, countdown=(after.probe_at - moment).total_seconds())
        if before.probe_at is not None or after.probe_at is not None:
            settled[row.id] = after.probe_at is not None
        if status != row.status:
            row.status = status.value
            row.status_reason = rules.reason(after, status, tally)
            row.updated_at = moment
            uow.session.flush()
            since = before.failing_since if status is EndpointStatus.ACTIVE else after.failing_since
            _tell(uow, row, after.failures_in_row, since)
    return settled


def _tell(uow: UnitOfWork, row: Endpoint, failures_in_row: int, since: datetime | None) -> None:
    status = EndpointStatus(row.status)
    data: dict[str, Any] = {
        "endpoint_id": row.id,
        "url": row.url,
        "description": row.description,
        "status": status.value,
        "reason": row.status_reason,
        "failures_in_row": failures_in_row,
        "since": format_time(since) if since else None,
    }
    events.publish(uow, workspace_id=row.workspace_id, draft=Draft(_EVENTS[status], data))
    if status is EndpointStatus.DISABLED:
        audit.record(
            uow,
            workspace_id=row.workspace_id,
            action="endpoint.disabled",
            resource_id=row.id,
            changed=["status"],
        )
