"""The command line: what people type, and what their scripts read."""

import io
import json
import re
import sys

import click
import pytest
import structlog

from app import cli, migrations
from app.api_keys import authentication
from app.api_keys.models import ApiKey
from app.api_keys.service import SCOPES
from app.audit import service as audit
from app.core.pagination import PageRequest
from app.development import checks
from app.development.dev_file import DevFile
from app.events.models import Event
from app.workspaces.models import Workspace
from config.settings import write_private
from tests.conftest import ENCRYPTION_KEYS


@pytest.fixture
def run(monkeypatch, capsys):
    """Run a command; gives its exit code, and what it printed to standard output and to standard error."""

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["botbat", *arguments])
        try:
            cli.main()
        except SystemExit as exit_:
            code = exit_.code if isinstance(exit_.code, int) else 1
        else:
            code = 0
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    yield run
    structlog.reset_defaults()


@pytest.fixture
def run_json(run):
    """Run a command with `--json`; gives the object that it printed."""

    def run_json(*arguments: str):
        code, out, err = run(*arguments, "--json")
        assert (code, err) == (0, "")
        return json.loads(out)

    return run_json


@pytest.fixture
def became(monkeypatch):
    """Catch the command that the process would become."""
    commands: list[list[str]] = []

    def become(_path, argv, _environment):
        commands.append(argv)
        raise SystemExit(0)

    monkeypatch.setattr("os.execve", become)
    monkeypatch.setattr("os.chdir", lambda _path: None)
    return commands


@pytest.fixture
def workspace(run_json, settings):
    return run_json("workspaces", "create", "Acme")


def commands(group: click.Group = cli.cli, above: tuple[str, ...] = ()):
    """Give every command with its path."""
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, (*above, name))
        else:
            yield pytest.param(command, id=" ".join((*above, name)))


@pytest.mark.parametrize("command", list(commands()))
def test_every_command_takes_json_and_says_what_it_does(command):
    assert any("--json" in option.opts for option in command.params)
    assert command.help


def test_no_command_shows_the_help(run):
    code, out, _err = run()
    assert code == 0
    assert {"up", "migrate", "workspaces"} <= set(re.findall(r"^  (\w+) ", out, re.MULTILINE))


def test_a_workspace_comes_with_a_key_that_works(workspace, resources):
    assert workspace.keys() == {"workspace_id", "api_key", "api_key_id", "name"}
    with resources.transaction() as uow:
        assert uow.session.get(Workspace, workspace["workspace_id"]).name == "Acme"
        credential = authentication.authenticate(uow, key=workspace["api_key"], address="127.0.0.1")
    assert (credential.workspace_id, credential.key_id) == (
        workspace["workspace_id"],
        workspace["api_key_id"],
    )


def test_what_is_changed_here_is_recorded_as_the_command_lines_doing(workspace, resources):
    with resources.transaction() as uow:
        entries = audit.list_entries(uow, workspace_id=workspace["workspace_id"], page=PageRequest()).items
    assert entries[-1]["action"] == "workspace.created"
    assert all(entry["actor"] == {"type": "cli", "id": None} for entry in entries)


def test_people_get_lines(run, settings):
    code, out, err = run("workspaces", "create", "Acme")
    assert (code, err) == (0, "")
    assert re.fullmatch(
        r"workspace_id  ws_\w+\napi_key       bbat_live_\w+\napi_key_id    key_\w+\nname          Acme\n", out
    )


def test_a_key_is_made_as_asked_for(run_json, workspace, resources):
    made = run_json(
        *("keys", "create", "--workspace", workspace["workspace_id"], "--name", "CI"),
        *("--expires-in-days", "30", "--scope", "events:write", "--scope", "events:read"),
    )
    assert made["key"].startswith(made["prefix"])
    assert (made["name"], made["status"], made["scopes"]) == ("CI", "active", ["events:write", "events:read"])
    assert made["expires_at"] is not None
    with resources.transaction() as uow:
        assert uow.session.get(ApiKey, made["id"]).workspace_id == workspace["workspace_id"]


def test_a_key_without_scopes_has_all(run_json, workspace):
    made = run_json("keys", "create", "--workspace", workspace["workspace_id"], "--name", "CI")
    assert made["scopes"] == ["*"]
    assert made["expires_at"] is None


