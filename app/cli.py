"""The command line, `./botbat`. Every command takes `--json`; an expected error is one line and exit 1."""

import functools
import json
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

if TYPE_CHECKING:
    from app.core.unit_of_work import UnitOfWork
    from app.processes import Command

_PASS_ON = {"ignore_unknown_options": True, "allow_interspersed_args": False}
_OUR_SETTINGS = re.compile(r"BOTBAT_|FLOWER_|WEB_|(DATABASE|BROKER)_URL|PORT$")


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def cli() -> None:
    """BotBat Integrations: API keys, signed webhooks and their delivery log."""


@cli.group()
def workspaces() -> None:
    """Tenants."""


@cli.group()
def keys() -> None:
    """API keys."""


@cli.group()
def events() -> None:
    """Published events."""


def _command(group: click.Group, name: str, **settings: Any) -> Callable[[Callable[..., Any]], click.Command]:
    """Register a command with `--json`; what it returns is printed."""

    def register(function: Callable[..., Any]) -> click.Command:
        @functools.wraps(function)
        def run(*, as_json: bool, **arguments: Any) -> None:
            answer = function(**arguments)
            if answer is not None:
                _print(answer, as_json=as_json)

        option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
        return group.command(name, **settings)(option(run))

    return register


def _print(answer: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(answer))
        return
    if "data" in answer:
        _print_table(answer["data"])
        return
    width = max(map(len, answer))
    for name, value in answer.items():
        print(f"{name:<{width}}  {_shown(value)}".rstrip())


