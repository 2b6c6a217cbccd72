"""How many requests an API key has made in this second, counted by all processes; and failures per client address.

Publishing must not stop: while Redis is away or slow nothing is counted, and requests go through.
"""

import ipaddress
import math
import time
from typing import Any

import redis
import structlog
from limits.storage import RedisStorage
from redis.backoff import NoBackoff
from redis.retry import Retry

from app.core.errors import RateLimited
from config.settings import Settings

log = structlog.get_logger()

WINDOW_SECONDS = 1
_SOCKET_SECONDS = 0.25
_PAUSE_AFTER_FAILURE_SECONDS = 1.0
_FAILURE_WINDOW_SECONDS = 60
_MAX_REMEMBERED = 10_000
_IPV6_PREFIX = 64  # what a subscriber has at the least (RFC 6177): one address of it says nothing


class RequestCounter:
    """Counts the requests of each key in fixed windows of a second, at one round trip each.

    A sliding window would need a second one to tell how many are left. In return up to twice the limit may pass
    within a second that two windows share.
    """

    def __init__(self, settings: Settings) -> None:
        options: dict[str, Any] = {
            "socket_timeout": _SOCKET_SECONDS,
            "socket_connect_timeout": _SOCKET_SECONDS,
            "retry": Retry(NoBackoff(), 0),  # the library's own would wait, several times
        }
        self._storage = RedisStorage(settings.broker_url, key_prefix="botbat:rate_limit", **options)
        self._silent_until = 0.0

    def count(self, key_id: str) -> int | None:
        """Count a request; gives how many there were in this window, or None when Redis cannot tell."""
        if self._silent_until:
            moment = time.monotonic()
            if moment < self._silent_until:
                return None
            # One request finds out whether Redis is back; those beside it do not wait with it.
            self._silent_until = moment + _PAUSE_AFTER_FAILURE_SECONDS
        try:
            count = self._storage.incr(key_id, WINDOW_SECONDS)
        except (redis.RedisError, OSError) as error:
            self._silent_until = time.monotonic() + _PAUSE_AFTER_FAILURE_SECONDS
            log.warning("rate_limit.failed", error=type(error).__name__)
            return None
        self._silent_until = 0.0
        return count


class FailureLimiter:
    """Counts failures per client address in windows of a minute, in this process alone: it works without Redis.

    Only what fails is counted and only what fails is refused: whoever shares an address with a bad client is heard.
    """

    def __init__(self, per_minute: int) -> None:
        self._per_minute = per_minute
        self._failures: dict[str, int] = {}
        self._refused: set[int] = set()  # hashes of what came from an address beyond its limit
        self._ends_at = 0.0

    def refuse_again(self, address: str, attempt: str) -> None:
        """Raise `RateLimited` when this attempt from this address was refused in this window: it would fail again."""
        if self._refused and hash((address, attempt)) in self._refused and time.monotonic() < self._ends_at:
            raise self._refusal()

    def note(self, address: str, attempt: str) -> None:
        """Count a failure; raises `RateLimited` when its address has had too many in this window."""
        source = _source(address)
        if time.monotonic() >= self._ends_at or len(self._failures) >= _MAX_REMEMBERED:
            self._failures.clear()
            self._refused.clear()
            self._ends_at = time.monotonic() + _FAILURE_WINDOW_SECONDS
        failures = self._failures[source] = self._failures.get(source, 0) + 1
        if failures > self._per_minute:
            if len(self._refused) < _MAX_REMEMBERED:
                self._refused.add(hash((address, attempt)))
            raise self._refusal()

    def _refusal(self) -> RateLimited:
        seconds = max(1, math.ceil(self._ends_at - time.monotonic()))
        return RateLimited("Too many failures from your address.", retry_after_seconds=seconds)


def _source(address: str) -> str:
    """Give what stands for an address when failures are counted: of IPv6 its network."""
    try:
        ip = ipaddress.IPv6Address(address)
    except ValueError:
        return address
    return str(ip.ipv4_mapped or ipaddress.IPv6Network((int(ip), _IPV6_PREFIX), strict=False))