@pytest.mark.parametrize(
    ("options", "pointer"),
    [
        (["--name", ""], "/name"),
        (["--name", "x" * 101], "/name"),
        (["--name", "CI", "--expires-in-days", "0"], "/expires_in_days"),
        (["--name", "CI", "--scope", "everything"], "/scopes/0"),
    ],
)
def test_a_key_that_cannot_be_is_refused(run, workspace, options, pointer):
    code, out, err = run("keys", "create", "--workspace", workspace["workspace_id"], *options, "--json")
    assert (code, err) == (1, "")
    error = json.loads(out)["error"]
    assert error["code"] == "invalid_request"
    assert {fault["pointer"] for fault in error["errors"]} == {pointer}


def test_a_key_can_have_a_rate_limit_of_its_own(run, run_json, workspace, resources):
    arguments = ["keys", "create", "--workspace", workspace["workspace_id"], "--name", "CI", "--rate-limit"]
    made = run_json(*arguments, "50")
    with resources.transaction() as uow:
        assert uow.session.get(ApiKey, made["id"]).rate_limit_per_second == 50
        credential = authentication.authenticate(uow, key=made["key"], address="127.0.0.1")
    assert credential.rate_limit == 50
    for limit in ("0", "-1", "1.5", "many", "1000001"):
        assert run(*arguments, limit)[0] == 1


def test_all_keys_are_listed(run, run_json, workspace, monkeypatch):
    monkeypatch.setattr("app.core.pagination.MAX_LIMIT", 2)
    ids = [workspace["api_key_id"]]
    for number in range(4):
        arguments = ("--workspace", workspace["workspace_id"], "--name", str(number))
        ids.append(run_json("keys", "create", *arguments)["id"])
    run_json("keys", "revoke", ids[1], "--workspace", workspace["workspace_id"])
    listed = run_json("keys", "list", "--workspace", workspace["workspace_id"])["data"]
    assert [key["id"] for key in listed] == ids[::-1]
    assert [key["status"] for key in listed] == ["active", "active", "active", "revoked", "active"]
    assert "key" not in listed[0]
    code, out, err = run("keys", "list", "--workspace", workspace["workspace_id"])
    assert (code, err) == (0, "")
    head, *lines = out.splitlines()
    assert head.split()[:3] == ["id", "name", "prefix"]
    assert [line.split()[0] for line in lines] == ids[::-1]
    assert [line.index("bbat_live_") for line in lines] == [head.index("prefix")] * 5


def test_a_key_is_revoked_by_its_workspace_alone(run, run_json, workspace, resources):
    other = run_json("workspaces", "create", "Other")
    arguments = ["keys", "revoke", workspace["api_key_id"], "--workspace"]
    assert run(*arguments, other["workspace_id"])[0] == 1
    revoked = run_json(*arguments, workspace["workspace_id"])
    assert (revoked["id"], revoked["status"]) == (workspace["api_key_id"], "revoked")
    with resources.transaction() as uow, pytest.raises(authentication.ApiKeyRevoked):
        authentication.authenticate(uow, key=workspace["api_key"], address="127.0.0.1")


def test_the_report_says_which_pepper_is_still_needed(run, run_json, workspace, monkeypatch):
    monkeypatch.setenv("BOTBAT_ENCRYPTION_KEYS", f"k2:{'A' * 43}=,{ENCRYPTION_KEYS}")
    assert run_json("keys", "rehash-report") == {
        "data": [
            {"encryption_key": "k2", "state": "current", "active_api_keys": 0},
            {"encryption_key": "k1", "state": "old", "active_api_keys": 1},
        ]
    }
    monkeypatch.setenv("BOTBAT_ENCRYPTION_KEYS", f"k2:{'A' * 43}=")
    code, out, err = run("keys", "rehash-report")
    assert (code, err) == (0, "")
    assert [line.split() for line in out.splitlines()] == [
        ["encryption_key", "state", "active_api_keys"],
        ["k2", "current", "0"],
        ["k1", "missing", "1"],
    ]


def test_known_scopes_are_taken(run_json, workspace):
    for scope in SCOPES[:3]:
        run_json("keys", "create", "--workspace", workspace["workspace_id"], "--name", "x", "--scope", scope)


