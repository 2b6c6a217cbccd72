"""/healthz tells whether the process answers, /readyz whether it can do its work."""

import socket
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from app.core.unit_of_work import open_resources
from app.web import create_app
from config.settings import load_settings
from tests.api import expect


def readiness(doorbell: Any) -> Any:
    """Give the answer of a process with the settings of the environment, of which /healthz must always be green."""
    resources = open_resources(load_settings(), doorbell=doorbell)
    client = create_app(resources).test_client()
    assert expect.ok(client.get("/healthz")) == {"status": "ok"}
    answer = client.get("/readyz")
    resources.close()
    return answer


def test_green(api):
    assert expect.ok(api.client.get("/healthz")) == {"status": "ok"}
    checks = {"database": "ok", "broker": "ok"}
    assert expect.ok(api.client.get("/readyz")) == {"status": "ok", "checks": checks}


def test_head_is_enough(api):
    for path in ("/healthz", "/readyz"):
        answer = api.client.head(path)
        assert (answer.status_code, answer.data) == (200, b"")


def test_red_for_a_database_that_was_never_migrated(monkeypatch, tmp_path, doorbell):
    monkeypatch.setenv("DATABASE_URL", f"sqlite:///{tmp_path / 'empty.db'}")
    checks = {"database": "not migrated", "broker": "ok"}
    assert expect.ok(readiness(doorbell), 503) == {"status": "unavailable", "checks": checks}


@pytest.mark.own_database
def test_red_for_a_database_of_another_version(settings, resources, doorbell):
    with resources.transaction() as uow:
        uow.session.execute(text("UPDATE alembic_version SET version_num = '0000'"))
    assert expect.ok(readiness(doorbell), 503)["checks"]["database"] == "not migrated"


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_red_for_a_database_that_is_not_there(monkeypatch, tmp_path, doorbell, kind):
    url = {
        "sqlite": f"sqlite:///{tmp_path / 'no' / 'such' / 'folder' / 'secret-name.db'}",
        "postgresql": f"postgresql://secret-name:secret-word@127.0.0.1:{closed_port()}/secret-name",
    }[kind]
    monkeypatch.setenv("DATABASE_URL", url)
    answer = readiness(doorbell)
    checks = {"database": "unavailable", "broker": "ok"}
    assert expect.ok(answer, 503) == {"status": "unavailable", "checks": checks}
    assert "secret" not in answer.get_data(as_text=True)
    assert not Path(tmp_path / "no").exists()


def test_red_for_a_broker_that_is_not_there(settings, monkeypatch):
    monkeypatch.setenv("BROKER_URL", f"redis://:secret-word@127.0.0.1:{closed_port()}/0")
    answer = readiness(None)
    checks = {"database": "ok", "broker": "unavailable"}
    assert expect.ok(answer, 503) == {"status": "unavailable", "checks": checks}
    assert "secret" not in answer.get_data(as_text=True)


def closed_port() -> int:
    """Give a port that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port
