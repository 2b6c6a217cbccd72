"""What every test can use: both databases, a recording doorbell, the API, a receiver, and the engine by hand."""

import base64
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
import pytest
from flask.testing import FlaskClient
from sqlalchemy.engine import URL, make_url
from werkzeug.test import TestResponse

from app.api_keys import service as api_keys
from app.core.unit_of_work import Resources, open_resources
from app.deliveries import engine
from app.migrations import migrate
from app.rest.context import EXTENSION
from app.rest.edge import Application
from app.web import create_app
from app.workspaces import service as workspaces
from config.settings import Settings, load_settings
from config.wire import TaskName
from tests import receivers
from worker.pump import Pump
from worker.runtime import new_sender

TEST_DATABASE_URL = os.environ.get("TEST_DATABASE_URL", "")  # noqa: TID251 - where tests find their services
TEST_BROKER_URL = os.environ.get("TEST_BROKER_URL", "")  # noqa: TID251 - see above
DATABASES = ["sqlite", "postgresql"] if TEST_DATABASE_URL else ["sqlite"]

ENCRYPTION_KEYS = f"k1:{base64.b64encode(b'k' * 32).decode()}"
EXAMPLE = Path(__file__).parent.parent / ".env.example"
SETTING_NAMES = re.findall(r"^#?([A-Z][A-Z_]+)=", EXAMPLE.read_text(), re.MULTILINE)


@dataclass
class RecordingDoorbell:
    """A doorbell that wakes nobody and remembers who rang."""

    rings: list[tuple[TaskName, float]] = field(default_factory=list)

    def ring(self, task: TaskName, *, countdown: float = 0) -> None:
        """Remember a ring."""
        self.rings.append((task, countdown))

    def answer(self, task: TaskName) -> None:
        """Forget the rings of a task."""
        self.rings = [ring for ring in self.rings if ring[0] != task]

    def ping(self) -> None:
        """Be there."""


@dataclass
class Api:
    """The HTTP API as one workspace's key sees it."""

    client: FlaskClient
    key: str
    workspace_id: str
    key_id: str

    def call(self, method: str, path: str, json: Any = None, **kwargs: Any) -> TestResponse:
        """Make an authenticated request."""
        headers = {"Authorization": f"Bearer {self.key}", **kwargs.pop("headers", {})}
        if json is not None:
            kwargs["json"] = json
        return self.client.open(path, method=method, headers=headers, **kwargs)

    def get(self, path: str, **kwargs: Any) -> TestResponse:
        """GET."""
        return self.call("GET", path, **kwargs)

    def post(self, path: str, json: Any = None, **kwargs: Any) -> TestResponse:
        """POST."""
        return self.call("POST", path, json, **kwargs)


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in SETTING_NAMES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("BOTBAT_ENV", "test")
    monkeypatch.setenv("BOTBAT_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("BOTBAT_ENCRYPTION_KEYS", ENCRYPTION_KEYS)


def _server() -> URL:
    return make_url(TEST_DATABASE_URL).set(drivername="postgresql")


def _on_server(statement: str) -> None:
    with psycopg.connect(_server().render_as_string(hide_password=False), autocommit=True) as connection:
        connection.execute(statement)


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a migrated SQLite file to copy."""
    path = tmp_path_factory.mktemp("template") / "template.db"
    _migrate(f"sqlite:///{path}")
    return path


@contextmanager
def _new_postgresql() -> Iterator[str]:
    """Give the URL of a migrated PostgreSQL database."""
    name = f"botbat_test_{secrets.token_hex(6)}"
    _on_server(f'CREATE DATABASE "{name}"')
    try:
        url = _server().set(database=name).render_as_string(hide_password=False)
        _migrate(url)
        yield url
    finally:
        _on_server(f'DROP DATABASE "{name}" WITH (FORCE)')


@pytest.fixture(scope="session")
def postgresql() -> Iterator[str]:
    """Give the URL of the database that all tests of this process use, one after the other."""
    with _new_postgresql() as url:
        yield url


def _empty(url: str) -> None:
    """Delete every row, which takes less time than a new database; triggers have no say."""
    with psycopg.connect(url) as connection:
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
        connection.execute("SET session_replication_role = replica")
        tables = connection.execute(
            "SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p')"
            " AND NOT relispartition AND relname <> 'alembic_version'"
        ).fetchall()
        connection.execute(";".join(f"DELETE FROM {name}" for (name,) in tables))


def _migrate(url: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DATABASE_URL", url)
        patch.setenv("BOTBAT_ENV", "test")
        patch.setenv("BOTBAT_ENCRYPTION_KEYS", ENCRYPTION_KEYS)
        migrate(load_settings())


@pytest.fixture(params=DATABASES)
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """Give an empty, migrated database of each kind that there is."""
    if request.param == "sqlite":
        path = tmp_path / "test.db"
        shutil.copy(request.getfixturevalue("sqlite_template"), path)
        yield f"sqlite:///{path}"
        return
    if request.node.get_closest_marker("own_database"):
        with _new_postgresql() as url:
            yield url
        return
    url = request.getfixturevalue("postgresql")
    yield url
    _empty(url)


@pytest.fixture
def settings(database_url: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Settings:
    """Give settings for that database. Only a test that uses `drain` may reach the receivers of tests/receivers.py."""
    monkeypatch.setenv("DATABASE_URL", database_url)
    if "drain" in request.fixturenames:
        monkeypatch.setenv("BOTBAT_CA_FILE", receivers.ca_file())
        monkeypatch.setenv("BOTBAT_EGRESS_ALLOW_CIDRS", "127.0.0.0/8")
    return load_settings()


@pytest.fixture
def doorbell() -> RecordingDoorbell:
    """Give the doorbell that `resources` ring."""
    return RecordingDoorbell()


@pytest.fixture
def resources(settings: Settings, doorbell: RecordingDoorbell) -> Iterator[Resources]:
    """Give the resources of a process."""
    opened = open_resources(settings, doorbell=doorbell)
    yield opened
    opened.close()


@pytest.fixture(scope="session")
def shared_app() -> Callable[[Resources], Application]:
    """Give the application with these resources: making one takes longer than most tests of it."""
    made: list[Application] = []

    def give(resources: Resources) -> Application:
        if resources.settings.trusted_proxies:
            return create_app(resources)
        if not made:
            made.append(create_app(resources))
        made[0].extensions[EXTENSION] = resources
        return made[0]

    return give


@pytest.fixture
def new_api(resources: Resources, shared_app: Callable[[Resources], Application]) -> Callable[[], Api]:
    """Make the API of a new workspace with a key for everything."""
    app = shared_app(resources)

    def make() -> Api:
        with resources.transaction() as uow:
            workspace = workspaces.create(uow, name="Test")
            row, key = api_keys.create(uow, workspace_id=workspace.id, name="test")
        return Api(app.test_client(), key, workspace.id, row.id)

    return make


@pytest.fixture
def api(new_api: Callable[[], Api]) -> Api:
    """Give the API of a workspace."""
    return new_api()


@pytest.fixture
def drain(resources: Resources) -> Iterator[Callable[[], int]]:
    """Do what the workers do, until nothing is due; gives how many attempts were made."""
    sender = new_sender(resources)

    def run() -> int:
        while True:
            with resources.transaction() as uow:
                if engine.fan_out(uow) == 0:
                    break
        return Pump(resources, sender).run()

    yield run
    sender.close()