def _print_table(rows: list[dict[str, Any]]) -> None:
    if not rows:
        return
    lines = [list(rows[0]), *([_shown(value) for value in row.values()] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        print("  ".join(f"{cell:<{width}}" for cell, width in zip(line, widths, strict=True)).rstrip())


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return "" if value is None else str(value)


@_command(workspaces, "create")
@click.argument("name")
def create_workspace(name: str) -> dict[str, Any]:
    """Make a workspace and its first API key, which is shown only now."""
    from app.api_keys import service as api_keys
    from app.workspaces import service

    with _transaction() as uow:
        workspace = service.create(uow, name=name)
        row, key = api_keys.create(uow, workspace_id=workspace.id, name="First key")
        return {"workspace_id": workspace.id, "api_key": key, "api_key_id": row.id, "name": workspace.name}


@_command(keys, "create")
@click.option("--workspace", required=True, metavar="ID", help="Whose key it is.")
@click.option("--name", required=True)
@click.option("--expires-in-days", type=int, metavar="DAYS")
@click.option("--scope", "scopes", multiple=True, help="May be given several times; none means all.")
@click.option("--rate-limit", type=click.IntRange(1, 1_000_000), metavar="N", help="Requests per second.")
def create_key(
    workspace: str, name: str, expires_in_days: int | None, scopes: tuple[str, ...], rate_limit: int | None
) -> dict[str, Any]:
    """Make an API key, which is shown only now."""
    from app.api_keys import service
    from app.api_keys.schemas import ApiKeyRequest, CreatedApiKey

    asked = {"name": name, "expires_in_days": expires_in_days, "scopes": list(scopes) or None}
    wanted = _loaded(ApiKeyRequest(), asked)
    with _transaction() as uow:
        _require_workspace(uow, workspace)
        row, key = service.create(uow, workspace_id=workspace, rate_limit_per_second=rate_limit, **wanted)
        shown: dict[str, Any] = CreatedApiKey().dump(service.view(uow, row) | {"key": key})
    return shown


@_command(keys, "list")
@click.option("--workspace", required=True, metavar="ID", help="Whose keys.")
def list_keys(workspace: str) -> dict[str, Any]:
    """List all API keys of a workspace, newest first."""
    from app.api_keys import service
    from app.api_keys.models import KeyStatus
    from app.api_keys.schemas import ApiKeyObject
    from app.core.pagination import MAX_LIMIT, PageRequest

    shown: list[dict[str, Any]] = []
    with _transaction() as uow:
        _require_workspace(uow, workspace)
        page = PageRequest(MAX_LIMIT)
        while True:
            found = service.list_keys(uow, workspace_id=workspace, page=page, statuses=list(KeyStatus))
            shown += ApiKeyObject(many=True).dump(found.items)
            if found.next_cursor is None:
                return {"data": shown}
            page = PageRequest(MAX_LIMIT, before=found.items[-1]["id"])


@_command(keys, "revoke")
@click.argument("key_id", metavar="ID")
@click.option("--workspace", required=True, metavar="ID", help="Whose key it is.")
def revoke_key(key_id: str, workspace: str) -> dict[str, Any]:
    """Revoke an API key, at once and for good."""
    from app.api_keys import service
    from app.api_keys.schemas import ApiKeyObject

    with _transaction() as uow:
        shown: dict[str, Any] = ApiKeyObject().dump(
            service.revoke(uow, workspace_id=workspace, key_id=key_id)
        )
    return shown


@_command(keys, "rehash-report")
def rehash_report() -> dict[str, Any]:
    """Tell how many active API keys are hashed under each of BOTBAT_ENCRYPTION_KEYS.

    A key is hashed anew, under the first of them, when it is used. One that is under a key which is not configured
    (any more) is unknown.
    """
    from app.api_keys import service

    with _transaction() as uow:
        configured = uow.resources.key_hash.key_ids
        counts = service.count_active_by_pepper_in_all_workspaces(uow)
    states = dict.fromkeys(configured, "old") | {configured[0]: "current"}
    return {
        "data": [
            {"encryption_key": key_id, "state": states.get(key_id, "missing"), "active_api_keys": count}
            for key_id, count in counts.items()
        ]
    }


@_command(events, "publish")
@click.argument("event_type", metavar="TYPE")
@click.option("--data", default="{}", metavar="JSON|@FILE|-", help="The payload; - reads standard input.")
@click.option("--workspace", metavar="ID", help="Default: the one that `up` made.")
@click.option("--external-id", help="Your own id; a second event with it is not published.")
def publish_event(
    event_type: str, data: str, workspace: str | None, external_id: str | None
) -> dict[str, Any]:
    """Publish an event."""
    from app.core import json_body
    from app.events import service
    from app.events.schemas import EventReceipt, PublishRequest

    body = json_body.parse(b'{"data":' + _read(data) + b"}") | {"type": event_type}
    if external_id is not None:
        body["external_id"] = external_id
    draft = _loaded(PublishRequest(), body)
    with _transaction() as uow:
        workspace = workspace or _development_workspace(uow)
        _require_workspace(uow, workspace)
        receipt = service.publish(uow, workspace_id=workspace, draft=draft)
    answer: dict[str, Any] = EventReceipt().dump(receipt)
    return answer


@_command(cli, "migrate")
def migrate() -> dict[str, Any]:
    """Bring the database to the newest schema."""
    from app import migrations
    from app.deliveries.models import PARTITIONED_TABLES
    from config.settings import load_settings

    return {"revision": migrations.migrate(load_settings(), PARTITIONED_TABLES)}


@_command(cli, "config")
def show_config() -> dict[str, Any]:
    """Show the settings, with secrets masked."""
    from config.settings import load_settings

    return load_settings().masked()


@_command(cli, "up")
def up() -> None:
    """Run everything on this machine, for development. Ctrl-C stops it."""
    from app.development.up import run

    run(as_json=click.get_current_context().params["as_json"])


def _add_process(name: str, text: str) -> None:
    @_command(cli, name, help=text, context_settings=_PASS_ON)
    @click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
    def become(arguments: tuple[str, ...]) -> None:
        from app import processes
        from config.settings import load_settings

        settings = (
            load_settings()
        )  # also so that what is wrong with them is said here, and not in a traceback
        if name == "flower":
            _become(processes.flower(settings, arguments))
        _become(getattr(processes, name)(arguments))


_add_process("web", "Run the web server; ARGUMENTS go to gunicorn.")
_add_process("worker", "Run a worker; ARGUMENTS go to Celery.")
_add_process("beat", "Run the clock of periodic tasks; ARGUMENTS go to Celery.")
_add_process("flower", "Run Flower, the view of workers and queues; ARGUMENTS go to it.")


@_command(cli, "bench", context_settings=_PASS_ON)
@click.argument("name")
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def bench(name: str, arguments: tuple[str, ...]) -> None:
    """Run a benchmark of the folder bench/."""
    from app.processes import ROOT, Command
    from config.settings import process_environment

    if not (ROOT / "bench" / f"{name}.py").is_file():
        known = sorted(path.stem for path in (ROOT / "bench").glob("[a-z]*.py"))
        raise click.ClickException(f"There is no benchmark {name!r}. There is: {', '.join(known)}.")
    _become(Command([sys.executable, "-m", f"bench.{name}", *arguments], process_environment()))


@_command(cli, "test", context_settings=_PASS_ON)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def test(arguments: tuple[str, ...]) -> None:
    """Run the tests, all of them on every core; ARGUMENTS go to pytest."""
    from app.processes import ROOT, Command
    from config.settings import process_environment

    # The tests choose their settings: those of a running service are not theirs.
    environment = {
        name: value for name, value in process_environment().items() if not _OUR_SETTINGS.match(name)
    }
    chosen = any((ROOT / argument.partition("::")[0]).exists() for argument in arguments)
    # A file's tests stay together, since some share processes that take seconds to start; in the order of their names,
    # which has the longest ones well before the end.
    everywhere = () if chosen else ("-n", "auto", "--dist", "loadfile", "--no-loadscope-reorder")
    _become(Command([sys.executable, "-m", "pytest", *everywhere, *arguments], environment))


@_command(cli, "check")
def check() -> dict[str, Any]:
    """Check format, lint, types and import contracts."""
    from app.development import checks

    passed = checks.run()
    if not all(passed.values()):
        click.get_current_context().call_on_close(functools.partial(sys.exit, 1))
    return {name: "passed" if fine else "FAILED" for name, fine in passed.items()}


@_command(cli, "lock")
def lock() -> NoReturn:
    """Compile both requirements files anew from their .in files."""
    raise click.ClickException("Run it as ./botbat lock, which needs no environment.")


def _become(command: "Command") -> NoReturn:
    from app.processes import ROOT

    os.chdir(ROOT)
    os.execve(command.argv[0], command.argv, command.environment)  # noqa: S606 - no shell is wanted


@contextmanager
def _transaction() -> "Iterator[UnitOfWork]":
    import structlog

    from app import migrations
    from app.core.actor import Actor
    from app.core.unit_of_work import open_resources
    from config.settings import load_settings

    # Standard output is for answers. Below errors there is nothing to tell: a broker that is down matters not
    # here, since the sweep finds what no doorbell announced.
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    settings = load_settings()
    resources = open_resources(settings)
    try:
        with resources.database.engine.connect() as connection:
            current = migrations.is_current(connection)
        if not current:
            raise click.ClickException(
                "The database does not have this version's schema. Run: ./botbat migrate"
            )
        with resources.transaction() as uow:
            uow.actor = Actor("cli")
            yield uow
    finally:
        resources.close()


def _loaded(schema: Any, body: dict[str, Any]) -> Any:
    from app.core.errors import Invalid
    from app.rest.parser import field_errors

    if faults := schema.validate(body):
        errors = list(field_errors(faults))
        raise Invalid("; ".join(f"{item.pointer}: {item.detail}" for item in errors), errors=errors)
    return schema.load(body)


def _require_workspace(uow: "UnitOfWork", workspace_id: str) -> None:
    from app.workspaces.models import Workspace

    if uow.session.get(Workspace, workspace_id) is None:
        raise click.ClickException(f"There is no workspace {workspace_id}.")


def _development_workspace(uow: "UnitOfWork") -> str:
    from app.development import dev_file

    known = dev_file.load(uow.resources.settings.data_dir)
    if known is None:
        raise click.ClickException("Say whose event it is: --workspace ID.")
    return known.workspace_id


def _read(text: str) -> bytes:
    if text == "-":
        return sys.stdin.buffer.read()
    return Path(text[1:]).read_bytes() if text.startswith("@") else text.encode()


def main() -> None:
    """Run the command line."""
    from app import cli_errors

    with cli_errors.told(as_json="--json" in sys.argv):
        cli.main(args=sys.argv[1:] or ["--help"], prog_name="botbat", standalone_mode=False)


if __name__ == "__main__":
    main()
