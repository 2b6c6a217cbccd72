"""A database is brought to the newest schema by whoever comes first, once, and whole or not at all."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine, inspect

import app.web  # noqa: F401 - imports every table
from app import migrations
from app.core.database import Base, Database
from app.processes import ROOT
from config.settings import process_environment

MIGRATE = (
    "from app.migrations import migrate; from config.settings import load_settings; migrate(load_settings())"
)


def is_current(settings) -> bool:
    database = Database(settings.database_url)
    try:
        with database.engine.connect() as connection:
            return migrations.is_current(connection)
    finally:
        database.dispose()


def test_an_empty_database_gets_the_newest_schema(empty):
    revision = migrations.migrate(empty)
    assert revision == ScriptDirectory.from_config(migrations._config()).get_current_head()
    assert is_current(empty)
    assert migrations.migrate(empty) == revision


def test_before_it_is_migrated_a_database_is_not_current(empty):
    if empty.embedded_database:
        Path(empty.database_url.removeprefix("sqlite:///")).parent.mkdir(parents=True)
    assert not is_current(empty)


def test_several_at_once_are_safe(empty):
    command = [sys.executable, "-W", "error", "-c", MIGRATE]
    environment = process_environment(PYTHONWARNINGS="")
    started = [
        subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    errors = [process.communicate(timeout=60)[1] for process in started]
    assert errors == [""] * 3
    assert [process.returncode for process in started] == [0] * 3
    assert is_current(empty)


def test_a_step_that_fails_leaves_nothing_behind(empty, tmp_path, monkeypatch):
    source = Path(migrations.__file__).parent
    folder = tmp_path / "migrations"
    (folder / "versions").mkdir(parents=True)
    for name in ("env.py", "script.py.mako"):
        (folder / name).write_text((source / name).read_text())
    (folder / "versions" / "0001.py").write_text(
        "from alembic import op\nimport sqlalchemy as sa\nrevision = '0001'\ndown_revision = None\n"
        "def upgrade():\n"
        "    op.create_table('half', sa.Column('id', sa.Integer))\n"
        "    raise ZeroDivisionError\n"
    )
    monkeypatch.setattr(migrations, "__file__", str(folder / "__init__.py"))
    with pytest.raises(ZeroDivisionError):
        migrations.migrate(empty)
    engine = create_engine(empty.database_url)
    assert inspect(engine).get_table_names() == []
    engine.dispose()


def is_no_partition(name: str | None, kind: str, _parents: object) -> bool:
    return kind != "table" or not re.search(r"_([0-9]{8}|default)$", str(name))


def test_the_steps_make_what_the_models_say(settings):
    """On every database that the tests have."""
    database = Database(settings.database_url)
    with database.engine.connect() as connection:
        assert migrations.is_current(connection)
        options = {"compare_type": True, "include_name": is_no_partition}
        context = MigrationContext.configure(connection, opts=options)
        assert compare_metadata(context, Base.metadata) == []
    database.dispose()