def test_an_event_is_published(run_json, workspace, resources):
    arguments = ["events", "publish", "message.received", "--workspace", workspace["workspace_id"]]
    receipt = run_json(*arguments, "--data", '{"text": "hi"}', "--external-id", "a-1")
    assert receipt.keys() == {"id", "external_id", "type", "occurred_at", "created_at", "duplicate"}
    assert (receipt["type"], receipt["external_id"], receipt["duplicate"]) == (
        "message.received",
        "a-1",
        False,
    )
    with resources.transaction() as uow:
        event = uow.session.get(Event, receipt["id"])
        assert event.workspace_id == workspace["workspace_id"]
        assert json.loads(event.body)["data"] == {"text": "hi"}
    again = run_json(*arguments, "--external-id", "a-1")
    assert (again["id"], again["duplicate"]) == (receipt["id"], True)


def test_an_event_s_data_can_come_from_a_file_or_standard_input(run_json, workspace, tmp_path, monkeypatch):
    arguments = ["events", "publish", "contact.created", "--workspace", workspace["workspace_id"], "--data"]
    (tmp_path / "data.json").write_text('{"id": "ct_1"}')
    assert run_json(*arguments, f"@{tmp_path / 'data.json'}")["id"]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b'{"id": "ct_2"}')))
    assert run_json(*arguments, "-")["id"]


def test_an_event_goes_to_the_workspace_of_up(run, run_json, workspace, settings):
    code, _out, err = run("events", "publish", "message.received")
    assert (code, err) == (1, "botbat: Say whose event it is: --workspace ID.\n")
    content = {**dict.fromkeys(DevFile.__dataclass_fields__, ""), "workspace_id": workspace["workspace_id"]}
    write_private(settings.data_dir / "dev.json", json.dumps(content))
    assert run_json("events", "publish", "message.received")["id"]


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["nonsense.type"], "unknown_event_type"),
        (["message.received", "--data", "{"], "malformed_json"),
        (["message.received", "--data", "[]"], "invalid_request"),
        (["message.received", "--data", '{"channel": 1}'], "payload_invalid"),
        (["message.received", "--external-id", "a b"], "invalid_request"),
        (["message.received", "--data", "@/nowhere"], "os_error"),
        (["message.received", "--workspace", "ws_none"], "usage"),
        (["--nonsense"], "usage"),
        ([], "usage"),
    ],
)
def test_what_is_wrong_is_one_line_or_json(run, workspace, arguments, code):
    arguments = ["events", "publish", "--workspace", workspace["workspace_id"], *arguments]
    exit_code, out, err = run(*arguments)
    assert (exit_code, out) == (1, "")
    assert err.startswith("botbat: ")
    assert len(err.splitlines()) == 1
    exit_code, out, err = run(*arguments, "--json")
    assert (exit_code, err) == (1, "")
    assert json.loads(out)["error"]["code"] == code


@pytest.mark.parametrize("arguments", [["nonsense"], ["keys", "create", "--name", "x"], ["bench", "nothing"]])
def test_a_mistyped_command_is_one_line(run, arguments):
    code, out, err = run(*arguments)
    assert (code, out) == (1, "")
    assert len(err.splitlines()) == 1


def test_a_wrong_configuration_names_every_fault(run, monkeypatch):
    monkeypatch.setenv("PORT", "0")
    monkeypatch.setenv("DATABASE_URL", "mysql://root:pw@db/x")
    code, out, err = run("config")
    assert (code, out) == (1, "")
    assert err.splitlines()[0] == "botbat: Invalid configuration:"
    assert len(err.splitlines()) == 3
    assert "pw" not in err
    _code, out, _err = run("config", "--json")
    error = json.loads(out)["error"]
    assert error["code"] == "invalid_configuration"
    assert len(error["errors"]) == 2


def test_config_shows_no_secret(run, run_json, monkeypatch):
    monkeypatch.setenv("DATABASE_URL", "postgresql://u:hidden@db/x")
    monkeypatch.setenv("FLOWER_PASSWORD", "hidden")
    assert run_json("config")["database_url"] == "postgresql+psycopg://u:***@db/x"
    code, out, _err = run("config")
    assert code == 0
    assert "hidden" not in out
    assert "flower_password  " in out


