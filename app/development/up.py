"""`./botbat up`: everything on this machine, from an empty folder to a first delivery, until Ctrl-C."""

import contextlib
import fcntl
import json
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict
from http.client import HTTPException
from pathlib import Path
from typing import Any

import click

from app.development import broker, dev_file, places
from app.development.api import Api, ApiRefused
from app.development.dev_file import DevFile
from app.development.places import Places
from app.development.supervisor import Supervisor
from app.development.terminal import Terminal
from app.processes import CannotStart
from config.settings import load_settings, make_private_dir

_READY_WITHIN_SECONDS = 60
_BROKER_WITHIN_SECONDS = 5
_TELL_SECONDS = 1.0
_TEND_SECONDS = 0.1
_UNAUTHORIZED = 401


class Stopped(Exception):
    """Somebody pressed Ctrl-C."""


def run(*, as_json: bool) -> None:
    """Run until a signal; raises `CannotStart`. With `as_json`, prints what dev.json has when ready."""
    settings = load_settings()
    if settings.production:
        raise CannotStart("`up` is for development. In production: ./botbat migrate, web, worker and beat.")
    terminal = Terminal(on_stderr=as_json)
    with _only_one(settings.data_dir):
        known = dev_file.load(settings.data_dir)
        where = places.choose(settings, known)
        run = Run(where, terminal)
        try:
            run.start()
            dev = run.introduce(known)
            terminal.running(dev, where.receiver, settings.data_dir / "logs")
            if as_json:
                click.echo(json.dumps(asdict(dev)))
            while True:
                run.pause(_TEND_SECONDS)
                run.tell_receiver(dev)
        except Stopped:
            pass
        except (ApiRefused, OSError, HTTPException) as error:
            logs = settings.data_dir / "logs"
            raise CannotStart(f"The API did not do what it was asked: {error}. Look into {logs}") from error
        finally:
            run.stop()


class Run:
    """One run of `up`."""

    def __init__(self, where: Places, terminal: Terminal) -> None:
        self._where = where
        self._settings = where.settings
        self._terminal = terminal
        self._stopping = threading.Event()
        self._told: dict[str, str] = {}
        self._told_at = 0.0
        self._supervisor = Supervisor(where.settings.data_dir / "logs", terminal.say)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._signalled)

    def start(self) -> None:
        """Start all programs and wait until the API says that it is ready."""
        if self._settings.embedded_broker:
            self._start_broker()
        self._terminal.say("up", "starting web, worker, receiver, beat and flower ...")
        programs = places.services(self._where)
        for program in programs:
            if program.name not in places.NOT_WAITED_FOR:
                self._supervisor.start(program)
        # While they load: nobody gives them work before /readyz says that the schema is the right one.
        self._migrate()
        deadline = time.monotonic() + _READY_WITHIN_SECONDS
        api = Api(self._where.base_url)
        while api.status("/readyz") != 200:  # noqa: PLR2004 - HTTP
            if time.monotonic() > deadline:
                log = self._supervisor.log("web")
                raise CannotStart(f"Not ready within {_READY_WITHIN_SECONDS} s. Look into {log}")
            self.pause(_TEND_SECONDS)
        for program in programs:
            if program.name in places.NOT_WAITED_FOR:
                self._supervisor.start(program)

    def introduce(self, known: DevFile | None) -> DevFile:
        """Make at the first start what a newcomer needs, later see that it is still there; write dev.json."""
        from app.development import first_start

        where = self._where
        if known and Api(where.base_url, known.api_key).status("/v1/endpoints?limit=1") == _UNAUTHORIZED:
            known = None  # another database
        if known:
            workspace_id, key = known.workspace_id, known.api_key
        else:
            workspace_id, key = first_start.make_workspace(self._settings)
        api = Api(where.base_url, key)
        inbox_url = f"{where.receiver}/inbox"
        endpoint_id = first_start.ensure_endpoint(api, known.endpoint_id if known else None, inbox_url)
        self._told = first_start.tell_receiver(api, where.receiver, where.receiver_dir / "secrets.json")
        dev = DevFile(
            base_url=where.base_url,
            console_url=f"{where.base_url}/",
            docs_url=f"{where.base_url}/docs",
            api_key=key,
            workspace_id=workspace_id,
            endpoint_id=endpoint_id,
            inbox_url=inbox_url,
            ca_file=str(where.receiver_dir / "ca.pem"),
            flower_url=where.flower,
            flower_user=self._settings.flower_user,
            flower_password=self._settings.flower_password,
        )
        dev_file.save(self._settings.data_dir, dev)
        if known is None:
            self._deliver_examples(api, endpoint_id)
        return dev

    def tell_receiver(self, dev: DevFile) -> None:
        """Let the receiver know the secrets of endpoints that were made or changed lately."""
        from app.development import first_start

        if time.monotonic() < self._told_at + _TELL_SECONDS:
            return
        self._told_at = time.monotonic()
        # While web is started again nobody answers; the next time will do.
        with contextlib.suppress(ApiRefused, OSError, HTTPException, ValueError):
            self._told = first_start.tell_receiver(
                Api(dev.base_url, dev.api_key),
                self._where.receiver,
                self._where.receiver_dir / "secrets.json",
                self._told,
            )

    def pause(self, seconds: float) -> None:
        """Look after the programs, then wait; raises `Stopped` after a signal."""
        self._supervisor.tend()
        if self._stopping.wait(seconds):
            raise Stopped

    def stop(self) -> None:
        """Stop all programs, the broker last."""
        self._terminal.say("up", "stopping ...")
        started = time.monotonic()
        self._supervisor.stop()
        if self._settings.embedded_broker:
            broker.forget(self._settings.data_dir)
        self._terminal.say("up", f"stopped after {time.monotonic() - started:.1f} s")

    def _migrate(self) -> None:
        from app import migrations
        from app.deliveries.models import PARTITIONED_TABLES

        revision = migrations.migrate(self._settings, PARTITIONED_TABLES)
        self._terminal.say("database", f"schema {revision}")

    def _start_broker(self) -> None:
        server = broker.configure(self._settings.data_dir)
        self._supervisor.start(places.broker_program(server))
        if not broker.wait_until_ready(server.url, _BROKER_WITHIN_SECONDS):
            raise CannotStart(
                f"The embedded broker does not start. Look into {self._supervisor.log('broker')}"
            )

    def _deliver_examples(self, api: Api, endpoint_id: str) -> None:
        from app.development import first_start

        events = first_start.publish_examples(api)
        self._terminal.say("up", f"published {len(events)} example events")
        missing = first_start.follow(api, endpoint_id, events, self._tell_attempt, self.pause)
        if missing:
            log = self._supervisor.log("worker")
            self._terminal.say("up", f"{len(missing)} of them are not delivered yet. Look into {log}")

    def _tell_attempt(self, attempt: dict[str, Any]) -> None:
        outcome = attempt["status_code"] or attempt["error"]["code"]
        self._terminal.say(
            "receiver", f"{attempt['event_type']:<22} {outcome} in {attempt['duration_ms']} ms"
        )

    def _signalled(self, _number: int, _frame: object) -> None:
        if self._stopping.is_set():
            self._supervisor.hurry()
        self._stopping.set()


@contextlib.contextmanager
def _only_one(data_dir: Path) -> Iterator[None]:
    make_private_dir(data_dir)
    with (data_dir / "up.lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            known = dev_file.load(data_dir)
            at = f" at {known.base_url}" if known else ""
            raise CannotStart(f"It already runs{at}, with the data directory {data_dir}") from None
        yield
