"""The long-running processes of the service as commands: what the Procfile, the containers and `up` run."""

import secrets
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from config.settings import Settings, process_environment
from config.wire import QueueName

ROOT = Path(__file__).parents[1]
_CELERY = "worker.main:celery"
_PASSWORD_BYTES = 12


class CannotStart(Exception):
    """A process cannot be started; the text says why and what to do."""


@dataclass(frozen=True, slots=True)
class Command:
    """A program with its environment; it runs in the repository's folder. Secrets are never in `argv`."""

    argv: list[str]
    environment: dict[str, str]

    def having(self, changes: Mapping[str, str]) -> "Command":
        """Give the same command with changes to its environment."""
        return replace(self, environment={**self.environment, **changes})


def web(arguments: Sequence[str] = ()) -> Command:
    """Serve the HTTP API and the console."""
    config = str(ROOT / "config" / "gunicorn.py")
    return python("app.server", "--config", config, *arguments, "app.web:create_app()")


def worker(arguments: Sequence[str] = ()) -> Command:
    """Run tasks of every queue; how many at once is in config/celery.py."""
    queues = ",".join(name.value for name in QueueName)
    options = ["--without-gossip", "--without-mingle", "-E", "-Q", queues]
    return python("celery", "-A", _CELERY, "worker", *options, *arguments)


def beat(arguments: Sequence[str] = ()) -> Command:
    """Ring the sweeps in time. One is enough; a second does no harm."""
    return python("celery", "-A", _CELERY, "beat", *arguments)


def flower(settings: Settings, arguments: Sequence[str] = ()) -> Command:
    """Show workers and queues, behind a password; raises `CannotStart` without one in production."""
    password = settings.flower_password
    if not password and settings.production:
        raise CannotStart(
            "Flower needs a password in production: set FLOWER_PASSWORD or FLOWER_PASSWORD_FILE."
        )
    if not password:
        password = secrets.token_urlsafe(_PASSWORD_BYTES)
        sys.stderr.write(f"Flower: user {settings.flower_user}, password {password}\n")
    # Flower splits at commas between logins, and at the first colon inside one.
    if "," in password or set(settings.flower_user) & set(",:"):
        raise CannotStart("FLOWER_USER can have no comma and no colon, FLOWER_PASSWORD no comma.")
    where = [f"--address={settings.flower_address}", f"--port={settings.flower_port}"]
    command = python("celery", "-A", _CELERY, "flower", *where, *arguments)
    return command.having({"FLOWER_BASIC_AUTH": f"{settings.flower_user}:{password}"})


def python(*arguments: str) -> Command:
    """Run a module with this process's Python."""
    return Command([sys.executable, "-m", *arguments], process_environment())
