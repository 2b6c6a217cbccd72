"""The steps of the delivery engine, each one transaction: fan out, lease, claim, record, release, sweep.

The row is the work: what these functions commit is all that a crash leaves behind. Why queues are leased and rows are
not: docs/decisions/0003.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from datetime import datetime
from typing import Any

from app.core import conditions, json_body
from app.core.ids import new_id
from app.core.unit_of_work import UnitOfWork
from app.deliveries import engine_repository as repository
from app.deliveries import hold_repository, rendering, statistics
from app.deliveries.models import DELIVERY_PREFIX
from app.deliveries.work import DueDelivery, NewAttempt, NewDelivery, Outcome, Quota
from app.endpoints import queues, transitions
from app.endpoints import service as endpoints
from app.endpoints.formats import DEFAULT
from app.endpoints.health import Tally
from app.endpoints.queues import LeasedQueue
from app.endpoints.service import Target
from app.endpoints.subscriptions import wants
from app.events import service as events
from config.wire import TaskName

FAN_OUT_EVENTS = 1000
# A transaction of fan-out stays this small even where every event goes to hundreds of endpoints.
_FAN_OUT_DELIVERIES = 10_000


def fan_out(uow: UnitOfWork) -> int:
    """Make the deliveries of a batch of events, for the caller to pump; gives how many events, 0 when none waits."""
    waiting = events.claim_fan_outs(uow, limit=FAN_OUT_EVENTS)
    return fan_out_claimed(uow, waiting=waiting) if waiting else 0


def fan_out_claimed(uow: UnitOfWork, *, waiting: Sequence[tuple[str, str, str]]) -> int:
    """Make the deliveries of claimed events, (workspace id, event id, type); gives of how many. The rest waits."""
    subscriptions = defaultdict(list)
    for subscription in endpoints.list_subscriptions(uow, workspace_ids={row[0] for row in waiting}):
        subscriptions[subscription.workspace_id].append(subscription)
    bodies, documents = _documents(uow, waiting, subscriptions)
    subscribed: dict[tuple[str, str], tuple[list[Any], list[Any]]] = {}
    deliveries: list[NewDelivery] = []
    renderer, rendered = rendering.Renderer(uow), []
    for index, (workspace_id, event_id, event_type) in enumerate(waiting):
        if len(deliveries) >= _FAN_OUT_DELIVERIES or renderer.is_spent:
            events.put_back_fan_outs(uow, rows=waiting[index:])
            waiting = waiting[:index]
            break
        found = subscribed.get((workspace_id, event_type))
        if found is None:
            wanting = [each for each in subscriptions[workspace_id] if wants(each.events, event_type)]
            found = (wanting, [each for each in wanting if each.format != DEFAULT])
            subscribed[workspace_id, event_type] = found
        wanting, formatted = found
        made = len(deliveries)
        deliveries += [
            (event_id, each.id, new_id(DELIVERY_PREFIX), workspace_id, event_type)
            for each in wanting
            if each.filter is None or conditions.matches(each.filter, documents[event_id])
        ]
        if formatted:
            getting = {delivery[1] for delivery in deliveries[made:]}
            rendered += [
                renderer.render(each, event_id, documents[event_id], bodies[event_id])
                for each in formatted
                if each.id in getting
            ]
    if deliveries:
        repository.insert_deliveries(uow, deliveries)
        if rendered:
            rendering.keep(uow, rows=rendered)
        queues.wake(uow, endpoint_ids={delivery[1] for delivery in deliveries}, through_hold=False)
    return len(waiting)


def lease_queues(uow: UnitOfWork, *, lease_id: str, limit: int) -> list[LeasedQueue]:
    """Lease queues that have something due."""
    return queues.lease_due(uow, lease_id=lease_id, limit=limit)


def refresh_targets(uow: UnitOfWork, *, known: dict[str, Target | None]) -> dict[str, Target | None]:
    """Give the current configuration of leased endpoints; None for one that is gone."""
    return endpoints.refresh_targets(uow, known=known)


def claim(uow: UnitOfWork, *, quotas: Sequence[Quota], held: Collection[str]) -> list[DueDelivery]:
    """Give due deliveries of leased queues. `held` are those that the pump has and has not recorded."""
    on_hold = [quota for quota in quotas if quota.on_hold]
    if not on_hold:
        return repository.list_due(uow, quotas, held)
    due = []
    if free := [quota for quota in quotas if not quota.on_hold]:
        due = repository.list_due(uow, free, held)
    for quota in on_hold:
        event_ids = hold_repository.list_due(uow, quota.endpoint_id, quota.first_attempts)
        if event_ids:
            due += repository.list_by_events(uow, quota.endpoint_id, event_ids)
    return due


def take_bodies(uow: UnitOfWork, *, due: list[DueDelivery]) -> list[DueDelivery]:
    """Give what was claimed with the bodies that were rendered for it, and without what still has to wait for one."""
    formatted = [each for each in due if each.formatted]
    ready = {each.id for each in rendering.take(uow, due=formatted)}
    return [each for each in due if not each.formatted or each.id in ready]


def record(
    uow: UnitOfWork,
    *,
    lease_id: str,
    finished: Sequence[tuple[NewAttempt, Outcome]],
    probes: Collection[str] = (),
) -> dict[str, bool]:
    """Write attempts and what they mean for their deliveries and endpoints; `probes` has the deliveries that are such.

    Gives whether endpoints are held that are or were till now.
    Raises `LeaseLost`, and then nothing may be committed, when a queue was taken over by another pump.
    """
    repository.insert_attempts(uow, [attempt for attempt, _ in finished])
    attempted: dict[str, Tally] = {}
    for attempt, _ in finished:
        tally = attempted.get(attempt.endpoint_id)
        if tally is None:
            tally = attempted[attempt.endpoint_id] = Tally(attempt.started_at)
        if attempt.error_code is None:
            tally.succeed(attempt.started_at)
        else:
            tally.fail(attempt.started_at, attempt.error_code, attempt.status_code)
        if probes and attempt.delivery_id in probes:
            tally.probed = True
    # As late as can be, so that the queues' rows are locked briefly; but queues before deliveries, as a deletion does:
    # the other way round the two would wait for each other in a circle.
    healths, moment = queues.fence(uow, lease_id=lease_id, attempted=attempted)
    statistics.count(uow, [attempt for attempt, _ in finished])
    repository.update_deliveries(uow, [outcome for _, outcome in finished])
    on_hold = transitions.settle(uow, healths=healths, tallies=attempted, moment=moment)
    for endpoint_id, still in on_hold.items():
        if not still:
            hold_repository.order_by_age(uow, endpoint_id)
    return on_hold


def is_recorded(uow: UnitOfWork, *, attempt_id: str) -> bool:
    """Tell whether an attempt of this pump's is in the log, and with it the batch that it was recorded in."""
    return repository.has_attempt(uow, attempt_id)


