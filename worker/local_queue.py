"""A leased queue as a pump sees it: what is buffered, what is in flight, what its limits and its hold allow now."""

import time
from collections import deque
from datetime import UTC, datetime, timedelta

from app.deliveries.models import Trigger
from app.deliveries.work import DueDelivery, Position, Quota
from app.endpoints.policy import HOLD
from app.endpoints.service import Target

# How far ahead of the sender a queue is claimed, at least and as a multiple of what it finished lately.
_MIN_AHEAD = 2
_AHEAD_SECONDS = 0.3
_RETRIES_ASKED_EVERY = 0.1
# What a queue may have in flight of a pump's last connections.
_FEW = 4


class LocalQueue:
    """State of one leased queue. Not thread-safe: the pump's lock guards it."""

    def __init__(
        self,
        endpoint_id: str,
        rate_limited_until: datetime | None,
        *,
        on_hold: bool = False,
    ) -> None:
        self.endpoint_id = endpoint_id
        self.target: Target | None = None
        self.active = True
        self.lost = False
        self.on_hold = on_hold
        self.probes: set[str] = set()  # deliveries that are buffered, in flight or not recorded as such
        self.in_flight = 0
        self.unrecorded = 0  # taken and not recorded, those in flight included
        self.ready = False
        self.exhausted = False  # the last claim found nothing
        self.leased_at = time.monotonic()
        self.claimed_at = 0.0
        self.refreshed_at = 0.0
        self._first: deque[DueDelivery] = deque()
        self._retries: deque[DueDelivery] = deque()
        self._positions: dict[bool, Position | None] = {False: None, True: None}
        self._retries_in_flight = 0
        self._picks_of_first = 0
        self._finished_lately = 0.0
        self._counted_at = self.leased_at
        # GCRA: the moment, on the monotonic clock, up to which the rate limit is spent.
        self._arrival = 0.0
        if rate_limited_until is not None:
            self._arrival = time.monotonic() + (rate_limited_until - datetime.now(UTC)).total_seconds()

    @property
    def has_buffered(self) -> bool:
        """Whether something waits to be sent."""
        return bool(self._first or self._retries)

    def configure(self, target: Target | None, moment: float) -> None:
        """Take over the endpoint's current configuration."""
        self.target = target
        self.active = target is not None and target.active and not self.lost
        if target is not None and target.policy.when_failing != HOLD:
            self.on_hold = False
        self.refreshed_at = moment

    def lose(self) -> None:
        """Note that another pump serves the endpoint now: from here nothing more is claimed or sent."""
        self.lost = True
        self.active = False

    def put(self, delivery: DueDelivery) -> None:
        """Buffer a claimed delivery."""
        if self.on_hold and (delivery.trigger == Trigger.AUTO or delivery.is_retry):
            self.probes.add(delivery.id)
        (self._retries if delivery.is_retry else self._first).append(delivery)

    def claimed(self, quota: Quota, due: list[DueDelivery]) -> None:
        """Note what a claim found.

        One that got all it asked for is gone on with behind its last delivery: what is held before that need not be
        read again. One that did not has come to the end, and the next begins anew: what was committed late, with an
        earlier time, stands before the end. Of a queue that is held only some are found, and what is before them waits.
        """
        if quota.on_hold:
            return
        for is_retry, asked in ((False, quota.first_attempts), (True, quota.retries)):
            found = [(each.next_attempt_at, each.event_id) for each in due if each.is_retry is is_retry]
            if asked:
                self._positions[is_retry] = max(found) if len(found) >= asked else None

    def take(self, *, scarce: bool = False) -> DueDelivery | None:
        """Give the next delivery that may be sent now, or None.

        First attempts go before retries, but every third pick is a retry where one waits, so that neither starves; and
        retries take at most three quarters of the slots, so that a fresh event finds one. When the pump's connections
        are `scarce`, the last ones are for queues that have few in flight.
        """
        if not self.active or self.target is None:
            return None
        cap = self.target.policy.max_in_flight
        if self.in_flight >= (min(cap, _FEW) if scarce else cap):
            return None
        retry = bool(self._retries) and self._retries_in_flight < max(1, cap * 3 // 4)
        if not (self._first or retry) or not self._spend():
            return None
        self.in_flight += 1
        self.unrecorded += 1
        if self._first and not (retry and self._picks_of_first >= 2):  # noqa: PLR2004 - see docstring
            self._picks_of_first += 1
            return self._first.popleft()
        self._picks_of_first = 0
        self._retries_in_flight += 1
        return self._retries.popleft()

    def finished(self, delivery: DueDelivery) -> None:
        """Note that one is no longer in flight."""
        self.in_flight -= 1
        if delivery.is_retry:
            self._retries_in_flight -= 1
        self._finished_lately += 1

    def wanted(self, room: int) -> Quota | None:
        """Give how many first attempts and retries to claim: enough ahead of the sender, more where it is fast.

        Of a queue that is held, only when what was sent last is recorded.
        """
        if not self.active or self.target is None:
            return None
        if self.on_hold:
            if self.unrecorded or self.has_buffered:
                return None
            return Quota(self.endpoint_id, min(room, self.target.policy.max_in_flight), 0, on_hold=True)
        moment = time.monotonic()
        elapsed = moment - self._counted_at
        per_second = self._finished_lately / elapsed if elapsed > 0.01 else 0.0  # noqa: PLR2004 - too short to tell
        if elapsed > 1:
            self._finished_lately, self._counted_at = self._finished_lately / 2, moment - elapsed / 2
        ahead = max(_MIN_AHEAD * self.target.policy.max_in_flight, int(per_second * _AHEAD_SECONDS))
        # Few large claims: a buffer that is more than half full is not worth one yet.
        first = min(ahead - len(self._first), room) if len(self._first) <= ahead // 2 else 0
        # With first attempts in plenty, retries are asked for now and then, and not by a query of their own each time.
        ask = len(self._retries) <= ahead // 2 and (
            first > 0 or moment - self.claimed_at > _RETRIES_ASKED_EVERY
        )
        retries = min(ahead - len(self._retries), room - first) if ask else 0
        if not (first or retries):
            return None
        return Quota(self.endpoint_id, first, retries, self._positions[False], self._positions[True])

    def empty(self) -> list[DueDelivery]:
        """Give up what is buffered."""
        given_up = [*self._first, *self._retries]
        self._first.clear()
        self._retries.clear()
        self._positions = {False: None, True: None}
        self.probes.difference_update(delivery.id for delivery in given_up)
        return given_up

    def limited_for(self, moment: float) -> float:
        """Give the seconds until the rate limit allows another request; 0 when it does now."""
        limit = self.target.policy.rate_limit if self.target else None
        if limit is None:
            return 0.0
        interval = limit["seconds"] / limit["count"]
        return max(0.0, self._arrival + interval - limit["seconds"] - moment)

    def rate_limited_until(self) -> datetime | None:
        """Give the rate limit's state for the pump that leases the queue next."""
        ahead = self._arrival - time.monotonic()
        return datetime.now(UTC) + timedelta(seconds=ahead) if ahead > 0 else None

    def _spend(self) -> bool:
        """Take one request out of the rate limit (GCRA), if it allows one now."""
        limit = self.target.policy.rate_limit if self.target else None
        if limit is None:
            return True
        moment = time.monotonic()
        if self.limited_for(moment) > 0:
            return False
        self._arrival = max(self._arrival, moment) + limit["seconds"] / limit["count"]
        return True
