"""Real processes and a real broker, which are gone when a test ends."""

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from app import processes
from app.development import broker, ports
from app.development.api import Api
from config.settings import Settings, load_settings
from tests import receivers
from tests.conftest import TEST_BROKER_URL
from tests.flows.steps import wait_until

_REDIS_DATABASES = range(15, 0, -1)
_CLAIM = "botbat-test-claim"
_CLAIM_SECONDS = 120


@pytest.fixture(scope="session")
def embedded_broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Run the embedded broker."""
    server = broker.configure(tmp_path_factory.mktemp("broker"))
    process = subprocess.Popen(server.argv, stdout=subprocess.DEVNULL)
    assert broker.wait_until_ready(server.url, 10)
    yield server.url
    process.terminate()
    process.wait(10)


class Broker:
    """A keyspace of our own on a server that others may use too."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._client: Any = redis.Redis.from_url(url)

    def claim(self) -> bool:
        """Take the keyspace, unless another test run has it."""
        return bool(self._client.set(_CLAIM, "1", nx=True, ex=_CLAIM_SECONDS))

    def empty(self) -> None:
        """Lose every message and every flag."""
        self._client.flushdb()
        self.claim()

    def close(self) -> None:
        """Leave nothing behind."""
        self._client.flushdb()
        self._client.close()


@pytest.fixture
def keyspace(database_url: str, embedded_broker: str) -> Iterator[Broker]:
    """Give an empty broker: Redis beside PostgreSQL where there is one, the embedded one beside SQLite."""
    urls = [embedded_broker]
    if TEST_BROKER_URL and not database_url.startswith("sqlite"):
        server = TEST_BROKER_URL.rpartition("/")[0]
        urls = [f"{server}/{number}" for number in _REDIS_DATABASES]
    made = next(candidate for candidate in map(Broker, urls) if candidate.claim())
    made.empty()
    yield made
    made.close()


@pytest.fixture
def process_settings(database_url: str, keyspace: Broker, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Give settings, in the environment too, for processes that deliver to the receivers of tests/receivers.py."""
    monkeypatch.setenv("DATABASE_URL", database_url)
    monkeypatch.setenv("BROKER_URL", keyspace.url)
    monkeypatch.setenv("BOTBAT_CA_FILE", receivers.ca_file())
    monkeypatch.setenv("BOTBAT_EGRESS_ALLOW_CIDRS", "127.0.0.0/8")
    return load_settings()


class Processes:
    """What `./botbat web`, `./botbat worker` and `./botbat beat` run, each in a process group of its own."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._started: list[subprocess.Popen[bytes]] = []

    def start(self, command: processes.Command) -> "subprocess.Popen[bytes]":
        """Start one; what it says is shown when the test fails."""
        log = (self._folder / f"process{len(self._started)}.log").open("wb")
        with log:
            process = subprocess.Popen(
                command.argv,
                env=command.environment,
                cwd=processes.ROOT,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._started.append(process)
        return process

    def web(self) -> str:
        """Start a web process; gives its URL once it answers."""
        port = ports.free()
        self.start(processes.web().having({"PORT": str(port), "WEB_PROCESSES": "1"}))
        url = f"http://127.0.0.1:{port}"
        wait_until(lambda: Api(url).status("/healthz") == 200, 20)
        return url

    def worker(self) -> "subprocess.Popen[bytes]":
        """Start a worker."""
        return self.start(processes.worker(["--loglevel=INFO"]))

    def kill(self, process: "subprocess.Popen[bytes]") -> None:
        """Kill a process and all that it started, at once."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(10)

    def said(self) -> list[str]:
        """Give what each has written so far."""
        return [(self._folder / f"process{number}.log").read_text() for number in range(len(self._started))]

    def end(self) -> None:
        """Kill what is left, and show what was said."""
        for process in self._started:
            self.kill(process)
        for number, text in enumerate(self.said()):
            print(f"--- process {number}\n{text}")  # noqa: T201 - pytest shows it when the test fails


@pytest.fixture
def run(settings: Settings, tmp_path: Path) -> Iterator[Processes]:
    """Give a way to start processes, all of which end with the test."""
    made = Processes(tmp_path)
    yield made
    made.end()
