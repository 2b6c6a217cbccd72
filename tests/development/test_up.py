"""What `up` refuses, and how it introduces itself to a database."""

import json
import subprocess
import sys
import threading
from dataclasses import fields
from typing import Any

import pytest
from werkzeug.serving import make_server

from app.core.unit_of_work import open_resources
from app.development import dev_file, first_start, up
from app.development.api import Api, ApiRefused
from app.development.dev_file import DevFile
from app.events.catalogue import BUILT_IN, OPERATIONAL
from app.processes import ROOT, CannotStart
from app.web import create_app
from config.settings import load_settings

RECEIVER = "https://localhost:9443"


@pytest.fixture
def server(settings, monkeypatch):
    """Serve the API; gives its URL and the settings of its database."""
    monkeypatch.setenv("BOTBAT_DEV_ORIGINS", RECEIVER)
    resources = open_resources(load_settings())
    with make_server("127.0.0.1", 0, create_app(resources), threaded=True) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()
        thread.join()
    resources.close()


@pytest.fixture
def api(server, settings):
    _workspace_id, key = first_start.make_workspace(settings)
    return Api(server, key)


def test_the_workspace_that_it_makes_is_recorded_as_the_command_lines_doing(api):
    first = api.get("/v1/audit-log")["data"][-1]
    assert (first["action"], first["actor"]) == ("workspace.created", {"type": "cli", "id": None})


def test_production_is_refused(monkeypatch):
    monkeypatch.setenv("BOTBAT_ENV", "production")
    monkeypatch.setenv("BROKER_URL", "redis://broker")
    with pytest.raises(CannotStart, match="`up` is for development"):
        up.run(as_json=False)


def test_a_second_one_is_refused_and_says_where_the_first_is(tmp_path):
    known = DevFile(**{field.name: "http://127.0.0.1:8123" for field in fields(DevFile)})
    dev_file.save(tmp_path, known)
    code = "import sys; from pathlib import Path; from app.development import up\n"
    code += "with up._only_one(Path(sys.argv[1])): print('mine', flush=True); sys.stdin.read()"
    first = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert first.stdout
    assert first.stdout.readline() == "mine\n"
    with (
        pytest.raises(CannotStart, match=r"It already runs at http://127\.0\.0\.1:8123"),
        up._only_one(tmp_path),
    ):
        pass
    first.communicate()
    with up._only_one(tmp_path):
        pass


def test_the_endpoint_is_made_once_and_again_when_somebody_deleted_it(api):
    first = first_start.ensure_endpoint(api, None, f"{RECEIVER}/inbox")
    made = api.get(f"/v1/endpoints/{first}")
    assert (made["url"], made["events"], made["status"]) == (f"{RECEIVER}/inbox", ["*"], "active")
    assert first_start.ensure_endpoint(api, first, f"{RECEIVER}/inbox") == first
    other = first_start.ensure_endpoint(api, "ep_01m8341gy2ed7ar7kz34nyh99t", f"{RECEIVER}/inbox")
    assert other != first


def test_the_endpoint_follows_the_receiver(api):
    endpoint_id = first_start.ensure_endpoint(api, None, f"{RECEIVER}/old")
    assert first_start.ensure_endpoint(api, endpoint_id, f"{RECEIVER}/inbox") == endpoint_id
    assert api.get(f"/v1/endpoints/{endpoint_id}")["url"] == f"{RECEIVER}/inbox"


def test_a_key_that_is_not_known_here_is_no_reason_to_make_an_endpoint(server):
    with pytest.raises(ApiRefused) as refused:
        first_start.ensure_endpoint(Api(server, "nonsense"), "ep_1", f"{RECEIVER}/inbox")
    assert refused.value.status == 401


def test_the_receiver_is_told_the_secrets_of_its_endpoints_alone(api, tmp_path):
    own = api.post("/v1/endpoints", {"url": f"{RECEIVER}/fail", "events": ["*"]})
    api.post("/v1/endpoints", {"url": "https://example.com/", "events": ["*"]})
    first_start.tell_receiver(api, RECEIVER, tmp_path / "secrets.json")
    assert json.loads((tmp_path / "secrets.json").read_text()) == {own["id"]: own["signing_secret"]}
    assert (tmp_path / "secrets.json").stat().st_mode & 0o777 == 0o600


def test_one_example_of_each_built_in_type_is_published(api):
    events = first_start.publish_examples(api)
    assert len(events) == len(BUILT_IN.keys() - OPERATIONAL) >= 8
    listed = api.get("/v1/events?limit=100")["data"]
    assert {event["id"] for event in listed} == events
    assert {event["type"] for event in listed} == BUILT_IN.keys() - OPERATIONAL


class Log:
    """Stands for the API: a delivery log that grows by one attempt with each look."""

    def __init__(self) -> None:
        self.attempts: list[dict[str, Any]] = []

    def get(self, _path: str) -> dict[str, Any]:
        self.attempts.insert(0, {"event_id": f"evt_{len(self.attempts)}"})
        return {"data": list(self.attempts)}


def test_deliveries_are_told_once_each_as_they_come(monkeypatch):
    told: list[str] = []
    log: Any = Log()
    missing = first_start.follow(
        log,
        "ep_1",
        {"evt_1", "evt_2"},
        lambda attempt: told.append(attempt["event_id"]),
        lambda _seconds: None,
    )
    assert (told, missing) == (["evt_1", "evt_2"], set())


def test_deliveries_that_do_not_come_are_given_back(monkeypatch):
    monkeypatch.setattr(first_start, "_DELIVERED_WITHIN_SECONDS", 0.01)
    log: Any = Log()
    assert first_start.follow(log, "ep_1", {"evt_x"}, print, lambda _seconds: None) == {"evt_x"}


def test_nobody_answering_is_no_status():
    assert Api("http://127.0.0.1:1").status("/readyz") is None
