"""Doorbells against a real broker: coalesced, cleared by an answer, and no burden to anyone when the broker is gone."""

import base64
import json
import math
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import redis

from app.core import doorbell as doorbells
from app.core.doorbell import MAX_COUNTDOWN_SECONDS, BackgroundDoorbell, CeleryDoorbell
from app.development import broker
from config.settings import load_settings
from config.wire import QueueName, TaskName

RING = TaskName.DELIVERIES_PUMP
OTHER = TaskName.EVENTS_FAN_OUT
DOWN_SECONDS = 0.4  # within which a ring has given up on a broker that is down


@pytest.fixture(scope="module")
def server_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Run an embedded broker."""
    server = broker.configure(tmp_path_factory.mktemp("broker"))
    process = subprocess.Popen(server.argv, stdout=subprocess.DEVNULL)
    assert broker.wait_until_ready(server.url, 10)
    yield server.url
    process.terminate()
    process.wait(10)


@pytest.fixture
def client(server_url) -> Iterator[Any]:
    """Give a client of an empty broker."""
    with redis.Redis.from_url(server_url, decode_responses=True) as made:
        made.flushall()
        yield made


@pytest.fixture
def bell(server_url, client) -> CeleryDoorbell:
    """Give the doorbell of one process."""
    return CeleryDoorbell(replace(load_settings(), broker_url=server_url))


def messages(client: Any, queue: QueueName) -> list[dict[str, Any]]:
    """Give the headers of the Celery messages in a queue."""
    return [json.loads(message)["headers"] for message in client.lrange(f"botbat:{queue.value}", 0, -1)]


def test_a_ring_is_one_message_that_carries_nothing(bell, client):
    bell.ring(RING)
    (raw,) = client.lrange("botbat:deliveries", 0, -1)
    message = json.loads(raw)
    assert message["headers"]["task"] == "deliveries.pump"
    assert message["headers"]["eta"] is None
    arguments, keywords, _ = json.loads(base64.b64decode(message["body"]))
    assert (arguments, keywords) == ([], {})


@pytest.mark.parametrize("task", TaskName)
def test_each_task_rings_in_its_own_queue(bell, client, task):
    bell.ring(task)
    assert [message["task"] for message in messages(client, task.queue)] == [task.value]


def test_many_rings_are_one_message_until_one_is_answered(bell, client, server_url):
    another = CeleryDoorbell(replace(load_settings(), broker_url=server_url))
    for _ in range(50):
        bell.ring(RING)
        another.ring(RING)
    assert len(messages(client, QueueName.DELIVERIES)) == 1
    bell.ring(OTHER)
    assert len(messages(client, QueueName.EVENTS)) == 1

    another.answer(RING)
    bell.ring(RING)
    assert len(messages(client, QueueName.DELIVERIES)) == 2
    bell.ring(OTHER)
    assert len(messages(client, QueueName.EVENTS)) == 1


def test_a_ring_whose_message_was_lost_silences_the_bell_for_seconds_only(bell, client):
    bell.ring(RING)
    (flag,) = client.keys("botbat:ring:*")
    assert 0 < client.pttl(flag) <= 2000


def test_a_countdown_rings_in_the_second_in_which_something_is_due(bell, client):
    due = time.time() + 10.3
    bell.ring(RING, countdown=10.3)
    (message,) = messages(client, QueueName.RETRIES)
    from datetime import datetime

    eta = datetime.fromisoformat(message["eta"]).timestamp()
    assert due - 0.01 <= eta <= math.ceil(due) + 0.2  # never before it is due
    assert messages(client, QueueName.DELIVERIES) == []


def test_a_thousand_countdowns_are_one_message_per_due_second(bell, client):
    before = client.info("stats")["total_commands_processed"]
    for number in range(1000):
        bell.ring(RING, countdown=10 + number / 1000)
    assert client.info("stats")["total_commands_processed"] - before < 100
    assert 1 <= len(messages(client, QueueName.RETRIES)) <= 3
    # Neither does a countdown keep a ring of now from being heard, nor the other way round.
    bell.ring(RING)
    assert len(messages(client, QueueName.DELIVERIES)) == 1
    bell.ring(RING, countdown=100)
    assert 2 <= len(messages(client, QueueName.RETRIES)) <= 4
    assert all(client.pttl(flag) > 0 for flag in client.keys("botbat:ring:*"))


@pytest.mark.parametrize(("countdown", "rings"), [(MAX_COUNTDOWN_SECONDS, 1), (MAX_COUNTDOWN_SECONDS + 1, 0)])
def test_what_waits_longer_than_half_an_hour_is_left_to_the_sweep(bell, client, countdown, rings):
    bell.ring(RING, countdown=countdown)
    assert len(messages(client, QueueName.RETRIES)) == rings


def test_two_processes_that_count_down_to_the_same_second_are_one_message(bell, client, server_url):
    another = CeleryDoorbell(replace(load_settings(), broker_url=server_url))
    for number in range(100):
        for each in (bell, another):
            each.ring(RING, countdown=10 + number / 1000)
    assert 1 <= len(messages(client, QueueName.RETRIES)) <= 2


def refusing() -> Iterator[str]:
    """Nothing listens there."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield f"redis://127.0.0.1:{bound.getsockname()[1]}/0"


