"""What tests of the migrations start from."""

import secrets
from collections.abc import Callable

import pytest
from alembic import command
from sqlalchemy import Connection

from app import migrations
from config.settings import load_settings
from tests.conftest import DATABASES, _on_server, _server


@pytest.fixture(params=DATABASES)
def empty(request, tmp_path, monkeypatch):
    """Give settings of an empty database; on SQLite its file is not there yet, nor is the folder."""
    if request.param == "sqlite":
        monkeypatch.setenv("DATABASE_URL", f"sqlite:///{tmp_path / 'some' / '100% new' / 'botbat.db'}")
        yield load_settings()
        return
    name = f"botbat_empty_{secrets.token_hex(6)}"
    _on_server(f'CREATE DATABASE "{name}"')
    monkeypatch.setenv("DATABASE_URL", _server().set(database=name).render_as_string(hide_password=False))
    yield load_settings()
    _on_server(f'DROP DATABASE "{name}" WITH (FORCE)')


@pytest.fixture
def migrate_to() -> Callable[[Connection, str], None]:
    """Bring the database of a connection to a revision."""

    def go(connection: Connection, revision: str) -> None:
        config = migrations._config()
        config.attributes["connection"] = connection
        command.upgrade(config, revision)

    return go