def renew(uow: UnitOfWork, *, lease_id: str, endpoint_ids: Collection[str]) -> set[str]:
    """Prolong leases; gives the endpoints that are still held."""
    return queues.renew(uow, lease_id=lease_id, endpoint_ids=endpoint_ids)


def release(
    uow: UnitOfWork,
    *,
    lease_id: str,
    rate_limits: dict[str, datetime | None],
    inactive: Collection[str] = (),
    not_before: dict[str, datetime] | None = None,
    versions: dict[str, datetime] | None = None,
) -> None:
    """Give queues back, each due when its earliest delivery is; one that is held, when its next probe is.

    `rate_limits` has every queue to release, with its rate limit's state; `inactive` are those of paused endpoints, and
    `not_before` defers queues whose rate limit is used up. Both hold only for endpoints that still have the version
    by which they were judged: one that was resumed meanwhile has been woken already, and would sleep on.
    """
    held = queues.hold(uow, lease_id=lease_id, endpoint_ids=rate_limits)
    if not held:
        return
    # A statement of its own after the lock: it sees what a fan-out that held the lock has committed.
    due = repository.next_due(uow, list(held))
    for endpoint_id, probe_at in held.items():
        if probe_at is not None and endpoint_id in due:
            through = hold_repository.next_due(uow, endpoint_id)
            probe = max(due[endpoint_id], probe_at)
            due[endpoint_id] = probe if through is None else min(probe, through)
    deferred = {endpoint_id for endpoint_id in held if endpoint_id in {*inactive, *(not_before or {})}}
    if deferred:
        current = endpoints.list_versions(uow, endpoint_ids=deferred)
        deferred = {each for each in deferred if current.get(each) == (versions or {}).get(each)}
    times: dict[str, tuple[datetime | None, datetime | None]] = {}
    for endpoint_id in held:
        due_at = due.get(endpoint_id)
        if endpoint_id in deferred and due_at is not None:
            floor = (not_before or {}).get(endpoint_id, due_at)
            due_at = None if endpoint_id in inactive else max(due_at, floor)
        times[endpoint_id] = (due_at, rate_limits[endpoint_id])
    queues.release(uow, due=times)


def any_due(uow: UnitOfWork) -> bool:
    """Tell whether something is due that no pump serves."""
    return queues.any_due(uow)


def sweep_events(uow: UnitOfWork) -> None:
    """Ring for events that no doorbell announced."""
    if events.any_fan_out(uow):
        uow.ring(TaskName.EVENTS_FAN_OUT)


def sweep_deliveries(uow: UnitOfWork) -> None:
    """Ring for deliveries that no doorbell announced: long waits, a lost broker, a dead worker's leases."""
    if queues.any_due(uow):
        uow.ring(TaskName.DELIVERIES_PUMP)


def requeue(uow: UnitOfWork) -> int:
    """Schedule queues that have pending deliveries but are not scheduled; gives how many.

    The invariant of `EndpointQueue` says that there are none. This is the net under it.
    """
    resting = queues.list_resting_all_workspaces(uow)
    stranded = repository.next_due(uow, resting) if resting else {}
    if stranded:
        queues.wake(uow, endpoint_ids=stranded)
        uow.ring(TaskName.DELIVERIES_PUMP)
    return len(stranded)


def _documents(
    uow: UnitOfWork, waiting: Iterable[tuple[str, str, str]], subscriptions: dict[str, list[Any]]
) -> tuple[dict[str, bytes], dict[str, object]]:
    """Give bodies and envelopes for filters and formats; those of workspaces that have neither are not read."""
    read = {
        workspace_id
        for workspace_id, rows in subscriptions.items()
        if any(row.filter is not None or row.format != DEFAULT for row in rows)
    }
    ids = [event_id for workspace_id, event_id, _ in waiting if workspace_id in read]
    bodies = repository.list_bodies(uow, ids) if ids else {}
    return bodies, {event_id: json_body.read_stored(body) for event_id, body in bodies.items()}
