"""Send test: a sample event goes to one endpoint now, on the way of real deliveries, while whoever asked waits.

The API makes an event that is fanned out to nobody, a delivery without a place in its endpoint's queue, and a pending
test, which a worker claims, sends and records. So paused and failing endpoints can be tested too, and a test changes
nothing of an endpoint's health, queue or rate limit. It is sent at most once, whatever dies.
"""

import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from app.core.errors import AppError, NotFound, RateLimited
from app.core.ids import new_id
from app.core.unit_of_work import UnitOfWork
from app.deliveries import engine_repository, rendering, repository, service
from app.deliveries import trial_repository as tests
from app.deliveries.models import ATTEMPT_PREFIX, DELIVERY_PREFIX, AttemptStatus, DeliveryStatus, Trigger
from app.deliveries.service import AttemptView
from app.deliveries.work import DueDelivery, NewAttempt, Outcome
from app.endpoints import service as endpoints
from app.endpoints.policy import MAX_TIMEOUT_SECONDS, read_policy
from app.endpoints.service import Target
from app.endpoints.subscriptions import wants
from app.events import service as events
from app.events.catalogue import BUILT_IN
from app.events.service import Draft
from config.wire import TaskName

DEFAULT_TYPE = "message.received"
CLAIMED_WITHIN_SECONDS = 6.0  # else there is no worker
# Beyond the policy's timeout, for what stands around the POST.
_RECORDED_WITHIN_SECONDS = 5.0
_LOOK_SECONDS = 0.05
# When whoever asked has died with its process: nobody would read the answer of a test that is sent so late.
_UNCLAIMED_LASTS = timedelta(seconds=CLAIMED_WITHIN_SECONDS + 4)
# When the worker has died: longer than any attempt takes.
_CLAIM_LASTS = timedelta(seconds=MAX_TIMEOUT_SECONDS + 15)
# Error code and detail of attempts that are our fault.
_INTERRUPTED = (
    "interrupted",
    "Our worker ended while it sent this test, which may have arrived. Send another one.",
)
_UNREADABLE = (
    "secrets_unreadable",
    "The endpoint's signing secret cannot be read. The fault is ours and not the endpoint's: contact support.",
)


class TooManyTests(RateLimited):
    """As many tests as may be under way at once are; nothing was sent, and the request can be sent again."""

    code = "too_many_tests"
    title = "Too many tests at once"


class NoWorker(AppError):
    """No worker has taken up the test; nothing was sent, and the request can be sent again."""

    status = 503
    code = "no_worker"
    title = "No worker is there to send the test"


class InterruptedTest(AppError):
    """The worker that sent the test did not say in time how it ended; the endpoint may have got it."""

    status = 503
    code = "test_interrupted"
    title = "How the test ended is not known"


@dataclass(frozen=True, slots=True)
class ClaimedTest:
    """A test to send now."""

    delivery: DueDelivery
    target: Target


def send(
    uow: UnitOfWork,
    *,
    workspace_id: str,
    endpoint_id: str,
    event_type: str | None = None,
    data: dict[str, Any] | None = None,
) -> AttemptView:
    """Send a test and give its attempt, also a failed one. The endpoint's filter and its state are not looked at.

    Commits by itself and gives the connection back: no transaction is open while it waits. Raises `NotFound`, what
    publishing raises, `TooManyTests`, `NoWorker` or `InterruptedTest`.
    """
    places = uow.resources.waiting_tests
    if not places.acquire(blocking=False):
        raise TooManyTests("Wait for a test that is under way to end.", retry_after_seconds=1)
    try:
        delivery_id, timeout_seconds = _make(uow, workspace_id, endpoint_id, event_type, data)
        uow.ring(TaskName.DELIVERIES_SEND_TESTS)
        uow.commit()
        uow.close()
        _wait(uow, workspace_id, delivery_id, timeout_seconds)
    finally:
        places.release()
    attempts = repository.list_attempts_of_delivery(uow.session, workspace_id, delivery_id)
    if not attempts:
        raise NotFound  # the endpoint was deleted before the test was sent
    return service.views(uow, attempts)[0]


def _make(
    uow: UnitOfWork, workspace_id: str, endpoint_id: str, event_type: str | None, data: dict[str, Any] | None
) -> tuple[str, int]:
    """Make a test; gives the id of its delivery, and the endpoint's timeout in seconds."""
    endpoint = endpoints.find(uow, workspace_id=workspace_id, endpoint_id=endpoint_id)
    name = event_type or next((name for name in BUILT_IN if wants(endpoint.events, name)), DEFAULT_TYPE)
    if data is None:
        data = events.example(uow, workspace_id=workspace_id, name=name)
    event = events.make_unpublished(uow, workspace_id=workspace_id, draft=Draft(name, data))
    delivery_id = new_id(DELIVERY_PREFIX)
    rendering.prepare(uow, event_id=event.id, endpoint_ids=[endpoint_id])
    tests.insert_test(
        uow.session,
        {
            "id": delivery_id,
            "workspace_id": workspace_id,
            "event_id": event.id,
            "event_type": name,
            "endpoint_id": endpoint_id,
        },
    )
    return delivery_id, read_policy(endpoint.policy).timeout_seconds


