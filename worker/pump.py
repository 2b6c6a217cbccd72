"""The pump: leases queues, claims their due deliveries ahead, keeps the sender full, records what finished.

Three threads, one stream: the claimer and the recorder wait on the database while the caller's thread drives the
sender; none waits for a whole batch. A pump keeps no state that the rows do not have: killed at any point, its leases
run out and another pump sends again what was not recorded.
"""

import os
import socket
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import structlog
from sqlalchemy.exc import IntegrityError, SQLAlchemyError

from app.core.ids import new_id
from app.core.unit_of_work import Resources
from app.deliveries import engine
from app.deliveries.work import DueDelivery, NewAttempt, Outcome, Quota
from app.endpoints.queues import LEASE_SECONDS, LeaseLost
from app.endpoints.service import Target
from config.wire import TaskName
from worker import sender as sending
from worker.local_queue import LocalQueue
from worker.request import InFlight, build, conclude, refuse

log = structlog.get_logger()

CLAIM_ROWS = 1000  # rows of one claim, over all queues
BUFFER_ROWS = 2000  # claimed and not yet sent, over all queues
BUFFER_BYTES = 64 * 1024 * 1024
SPARE_PART = 4  # the last quarter of the connections is for queues that have few in flight
LEASE_QUEUES = 50  # taken at once; a pump whose buffer is full takes no more, so that others get some
MAX_QUEUES = 1000
QUEUE_TURN_SECONDS = 10.0  # then a queue is given back, so that pumps that came later get their share
TARGETS_REFRESHED_EVERY = 0.5
RENEWED_EVERY = 10.0
LEASED_EVERY = 0.03  # while there are others to serve
CLAIMED_EVERY = 0.01  # while nothing new was found
RECORD_ROWS = 1000
RECORD_WAIT_SECONDS = 0.015
_DATABASE_RETRY_SECONDS = 0.5

_Finished = tuple[NewAttempt, Outcome, LocalQueue]


