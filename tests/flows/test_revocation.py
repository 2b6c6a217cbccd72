"""A key that is taken away is refused at once: on every web process, under load, and while Redis is down."""

import http.client
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import pytest

from app.core.unit_of_work import Resources
from app.development import ports
from app.development.api import Api as Http
from config.settings import Settings, load_settings
from tests.api.steps import another_key
from tests.conftest import Api
from tests.flows.steps import wait_until

PATH = "/v1/event-types/message.read"
CONNECTIONS = 4  # with each process
PAUSE_SECONDS = 0.005
MANY = 20  # requests of each connection


@pytest.fixture(params=["Redis up", "Redis down"])
def settings(request, database_url, monkeypatch) -> Settings:
    """Give settings, in the environment too, for the processes."""
    monkeypatch.setenv("DATABASE_URL", database_url)
    up = request.param == "Redis up"
    url = request.getfixturevalue("keyspace").url if up else f"redis://127.0.0.1:{ports.free()}/0"
    monkeypatch.setenv("BROKER_URL", url)
    monkeypatch.setenv("BOTBAT_LOG_LEVEL", "WARNING")
    return load_settings()


@dataclass
class Connection:
    """Asks again and again with one key over one connection, and so the same process; notes what it got."""

    url: str
    key: str
    stopping: threading.Event
    answers: list[tuple[float, int]] = field(default_factory=list)  # when it asked, and the status

    def hammer(self) -> None:
        """Ask until told to stop."""
        connection = http.client.HTTPConnection(urlsplit(self.url).netloc, timeout=10)
        while not self.stopping.wait(PAUSE_SECONDS):
            started = time.monotonic()
            connection.request("GET", PATH, headers={"Authorization": f"Bearer {self.key}"})
            answer = connection.getresponse()
            answer.read()
            self.answers.append((started, answer.status))
        connection.close()

    def asked_since(self, moment: float) -> list[int]:
        """Give the answers to requests that started later."""
        return [status for started, status in list(self.answers) if started > moment]


@contextmanager
def hammering(urls: list[str], key: str) -> Iterator[list[Connection]]:
    """Use a key over several connections with each process."""
    stopping = threading.Event()
    connections = [Connection(url, key, stopping) for url in urls for _ in range(CONNECTIONS)]
    with ThreadPoolExecutor(len(connections)) as threads:
        running = [threads.submit(connection.hammer) for connection in connections]
        try:
            yield connections
        finally:
            stopping.set()
    for future in running:
        future.result()


def revoke(owner: Http, key_id: str) -> Any:
    return owner.post(f"/v1/api-keys/{key_id}/revoke", {})


def rotate_without_overlap(owner: Http, key_id: str) -> Any:
    return owner.post(f"/v1/api-keys/{key_id}/rotate", {"overlap_seconds": 0})


def assert_refused_at_once(
    api: Api, resources: Resources, urls: list[str], take_away: Callable[[Http, str], Any]
) -> Any:
    key_id, key = another_key(resources, api)
    with hammering(urls, key) as connections:
        wait_until(lambda: all(len(connection.answers) >= MANY for connection in connections))
        begun = time.monotonic()
        answer = take_away(Http(urls[0], api.key), key_id)
        done = time.monotonic()
        wait_until(lambda: all(len(connection.asked_since(done)) >= MANY for connection in connections))
    for connection in connections:
        before = [status for started, status in connection.answers if started <= begun]
        # A request that was under way meanwhile may have got either.
        assert set(before[:-1]) == {200}
        assert set(connection.asked_since(done)) == {401}
    return answer


def test_a_key_that_is_taken_away_is_refused_from_the_answer_on(api, resources, run):
    urls = [run.web(), run.web()]
    assert_refused_at_once(api, resources, urls, revoke)
    rotated = assert_refused_at_once(api, resources, urls, rotate_without_overlap)
    assert [Http(url, rotated["key"]).status(PATH) for url in urls] == [200, 200]