def _wait(uow: UnitOfWork, workspace_id: str, delivery_id: str, timeout_seconds: float) -> None:
    """Wait until a test is finished; raises `NoWorker` or `InterruptedTest`."""
    started = time.monotonic()
    claimed = None
    while True:
        time.sleep(_LOOK_SECONDS)
        with uow.resources.transaction(write=False) as looking:
            test = tests.find_test(looking.session, workspace_id, delivery_id)
        if test is None:
            return
        moment = time.monotonic()
        if test.claimed_at is not None:
            claimed = claimed or moment
            if moment - claimed > timeout_seconds + _RECORDED_WITHIN_SECONDS:
                raise InterruptedTest(f"Within a minute, delivery {delivery_id} tells what is known.")
        elif moment - started > CLAIMED_WITHIN_SECONDS and _withdraw(uow, workspace_id, delivery_id):
            raise NoWorker(
                "Start a worker, or try again in a moment: nothing was sent.", headers={"Retry-After": "5"}
            )


def _withdraw(uow: UnitOfWork, workspace_id: str, delivery_id: str) -> bool:
    with uow.resources.transaction() as withdrawing:
        test = tests.withdraw_test(withdrawing.session, workspace_id, delivery_id)
        if test is not None:
            tests.cancel(withdrawing.session, test)
    return test is not None


def any_waiting(uow: UnitOfWork) -> bool:
    """Tell whether `claim` has something to do."""
    return any(
        claimed_at is None or claimed_at < moment - _CLAIM_LASTS
        for claimed_at, moment in tests.list_claims_all_workspaces(uow.session)
    )


def claim(uow: UnitOfWork, *, limit: int) -> list[ClaimedTest]:
    """Give tests to send now, and end those that nobody will: for which no worker came, or whose worker died."""
    _end_stale(uow)
    rows = tests.claim_all_workspaces(uow.session, limit)
    if not rows:
        return []
    targets = _targets(uow, rows)
    sampled = tests.list_events_all_workspaces(uow.session, [row.event_id for row in rows])
    due: list[DueDelivery] = []
    for row in rows:
        target, event = targets[row.endpoint_id], sampled.get(row.event_id)
        if target is None or event is None:
            tests.take_claimed_all_workspaces(uow.session, [row.delivery_id])
            tests.cancel(uow.session, row)
        elif not target.signing_keys:
            record(uow, attempts=[_unsent(row, event, target, *_UNREADABLE)])
        else:
            due.append(_due(row, event))
    ready = rendering.take(uow, due=due)
    # There was no time to render the others, which are claimed again.
    tests.give_back_all_workspaces(uow.session, {each.id for each in due} - {each.id for each in ready})
    return [ClaimedTest(each, target) for each in ready if (target := targets[each.endpoint_id])]


def record(uow: UnitOfWork, *, attempts: Sequence[NewAttempt]) -> None:
    """Write the attempts of tests, each once, and finish their deliveries: a test that failed is not tried again."""
    taken = tests.take_claimed_all_workspaces(uow.session, [attempt.delivery_id for attempt in attempts])
    _finish(uow, [attempt for attempt in attempts if attempt.delivery_id in taken])


def _end_stale(uow: UnitOfWork) -> None:
    moment = tests.database_time(uow.session)
    stale = tests.take_stale_all_workspaces(
        uow.session, unclaimed_since=moment - _UNCLAIMED_LASTS, claimed_since=moment - _CLAIM_LASTS
    )
    if not stale:
        return
    targets = _targets(uow, stale)
    sampled = tests.list_events_all_workspaces(uow.session, [row.event_id for row in stale])
    interrupted = []
    for row in stale:
        target = targets[row.endpoint_id]
        if row.claimed_at is None or target is None or row.event_id not in sampled:
            tests.cancel(uow.session, row)
        else:
            interrupted.append(_unsent(row, sampled[row.event_id], target, *_INTERRUPTED))
    _finish(uow, interrupted)


def _targets(uow: UnitOfWork, rows: Collection[Any]) -> dict[str, Target | None]:
    unknown: dict[str, Target | None] = {row.endpoint_id: None for row in rows}
    return endpoints.refresh_targets(uow, known=unknown)


def _due(row: Any, event: Any) -> DueDelivery:
    return DueDelivery(
        id=row.delivery_id,
        endpoint_id=row.endpoint_id,
        workspace_id=row.workspace_id,
        event_id=row.event_id,
        event_type=event.type,
        attempt_count=0,
        trigger=Trigger.TEST.value,
        body=event.body,
        is_retry=False,
        next_attempt_at=row.created_at,
    )


def _unsent(row: Any, event: Any, target: Target, error_code: str, error_detail: str) -> NewAttempt:
    """Give the attempt of a test of which nothing is known to have been sent."""
    return NewAttempt(
        id=new_id(ATTEMPT_PREFIX),
        workspace_id=row.workspace_id,
        delivery_id=row.delivery_id,
        event_id=row.event_id,
        event_type=event.type,
        endpoint_id=row.endpoint_id,
        number=1,
        trigger=Trigger.TEST.value,
        status=AttemptStatus.FAILED.value,
        status_code=None,
        duration_ms=0,
        error_code=error_code,
        error_detail=error_detail,
        started_at=row.claimed_at,
        url=target.url,
        request_headers="[]",
        response_headers="[]",
        response_body=b"",
        response_truncated=False,
    )


def _finish(uow: UnitOfWork, attempts: Sequence[NewAttempt]) -> None:
    if not attempts:
        return
    engine_repository.insert_attempts(uow, attempts)
    engine_repository.update_deliveries(
        uow,
        [
            Outcome(
                attempt.event_id,
                attempt.endpoint_id,
                attempt.trigger,
                DeliveryStatus.SUCCEEDED
                if attempt.status == AttemptStatus.SUCCESS
                else DeliveryStatus.FAILED,
                attempt.number,
                None,
            )
            for attempt in attempts
        ],
    )