class Pump:
    """One run over everything that is due."""

    def __init__(
        self, resources: Resources, sender: sending.Sender, *, stopping: Callable[[], bool] = lambda: False
    ) -> None:
        self._resources = resources
        self._sender = sender
        self._stopping = stopping
        self._lease_id = f"{socket.gethostname()}:{os.getpid()}:{new_id('lease')}"
        self._lock = threading.Lock()
        self._queues: dict[str, LocalQueue] = {}
        # Deliveries that were claimed and are not recorded: per endpoint, whether retries.
        self._held: defaultdict[tuple[str, bool], set[str]] = defaultdict(set)
        self._buffered_rows = 0
        self._buffered_bytes = 0
        self._ready: deque[LocalQueue] = deque()
        self._finished: list[_Finished] = []
        self._to_record = threading.Event()
        self._room = threading.Event()
        self._drained = False  # the claimer found nothing due and holds no queue
        self._done = False
        self._crash: BaseException | None = None
        self._attempts = 0
        self._looked_at = 0.0

    def run(self) -> int:
        """Deliver until nothing is due, or until told to stop and nothing is in flight; gives the attempts made."""
        claimer = threading.Thread(
            target=self._guarded, args=(self._claim_loop,), name="claimer", daemon=True
        )
        recorder = threading.Thread(
            target=self._guarded, args=(self._record_loop,), name="recorder", daemon=True
        )
        claimer.start()
        recorder.start()
        started = time.monotonic()
        try:
            self._send_loop()
        finally:
            self._done = True
            # Only after an error of ours: what was in flight is sent again.
            self._sender.abort()
            self._room.set()
            claimer.join()
            self._to_record.set()
            recorder.join()
            self._release(list(self._queues.values()))
        if self._attempts:
            log.info(
                "deliveries.pumped",
                attempts=self._attempts,
                duration_ms=round((time.monotonic() - started) * 1000),
            )
        return self._attempts

    def _guarded(self, loop: Callable[[], None]) -> None:
        try:
            loop()
        except BaseException as error:  # noqa: BLE001 - raised again by the pump's own thread
            self._crash = error
            self._sender.wake()

    # The sender's thread.

    def _send_loop(self) -> None:
        while True:
            if self._crash:
                raise self._crash
            self._fill()
            if outcomes := self._sender.run(0.05):
                self._finish(outcomes)
            if self._sender.in_flight == 0 and (self._drained or self._stopping()):
                with self._lock:
                    idle = not self._ready and not self._finished
                if (idle and self._drained) or self._stopping():
                    return

    def _fill(self) -> None:
        if self._stopping():
            return
        limit = self._resources.settings.sender_connections
        free = limit - self._sender.in_flight
        picked: list[tuple[LocalQueue, DueDelivery, Target]] = []
        with self._lock:
            while self._ready and len(picked) < free:
                queue = self._ready[0]
                delivery = queue.take(scarce=free - len(picked) <= limit // SPARE_PART)
                if delivery is None:
                    # At its cap, over its rate limit, or empty: it comes back when that changes.
                    self._ready.popleft()
                    queue.ready = False
                    continue
                self._ready.rotate(-1)
                self._buffered_rows -= 1
                self._buffered_bytes -= len(delivery.body)
                assert queue.target is not None
                picked.append((queue, delivery, queue.target))
        moment = datetime.now(UTC)
        refused = []
        for queue, delivery, target in picked:
            if delivery.error is None:
                self._sender.start(build(queue, delivery, target, moment))
            else:
                refused.append(refuse(queue, delivery, target, moment))
        if refused:
            self._finish(refused)
        if self._buffered_rows < BUFFER_ROWS // 2:
            self._room.set()

    def _finish(self, outcomes: list[sending.Outcome]) -> None:
        finished: list[_Finished] = []
        for outcome in outcomes:
            sent = outcome.tag
            assert isinstance(sent, InFlight)
            finished.append((*conclude(outcome, sent), sent.queue))
        with self._lock:
            self._attempts += len(finished)
            for outcome in outcomes:
                sent = outcome.tag
                assert isinstance(sent, InFlight)
                sent.queue.finished(sent.delivery)
                self._make_ready(sent.queue)
            self._finished += finished
        self._to_record.set()

    def _make_ready(self, queue: LocalQueue) -> None:
        if not queue.ready and queue.has_buffered:
            queue.ready = True
            self._ready.append(queue)

    # The claimer's thread.

    def _claim_loop(self) -> None:
        renewed = time.monotonic()
        while not self._done and not self._stopping():
            try:
                moment = time.monotonic()
                if moment - renewed > RENEWED_EVERY:
                    self._renew()
                    renewed = moment
                claimed = self._claim_once()
            except SQLAlchemyError as error:
                log.warning("deliveries.claim_failed", error=type(error).__name__)
                if time.monotonic() - renewed > LEASE_SECONDS:
                    self._forget(set(self._queues))
                time.sleep(_DATABASE_RETRY_SECONDS)
                continue
            if claimed == 0 and not self._queues:
                self._drained = True
                self._sender.wake()
                return
            self._room.clear()
            if claimed == 0 or self._buffered_rows >= BUFFER_ROWS // 2:
                self._room.wait(CLAIMED_EVERY)
        self._drained = True
        self._sender.wake()

    def _claim_once(self) -> int:
        """Lease, claim and release once; gives how many queues and deliveries came in."""
        room = min(CLAIM_ROWS, BUFFER_ROWS - self._buffered_rows)
        leased = self._lease() if room > 0 and self._may_lease() else 0
        self._refresh_targets()
        with self._lock:
            quotas = self._quotas(room)
            held = self._held_of(quotas)
            in_hand = self._in_hand(quotas)
        due: list[DueDelivery] = []
        if quotas:
            with self._resources.transaction(write=False) as uow:
                due = engine.claim(uow, quotas=quotas, held=held)
            due = [delivery for delivery in due if delivery.id not in in_hand]
        if any(delivery.formatted for delivery in due):
            with self._resources.transaction() as uow:
                due = engine.take_bodies(uow, due=due)
        self._take_in(quotas, due)
        # What was given back may be due again: only a round that changes nothing means that nothing is left.
        return leased + len(due) + self._release_idle()

    def _held_of(self, quotas: list[Quota]) -> list[str]:
        held: list[str] = []
        for quota in quotas:
            if quota.first_attempts and quota.first_after is None:
                held += self._held[quota.endpoint_id, False]
            if quota.retries and quota.retries_after is None:
                held += self._held[quota.endpoint_id, True]
        return held

    def _in_hand(self, quotas: list[Quota]) -> set[str]:
        """Give all that was claimed of these queues and is not recorded.

        A claim can find some of it once more: what somebody asks for anew gets another place in its queue.
        """
        return set().union(
            *(self._held[quota.endpoint_id, is_retry] for quota in quotas for is_retry in (False, True))
        )

    def _take_in(self, quotas: list[Quota], due: list[DueDelivery]) -> None:
        with self._lock:
            # A queue that is held or released since it was asked for gets nothing of what would have been right before.
            as_asked = [each for each in quotas if each.on_hold is self._queues[each.endpoint_id].on_hold]
            found: dict[str, list[DueDelivery]] = {quota.endpoint_id: [] for quota in as_asked}
            if len(as_asked) < len(quotas):
                quotas, due = as_asked, [delivery for delivery in due if delivery.endpoint_id in found]
            for delivery in due:
                found[delivery.endpoint_id].append(delivery)
                self._held[delivery.endpoint_id, delivery.is_retry].add(delivery.id)
                self._queues[delivery.endpoint_id].put(delivery)
                self._buffered_bytes += len(delivery.body)
            self._buffered_rows += len(due)
            for quota in quotas:
                queue = self._queues[quota.endpoint_id]
                queue.exhausted = not found[quota.endpoint_id]
                queue.claimed(quota, found[quota.endpoint_id])
            for queue in self._queues.values():
                self._make_ready(queue)
        if due:
            self._sender.wake()

    def _may_lease(self) -> bool:
        if not self._queues:
            return True
        moment = time.monotonic()
        if len(self._queues) >= MAX_QUEUES or moment - self._looked_at < LEASED_EVERY:
            return False
        self._looked_at = moment
        return True

    def _lease(self) -> int:
        # Looking takes no lock; on SQLite leasing would hold up every writer each time.
        with self._resources.transaction(write=False) as uow:
            if not engine.any_due(uow):
                return 0
        with self._resources.transaction() as uow:
            leased = engine.lease_queues(uow, lease_id=self._lease_id, limit=LEASE_QUEUES)
        lost = {each.endpoint_id for each in self._queues.values() if each.lost}
        self._forget(lost & {queue.endpoint_id for queue in leased})
        with self._lock:
            for queue in leased:
                # One that is there already is ours still: only its time had run out.
                if queue.endpoint_id not in self._queues:
                    self._queues[queue.endpoint_id] = LocalQueue(
                        queue.endpoint_id, queue.rate_limited_until, on_hold=queue.on_hold
                    )
        return len(leased)

    def _quotas(self, room: int) -> list[Quota]:
        if self._buffered_bytes > BUFFER_BYTES or not self._queues:
            return []
        quotas = []
        moment = time.monotonic()
        # Queues that have waited longest for a claim come first, so that a full buffer starves none.
        for queue in sorted(self._queues.values(), key=lambda queue: queue.claimed_at):
            if room <= 0:
                break
            if moment - queue.leased_at > QUEUE_TURN_SECONDS:
                continue
            if quota := queue.wanted(room):
                quotas.append(quota)
                queue.claimed_at = moment
                room -= quota.first_attempts + quota.retries
        return quotas

    def _refresh_targets(self) -> None:
        moment = time.monotonic()
        stale = {
            queue.endpoint_id: queue.target
            for queue in self._queues.values()
            if moment - queue.refreshed_at > TARGETS_REFRESHED_EVERY
        }
        if not stale:
            return
        with self._resources.transaction(write=False) as uow:
            targets = engine.refresh_targets(uow, known=stale)
        gone = {endpoint_id for endpoint_id, target in targets.items() if target is None}
        with self._lock:
            for endpoint_id, target in targets.items():
                self._queues[endpoint_id].configure(target, moment)
        self._forget(gone)

    def _renew(self) -> None:
        with self._resources.transaction() as uow:
            held = engine.renew(uow, lease_id=self._lease_id, endpoint_ids=list(self._queues))
        self._forget(set(self._queues) - held)

    def _release_idle(self) -> int:
        """Give back queues that are empty, paused, over their rate limit, or over their turn; gives how many."""
        moment = time.monotonic()
        with self._lock:
            idle = [
                queue
                for queue in self._queues.values()
                if queue.unrecorded == 0
                and (
                    (queue.exhausted and not queue.has_buffered)
                    or not queue.active
                    or queue.limited_for(moment) > 1
                    or moment - queue.leased_at > QUEUE_TURN_SECONDS
                )
            ]
            for queue in idle:
                self._empty(queue)
        self._release(idle)
        with self._lock:
            for queue in idle:
                self._queues.pop(queue.endpoint_id, None)
        return len(idle)

    def _release(self, released: list[LocalQueue]) -> None:
        if not released:
            return
        moment = datetime.now(UTC)
        waits = {queue.endpoint_id: queue.limited_for(time.monotonic()) for queue in released}
        try:
            with self._resources.transaction() as uow:
                engine.release(
                    uow,
                    lease_id=self._lease_id,
                    rate_limits={queue.endpoint_id: queue.rate_limited_until() for queue in released},
                    inactive={queue.endpoint_id for queue in released if not queue.active},
                    not_before={
                        endpoint_id: moment + timedelta(seconds=wait)
                        for endpoint_id, wait in waits.items()
                        if wait > 0
                    },
                    versions={queue.endpoint_id: queue.target.version for queue in released if queue.target},
                )
                for wait in waits.values():
                    if wait > 0:
                        uow.ring(TaskName.DELIVERIES_PUMP, countdown=wait)
        except SQLAlchemyError as error:
            # The leases run out by themselves.
            log.warning("deliveries.release_failed", error=type(error).__name__)

    def _forget(self, endpoint_ids: set[str]) -> None:
        """Drop queues that are not ours any more; what is in flight for them will not be recorded."""
        with self._lock:
            for endpoint_id in endpoint_ids:
                queue = self._queues.pop(endpoint_id, None)
                if queue is not None:
                    self._empty(queue)

    def _empty(self, queue: LocalQueue) -> None:
        """Give up what is buffered of a queue; the caller has the lock."""
        for delivery in queue.empty():
            self._held[delivery.endpoint_id, delivery.is_retry].discard(delivery.id)
            self._buffered_rows -= 1
            self._buffered_bytes -= len(delivery.body)

    # The recorder's thread.

    def _record_loop(self) -> None:
        while True:
            self._to_record.wait()
            if not self._done and self._sender.in_flight:
                time.sleep(RECORD_WAIT_SECONDS)  # more finish meanwhile: one transaction for all
            with self._lock:
                batch = self._finished[:RECORD_ROWS]
                if not batch:
                    self._to_record.clear()
                    if self._done and not self._finished:
                        return
                    continue
            self._record([(attempt, outcome) for attempt, outcome, _ in batch])
            with self._lock:
                del self._finished[: len(batch)]
                for attempt, _, queue in batch:
                    self._held[attempt.endpoint_id, False].discard(attempt.delivery_id)
                    self._held[attempt.endpoint_id, True].discard(attempt.delivery_id)
                    queue.unrecorded -= 1
                    if queue.probes:
                        queue.probes.discard(attempt.delivery_id)
            self._room.set()

    def _is_recorded(self, batch: list[tuple[NewAttempt, Outcome]]) -> bool:
        with self._resources.transaction(write=False) as uow:
            return engine.is_recorded(uow, attempt_id=batch[0][0].id)

    def _record(self, batch: list[tuple[NewAttempt, Outcome]]) -> None:
        """Write a batch, however long the database is away: an attempt that was made has to be in the log."""
        deadline = time.monotonic() + LEASE_SECONDS
        while batch:
            try:
                with self._resources.transaction() as uow:
                    on_hold = engine.record(
                        uow, lease_id=self._lease_id, finished=batch, probes=self._probes()
                    )
                    for countdown in {
                        outcome.retry_in_seconds
                        for _, outcome in batch
                        if outcome.retry_in_seconds is not None
                    }:
                        uow.ring(TaskName.DELIVERIES_PUMP, countdown=countdown)
            except LeaseLost as error:
                log.warning("deliveries.lease_lost", queues=len(error.endpoint_ids))
                with self._lock:
                    for endpoint_id in error.endpoint_ids & self._queues.keys():
                        self._queues[endpoint_id].lose()
                batch = [item for item in batch if item[0].endpoint_id not in error.endpoint_ids]
            except IntegrityError:
                # The connection broke while the commit was answered: it had gone through.
                if self._is_recorded(batch):
                    return
                raise
            except SQLAlchemyError as error:
                if self._stopping() and time.monotonic() > deadline:
                    # Who stops the worker will not wait for ever. These are sent again.
                    log.exception("deliveries.record_failed", attempts=len(batch))
                    return
                log.warning("deliveries.record_retried", attempts=len(batch), error=type(error).__name__)
                time.sleep(_DATABASE_RETRY_SECONDS)
            else:
                self._hold(on_hold)
                return

    def _probes(self) -> set[str]:
        with self._lock:
            return set().union(*(queue.probes for queue in self._queues.values()))

    def _hold(self, on_hold: dict[str, bool]) -> None:
        """Hold and release queues; what is buffered of one that is held now waits in the database."""
        with self._lock:
            for endpoint_id, held in on_hold.items():
                queue = self._queues.get(endpoint_id)
                if queue is not None and queue.on_hold is not held:
                    queue.on_hold = held
                    if held:
                        self._empty(queue)
