"""Doorbells: messages that carry no work and only wake a worker to look for due rows.

They are coalesced by a flag in Redis that the worker clears before it claims: a thousand publishes a second cost
a few messages. A ring that fails is forgotten, since the sweep finds the work; it never fails or holds up the caller.
"""

import math
import threading
import time
from typing import Any, Protocol

import redis
import structlog
from celery import Celery
from kombu.exceptions import OperationalError
from redis.backoff import NoBackoff
from redis.retry import Retry

from config.celery import celery_config
from config.settings import Settings
from config.wire import QueueName, TaskName

log = structlog.get_logger()

# A flag that nobody clears (its message was lost with the broker) must not silence the bell for long.
_FLAG_MILLISECONDS = 2_000
# What waits longer is left to the sweep: see docs/decisions/0002.
MAX_COUNTDOWN_SECONDS = 1800
_PAUSE_AFTER_FAILURE_SECONDS = 1.0
_SOCKET_SECONDS = 0.5
_MAX_REMEMBERED = 4096
# Between two rings of one web process: hundreds of publishes a second share one.
_BACKGROUND_PAUSE_SECONDS = 0.01


class Doorbell(Protocol):
    """Wakes workers."""

    def ring(self, task: TaskName, *, countdown: float = 0) -> None:
        """Have `task` run soon, or `countdown` seconds from now."""

    def answer(self, task: TaskName) -> None:
        """Note that `task` has started: whatever is committed from now on must ring again."""

    def ping(self) -> None:
        """Ask the broker whether it is there; raises `redis.RedisError` or `OSError`."""


class CeleryDoorbell:
    """Rings by Celery messages."""

    def __init__(self, settings: Settings) -> None:
        config = celery_config(settings)
        config["broker_transport_options"] |= {
            "socket_timeout": _SOCKET_SECONDS,
            "socket_connect_timeout": _SOCKET_SECONDS,
        }
        self._celery = Celery("botbat", set_as_current=False)
        self._celery.config_from_object(config)
        self._redis: Any = redis.Redis.from_url(
            settings.broker_url,
            socket_timeout=_SOCKET_SECONDS,
            socket_connect_timeout=_SOCKET_SECONDS,
            retry=Retry(NoBackoff(), 0),  # the library's own would wait, several times
        )
        self._silent_until = 0.0
        self._rung: dict[tuple[TaskName, int], None] = {}  # countdowns: seconds that need no further ring

    def ring(self, task: TaskName, *, countdown: float = 0) -> None:
        """Send one message unless one is pending; for countdowns, one per second in which something is due."""
        if countdown > MAX_COUNTDOWN_SECONDS or time.monotonic() < self._silent_until:
            return
        try:
            if countdown <= 0:
                if self._redis.set(_flag(task), b"1", nx=True, px=_FLAG_MILLISECONDS):
                    self._send(task, queue=task.queue)
                return
            second = math.ceil(time.time() + countdown)
            if (task, second) in self._rung:
                return  # a thousand deliveries that fail together cost the broker a few questions, not a thousand
            lifetime = int((countdown + 2) * 1000)
            if self._redis.set(f"{_flag(task)}:{second}", b"1", nx=True, px=lifetime):
                self._send(task, queue=QueueName.RETRIES, countdown=second - time.time())
            if len(self._rung) >= _MAX_REMEMBERED:
                self._rung.clear()
            self._rung[task, second] = None
        except (redis.RedisError, OperationalError, OSError) as error:
            self._silent_until = time.monotonic() + _PAUSE_AFTER_FAILURE_SECONDS
            log.warning("doorbell.failed", task=task.value, error=type(error).__name__)

    def answer(self, task: TaskName) -> None:
        """Clear the flag."""
        try:
            self._redis.delete(_flag(task))
        except (redis.RedisError, OSError) as error:
            log.warning("doorbell.failed", task=task.value, error=type(error).__name__)

    def ping(self) -> None:
        """Ask the broker whether it is there; raises `redis.RedisError` or `OSError`."""
        self._redis.ping()

    def _send(self, task: TaskName, *, queue: QueueName, countdown: float = 0) -> None:
        self._celery.send_task(
            task.value, queue=queue.value, countdown=countdown or None, retry=False, ignore_result=True
        )


class BackgroundDoorbell:
    """Rings from a thread of its own, so that a request neither waits for the broker nor pays for it.

    Rings that come while one is under way are one. A process that dies before it has rung leaves the work to the sweep.
    """

    def __init__(self, doorbell: CeleryDoorbell) -> None:
        self._doorbell = doorbell
        self._wanted: dict[tuple[TaskName, float], None] = {}
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def ring(self, task: TaskName, *, countdown: float = 0) -> None:
        """Have it rung at once by the thread."""
        with self._changed:
            self._wanted[task, countdown] = None
            if self._thread is None:
                self._thread = threading.Thread(target=self._loop, name="doorbell", daemon=True)
                self._thread.start()
            self._changed.notify()

    def answer(self, task: TaskName) -> None:
        """Clear the flag."""
        self._doorbell.answer(task)

    def ping(self) -> None:
        """Ask the broker whether it is there; raises `redis.RedisError` or `OSError`."""
        self._doorbell.ping()

    def _loop(self) -> None:
        while True:
            with self._changed:
                while not self._wanted:
                    self._changed.wait()
                wanted, self._wanted = self._wanted, {}
            for task, countdown in wanted:
                try:
                    self._doorbell.ring(task, countdown=countdown)
                except (
                    Exception
                ):  # whatever it is, the next ring may go through, and the sweep finds this one
                    log.exception("doorbell.failed", task=task.value)
            time.sleep(_BACKGROUND_PAUSE_SECONDS)


def _flag(task: TaskName) -> str:
    return f"botbat:ring:{task.value}"
