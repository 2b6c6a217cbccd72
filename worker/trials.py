"""The sending of tests: see app/deliveries/trial.py."""

import time
from collections.abc import Callable
from datetime import UTC, datetime

import structlog
from sqlalchemy.exc import SQLAlchemyError

from app.core.unit_of_work import Resources
from app.deliveries import trial
from app.deliveries.trial import ClaimedTest
from worker import sender as sending
from worker.local_queue import LocalQueue
from worker.request import InFlight, build, conclude, refuse

log = structlog.get_logger()

_LOOK_SECONDS = 0.05
_DATABASE_RETRY_SECONDS = 0.5


def run(resources: Resources, sender: sending.Sender, *, stopping: Callable[[], bool] = lambda: False) -> int:
    """Send tests until none waits, or until told to stop and none is in flight; gives how many were sent."""
    sent, limit = 0, resources.settings.sender_connections
    try:
        while True:
            refused: list[sending.Outcome] = []
            for test in [] if stopping() else _claim(resources, limit=limit - sender.in_flight):
                sent += 1
                # A queue of its own, which is no pump's: no rate limit and no cap holds for tests.
                parts = LocalQueue(test.delivery.endpoint_id, None), test.delivery, test.target
                if test.delivery.error is None:
                    sender.start(build(*parts, datetime.now(UTC)))
                else:
                    refused.append(refuse(*parts, datetime.now(UTC)))
            if outcomes := refused or sender.run(_LOOK_SECONDS if sender.in_flight else 0):
                _record(resources, outcomes, stopping)
            elif not sender.in_flight:
                return sent
    finally:
        # Only after an error of ours: whoever claims later ends what was under way.
        sender.abort()


def _claim(resources: Resources, *, limit: int) -> list[ClaimedTest]:
    try:
        with resources.transaction(write=False) as uow:
            if limit <= 0 or not trial.any_waiting(uow):
                return []
        with resources.transaction() as uow:
            return trial.claim(uow, limit=limit)
    except SQLAlchemyError as error:
        log.warning("deliveries.claim_failed", error=type(error).__name__)
        return []


def _record(resources: Resources, outcomes: list[sending.Outcome], stopping: Callable[[], bool]) -> None:
    """Write what became of tests, however long the database is away; doing it twice writes it once."""
    attempts = []
    for outcome in outcomes:
        assert isinstance(outcome.tag, InFlight)
        attempts.append(conclude(outcome, outcome.tag)[0])
    while True:
        try:
            with resources.transaction() as uow:
                trial.record(uow, attempts=attempts)
        except SQLAlchemyError as error:
            log.warning("deliveries.record_retried", attempts=len(attempts), error=type(error).__name__)
            if stopping():
                return
            time.sleep(_DATABASE_RETRY_SECONDS)
        else:
            log.info("deliveries.tested", attempts=len(attempts))
            return
