"""A newcomer types `./botbat up`: within seconds a signed event has arrived, and Ctrl-C leaves nothing behind."""

import base64
import http.client
import json
import os
import re
import secrets
import signal
import ssl
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from app.development import ports
from app.development.api import Api
from app.events.catalogue import BUILT_IN, OPERATIONAL
from app.processes import ROOT
from config.settings import process_environment
from tests.conftest import SETTING_NAMES, TEST_BROKER_URL, TEST_DATABASE_URL, _on_server, _server

pytestmark = pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks at processes through /proc")


class Up:
    """One run of `./botbat up`."""

    def __init__(self, data_dir: Path, port: int, output: Path, *options: str, **settings: str) -> None:
        environment = {
            name: value for name, value in process_environment().items() if name not in SETTING_NAMES
        }
        environment |= {"BOTBAT_DATA_DIR": str(data_dir), "PORT": str(port), **settings}
        self.data_dir = data_dir
        self.output = output
        self._started = time.monotonic()
        with output.open("w") as file:
            self.process = subprocess.Popen(
                [str(ROOT / "botbat"), "up", *options],
                cwd=output.parent,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
            )

    @property
    def text(self) -> str:
        """What it has printed."""
        return self.output.read_text()

    def wait_for(self, text: str, seconds: float = 60) -> float:
        """Wait until it has printed something; gives the seconds since its start."""
        until(lambda: text in self.text or self.process.poll() is not None, seconds)
        assert text in self.text, self.text
        return time.monotonic() - self._started

    def processes(self) -> dict[int, str]:
        """Give all processes of this run that are alive, by id, with their command lines."""
        return {
            number: line
            for number in (int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit())
            if (line := self._of(number))
        }

    def main_process(self, *words: str) -> int:
        """Give the process that leads the group with these words on its command line."""
        (found,) = (
            number
            for number, line in self.processes().items()
            if all(word in line for word in words) and os.getpgid(number) == number
        )
        return found

    def stop(self, number: signal.Signals) -> float:
        """Send a signal; gives the seconds until it ended."""
        started = time.monotonic()
        self.process.send_signal(number)
        assert self.process.wait(20) == 0
        return time.monotonic() - started

    def _of(self, number: int) -> str | None:
        folder = Path(f"/proc/{number}")
        try:
            line = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            environment = (folder / "environ").read_bytes()
            zombie = (folder / "stat").read_text().rpartition(")")[2].split()[0] == "Z"
        except OSError:
            return None
        own = str(self.data_dir) in line or f"BOTBAT_DATA_DIR={self.data_dir}\0".encode() in environment
        return line if own and not zombie else None


def until(condition: Callable[[], object], seconds: float = 15) -> None:
    """Wait for something to be true."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come true"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    """Give a data directory and a port for all runs."""
    return tmp_path_factory.mktemp("up") / "data", ports.free()


@pytest.fixture(scope="module")
def first(place: tuple[Path, int], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    """Give the first run, once it is ready."""
    up = Up(*place, tmp_path_factory.mktemp("output") / "first")
    try:
        up.wait_for("Ctrl-C stops everything.")
        yield up
    finally:
        end(up)


def end(up: Up) -> None:
    """Make sure that nothing of a run outlives the tests."""
    if up.process.poll() is None:
        up.process.terminate()
        up.process.wait(20)
    for number in up.processes():
        os.kill(number, signal.SIGKILL)


@pytest.fixture
def dev(first: Up) -> dict[str, str]:
    """Give the content of dev.json."""
    content: dict[str, str] = json.loads((first.data_dir / "dev.json").read_text())
    return content


def received(dev: dict[str, str]) -> list[dict[str, Any]]:
    """Give what the receiver has got."""
    context = ssl.create_default_context(cafile=dev["ca_file"])
    connection = http.client.HTTPSConnection(urlsplit(dev["inbox_url"]).netloc, context=context, timeout=5)
    connection.request("GET", "/requests")
    data: list[dict[str, Any]] = json.loads(connection.getresponse().read())["data"]
    connection.close()
    return data


def flower(dev: dict[str, str], login: str) -> int:
    """Give the status of Flower's first page."""
    connection = http.client.HTTPConnection(urlsplit(dev["flower_url"]).netloc, timeout=5)
    authorization = "Basic " + base64.b64encode(login.encode()).decode()
    connection.request("GET", "/", headers={"Authorization": authorization} if login else {})
    status = connection.getresponse().status
    connection.close()
    return status


def test_one_example_of_each_type_is_delivered_and_printed(first, dev):
    printed = re.findall(r"^receiver +([a-z_.]+) +200 in \d+ ms$", first.text, re.MULTILINE)
    assert sorted(printed) == sorted(BUILT_IN.keys() - OPERATIONAL)
    requests = received(dev)
    assert sorted(request["event"] for request in requests) == sorted(BUILT_IN.keys() - OPERATIONAL)
    assert all(request["verified"] and request["verified_by"] == dev["endpoint_id"] for request in requests)
    log = Api(dev["base_url"], dev["api_key"]).get(f"/v1/endpoints/{dev['endpoint_id']}/attempts?limit=100")
    assert {attempt["status"] for attempt in log["data"]} == {"success"}
    assert len(log["data"]) == len(BUILT_IN.keys() - OPERATIONAL)


def test_dev_json_is_right_and_private(first, dev, place):
    path = first.data_dir / "dev.json"
    assert path.stat().st_mode & 0o777 == 0o600
    assert dev["base_url"] == f"http://127.0.0.1:{place[1]}"
    assert Api(dev["base_url"]).status("/readyz") == 200
    assert Path(dev["ca_file"]).is_file()
    assert dev["workspace_id"].startswith("ws_")
    for name in ("console_url", "api_key", "flower_url", "docs_url"):
        assert dev[name] in first.text
    assert "Traceback" not in first.text