def hanging() -> Iterator[str]:
    """It takes connections and says nothing."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(64)
        yield f"redis://127.0.0.1:{listening.getsockname()[1]}/0"


@pytest.fixture(params=[refusing, hanging], ids=["refusing", "hanging"])
def down(request) -> Iterator[tuple[CeleryDoorbell, float]]:
    """Give a doorbell whose broker is down, and the seconds that a ring may take."""
    for url in request.param():
        made = CeleryDoorbell(replace(load_settings(), broker_url=url))
        yield made, DOWN_SECONDS if request.param is refusing else doorbells._SOCKET_SECONDS + DOWN_SECONDS


def seconds_of(action: Callable[[], object], times: int = 1) -> float:
    started = time.monotonic()
    for _ in range(times):
        action()
    return time.monotonic() - started


@pytest.mark.parametrize("countdown", [0, 10])
def test_a_broker_that_is_down_holds_up_one_ring_briefly_and_then_none_for_a_second(down, countdown):
    bell, patience = down
    assert seconds_of(lambda: bell.ring(RING, countdown=countdown)) < patience
    assert seconds_of(lambda: bell.ring(RING), times=100) < 0.1
    assert seconds_of(lambda: bell.ring(OTHER, countdown=10), times=100) < 0.1


def test_an_answer_to_a_broker_that_is_down_fails_nothing(down):
    bell, patience = down
    assert seconds_of(lambda: bell.answer(RING)) < patience


def test_the_broker_is_asked_whether_it_is_there(down, bell):
    bell.ping()
    broken, patience = down
    started = time.monotonic()
    with pytest.raises((redis.RedisError, OSError)):
        broken.ping()
    assert time.monotonic() - started < patience


def test_a_broker_that_is_back_is_rung_again_after_a_second(tmp_path):
    server = broker.configure(tmp_path)
    bell = CeleryDoorbell(replace(load_settings(), broker_url=server.url))
    bell.ring(RING)
    failed = time.monotonic()
    process = subprocess.Popen(server.argv, stdout=subprocess.DEVNULL)
    try:
        assert broker.wait_until_ready(server.url, 10)
        with redis.Redis.from_url(server.url, decode_responses=True) as client:
            while not messages(client, QueueName.DELIVERIES):
                assert time.monotonic() - failed < 5
                bell.ring(RING)
                time.sleep(0.02)
            assert time.monotonic() - failed >= 0.9
            # And a connection that broke in between costs at most a second as well.
            client.flushall()
        process.kill()
        process.wait()
        bell.ring(OTHER)
        process = subprocess.Popen(server.argv, stdout=subprocess.DEVNULL)
        assert broker.wait_until_ready(server.url, 10)
        with redis.Redis.from_url(server.url, decode_responses=True) as client:
            broke = time.monotonic()
            while not messages(client, QueueName.EVENTS):
                assert time.monotonic() - broke < 5
                bell.ring(OTHER)
                time.sleep(0.02)
    finally:
        process.kill()
        process.wait()


# --- the background doorbell of web processes


class Slow:
    """A doorbell that takes its time and remembers."""

    def __init__(self) -> None:
        self.rings: list[tuple[TaskName, float]] = []
        self.started = threading.Event()
        self.go_on = threading.Event()

    def ring(self, task: TaskName, *, countdown: float = 0) -> None:
        self.started.set()
        assert self.go_on.wait(10)
        self.rings.append((task, countdown))


def test_ringing_in_the_background_waits_for_nobody_and_loses_nothing():
    slow = Slow()
    bell = BackgroundDoorbell(slow)  # type: ignore[arg-type] # only its ring is used
    bell.ring(RING)
    assert slow.started.wait(5)
    assert seconds_of(lambda: bell.ring(RING), times=500) < 0.3
    assert seconds_of(lambda: bell.ring(OTHER), times=500) < 0.3
    slow.go_on.set()
    deadline = time.monotonic() + 5
    while len(slow.rings) < 3 and time.monotonic() < deadline:
        time.sleep(0.005)
    time.sleep(0.05)
    # The one under way, and then one of each for all that came meanwhile.
    assert slow.rings == [(RING, 0), (RING, 0), (OTHER, 0)]


def test_ringing_in_the_background_reaches_the_broker(bell, client):
    background = BackgroundDoorbell(bell)
    background.ring(RING)
    deadline = time.monotonic() + 5
    while not messages(client, QueueName.DELIVERIES):
        assert time.monotonic() < deadline
        time.sleep(0.005)
    background.answer(RING)
    assert client.keys("botbat:ring:*") == []
    background.ping()