def test_migrate_is_needed_first_and_says_the_revision(run, run_json, monkeypatch, tmp_path):
    monkeypatch.setenv("DATABASE_URL", f"sqlite:///{tmp_path / 'new.db'}")
    code, _out, err = run("workspaces", "create", "Acme")
    assert (code, err) == (
        1,
        "botbat: The database does not have this version's schema. Run: ./botbat migrate\n",
    )
    assert run_json("migrate") == {"revision": max(migrations._heads())}
    assert run_json("workspaces", "create", "Acme")["workspace_id"]


def test_a_database_that_is_away_is_one_line(run, monkeypatch):
    monkeypatch.setenv("DATABASE_URL", "postgresql://u:hidden@127.0.0.1:1/x")
    code, _out, err = run("workspaces", "create", "Acme")
    assert code == 1
    assert err.startswith("botbat: The database refused: ")
    assert len(err.splitlines()) == 1
    assert "hidden" not in err


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["web", "--reload"], ["app.server", "--reload", "app.web:create_app()"]),
        (["worker", "-c", "3"], ["celery", "worker", "-c", "3"]),
        (["beat", "--loglevel=INFO"], ["celery", "beat", "--loglevel=INFO"]),
        (["flower", "--url_prefix=flower"], ["celery", "flower", "--url_prefix=flower"]),
        (["bench", "drain", "--events", "9", "--json"], ["bench.drain", "--events", "9", "--json"]),
        (["test", "-k", "x", "tests"], ["pytest", "-k", "x", "tests"]),
    ],
)
def test_processes_get_what_is_typed_after_them(run, became, arguments, expected):
    assert run(*arguments)[0] == 0
    (argv,) = became
    assert [word for word in argv if word in expected] == expected


@pytest.mark.parametrize("arguments", [[], ["-x"], ["-k", "keys"]])
def test_all_tests_run_on_every_core(run, became, arguments):
    run("test", *arguments)
    assert became[0][became[0].index("-n") :][:2] == ["-n", "auto"]
    assert became[0][len(became[0]) - len(arguments) :] == arguments


@pytest.mark.parametrize(
    "chosen", ["tests/test_cli.py", "tests/api", "tests/test_cli.py::test_people_get_lines"]
)
def test_chosen_tests_run_in_one_process(run, became, chosen):
    run("test", "-x", chosen)
    assert became[0][-3:] == ["pytest", "-x", chosen]


def test_a_process_is_not_started_with_a_wrong_configuration(run, became, monkeypatch):
    monkeypatch.setenv("PORT", "0")
    code, _out, err = run("web")
    assert (code, became) == (1, [])
    assert "PORT: Must be" in err


def test_tests_do_not_get_the_settings_of_a_service(run, monkeypatch):
    environments: list[dict[str, str]] = []
    monkeypatch.setattr("os.execve", lambda _path, _argv, environment: environments.append(environment))
    monkeypatch.setattr("os.chdir", lambda _path: None)
    monkeypatch.setenv("DATABASE_URL", "postgresql://production/x")
    monkeypatch.setenv("PORT", "8000")
    monkeypatch.setenv("TEST_DATABASE_URL", "postgresql://tests/x")
    run("test")
    assert "TEST_DATABASE_URL" in environments[0]
    assert not {"DATABASE_URL", "PORT", "BOTBAT_ENV", "BOTBAT_ENCRYPTION_KEYS"} & environments[0].keys()


def test_check_fails_when_one_check_fails(run, monkeypatch):
    fine = ["-c", ""]
    monkeypatch.setattr(checks, "CHECKS", {"format": fine, "types": fine})
    code, out, _err = run("check", "--json")
    assert (code, json.loads(out)) == (0, {"format": "passed", "types": "passed"})
    monkeypatch.setattr(checks, "CHECKS", {"format": ["-c", "raise SystemExit(3)"], "types": fine})
    code, out, _err = run("check", "--json")
    assert (code, json.loads(out)) == (1, {"format": "FAILED", "types": "passed"})


def test_a_bug_is_a_traceback(run, monkeypatch):
    def fail(*_anything):
        raise ZeroDivisionError

    monkeypatch.setattr(migrations, "migrate", fail)
    with pytest.raises(ZeroDivisionError):
        run("migrate")