def test_no_password_or_key_is_on_a_command_line(first, dev):
    lines = " ".join(first.processes().values())
    broker_url = (first.data_dir / "broker_url").read_text()
    password = broker_url.removeprefix("redis://:").partition("@")[0]
    for secret in (password, dev["api_key"], dev["flower_password"]):
        assert secret not in lines


def test_the_printed_curl_line_publishes(first, dev):
    (line,) = re.findall(r"^  (curl .*\\\n.*)$", first.text, re.MULTILINE)
    answer = subprocess.run(["bash", "-c", line], capture_output=True, check=True).stdout
    event = json.loads(answer)["id"]
    until(lambda: any(request["headers"]["webhook-id"] == event for request in received(dev)))


def test_a_test_is_sent_and_answered(first, dev):
    attempt = Api(dev["base_url"], dev["api_key"]).post(f"/v1/endpoints/{dev['endpoint_id']}/test", {})
    assert (attempt["trigger"], attempt["status"], attempt["status_code"]) == ("test", "success", 200)
    (request,) = [each for each in received(dev) if each["headers"]["webhook-id"] == attempt["event_id"]]
    assert request["verified"]


def test_flower_asks_for_a_password(first, dev):
    until(lambda: ports.refusal("127.0.0.1", urlsplit(dev["flower_url"]).port or 0))
    assert flower(dev, "") == 401
    assert flower(dev, "botbat:guess") == 401
    assert flower(dev, f"{dev['flower_user']}:{dev['flower_password']}") == 200


def test_a_second_one_in_the_same_directory_says_so(first, dev, place, tmp_path):
    second = Up(*place, tmp_path / "second")
    assert second.process.wait(20) == 1
    assert second.text.startswith(f"botbat: It already runs at {dev['base_url']}")
    assert len(second.text.splitlines()) == 1


def test_a_taken_port_is_one_line(first, place, tmp_path):
    other = Up(tmp_path / "data", place[1], tmp_path / "other", "--json")
    assert other.process.wait(20) == 1
    assert json.loads(other.text)["error"]["detail"].startswith(f"Port {place[1]} is taken.")


def test_killed_processes_are_started_again_and_deliver(first, dev):
    web, worker = first.main_process("gunicorn"), first.main_process("celery", " worker ")
    broker = first.main_process("valkey-server")
    for number in (web, worker, broker):
        os.kill(number, signal.SIGKILL)
    for name in ("web", "worker", "broker"):
        first.wait_for(f"{name:<9} killed by SIGKILL, starting again", 5)
    api = Api(dev["base_url"], dev["api_key"])
    until(lambda: api.status("/readyz") == 200, 20)
    assert first.main_process("gunicorn") != web
    event = api.post("/v1/events", {"type": "contact.created", "data": {}})["id"]
    until(lambda: any(request["headers"]["webhook-id"] == event for request in received(dev)), 20)


def test_ctrl_c_stops_everything_within_ten_seconds(first, dev):
    """Also while a delivery hangs."""
    api = Api(dev["base_url"], dev["api_key"])
    url = dev["inbox_url"].replace("/inbox", "/hang")
    api.post("/v1/endpoints", {"url": url, "events": ["contact.updated"]})
    api.post("/v1/events", {"type": "contact.updated", "data": {}})
    until(lambda: any(request["path"] == "/hang" for request in received(dev)))
    assert len(first.processes()) > 6
    assert first.stop(signal.SIGINT) < 10
    assert first.processes() == {}
    assert not (first.data_dir / "broker_url").exists()


def test_a_later_start_has_the_same_key_and_publishes_nothing(first, dev, place, tmp_path):
    if first.process.poll() is None:
        first.stop(signal.SIGTERM)
    again = Up(place[0], ports.free(), tmp_path / "again", "--json")
    try:
        again.wait_for('"api_key"')
        new = json.loads(next(line for line in again.text.splitlines() if line.startswith("{")))
        assert new == json.loads((again.data_dir / "dev.json").read_text())
        same = ("api_key", "workspace_id", "endpoint_id", "inbox_url", "ca_file", "flower_password")
        assert {name: new[name] for name in same} == {name: dev[name] for name in same}
        assert new["base_url"] != dev["base_url"]
        assert received(new) == []
        assert again.stop(signal.SIGTERM) < 10
        assert again.processes() == {}
    finally:
        end(again)


@pytest.mark.skipif(not (TEST_DATABASE_URL and TEST_BROKER_URL), reason="there is no PostgreSQL or no Redis")
def test_it_uses_the_database_and_the_broker_that_it_is_given(tmp_path):
    name = f"botbat_up_{secrets.token_hex(6)}"
    _on_server(f'CREATE DATABASE "{name}"')
    database_url = _server().set(database=name).render_as_string(hide_password=False)
    up = Up(
        tmp_path / "data",
        ports.free(),
        tmp_path / "output",
        DATABASE_URL=database_url,
        BROKER_URL=TEST_BROKER_URL,
    )
    try:
        up.wait_for("Ctrl-C stops everything.")
        assert len(re.findall(r"^receiver .* 200 in", up.text, re.MULTILINE)) == len(
            BUILT_IN.keys() - OPERATIONAL
        )
        assert not any("valkey" in line for line in up.processes().values())
        assert {"broker_url", "botbat.db"}.isdisjoint(path.name for path in up.data_dir.iterdir())
        assert up.stop(signal.SIGTERM) < 10
        assert up.processes() == {}
    finally:
        end(up)
        _on_server(f'DROP DATABASE "{name}" WITH (FORCE)')
