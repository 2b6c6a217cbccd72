"""What benchmarks run on: a database of their own, a broker, a receiver that is not the bottleneck, a worker."""

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psycopg
import trustme
from sqlalchemy.engine import make_url

from app.api_keys import service as api_keys
from app.core.doorbell import CeleryDoorbell
from app.core.unit_of_work import Resources, open_resources
from app.development.broker import configure
from app.migrations import migrate
from app.workspaces import service as workspaces
from bench import cpu
from config.settings import load_settings
from config.values import MAX_RATE_LIMIT
from config.wire import TaskName

ROOT = Path(__file__).resolve().parent.parent

_NGINX = """
daemon off;
worker_processes 1;
pid {directory}/nginx.pid;
error_log {directory}/error.log error;
events {{ worker_connections 4096; }}
http {{
    log_format arrivals '$msec $http_webhook_id';
    access_log off;
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    server {{
        listen 127.0.0.1:{port} ssl;
        ssl_certificate {directory}/cert.pem;
        ssl_certificate_key {directory}/key.pem;
        ssl_protocols TLSv1.2 TLSv1.3;
        keepalive_requests 1000000;
        keepalive_timeout 300;
        client_body_buffer_size 64k;
        location / {{ return 200 "ok"; }}
        location /timed {{ access_log {directory}/arrivals.log arrivals; return 200 "ok"; }}
    }}
}}
"""


@dataclass(frozen=True)
class Stage:
    """A prepared benchmark."""

    resources: Resources  # rings no doorbell: a benchmark says when work begins
    doorbell: CeleryDoorbell
    workspace_id: str
    api_key: str
    receiver_url: str
    ca_file: Path
    arrivals: Path  # what came under /timed: seconds since the epoch, and the event's id
    database: str
    broker: str

    def cpu(self) -> dict[str, float]:
        """Give the CPU seconds so far by group of processes."""
        database = make_url(self.resources.settings.database_url).database or ""
        broker = "redis-server" if self.broker == "Redis" else "valkey-server"
        return cpu.snapshot(str(self.resources.settings.data_dir), database, broker)


class _Silent:
    """A doorbell that wakes nobody."""

    def ring(self, task: TaskName, *, countdown: float = 0) -> None:
        """Do nothing."""

    def answer(self, task: TaskName) -> None:
        """Do nothing."""

    def ping(self) -> None:
        """Do nothing."""


@contextlib.contextmanager
def stage() -> Iterator[Stage]:
    """Set everything up, on PostgreSQL and Redis where `DATABASE_URL` and `BROKER_URL` name them, else embedded."""
    # So that one that is terminated leaves nothing behind.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="botbat-bench-")))
        port, ca_file = stack.enter_context(_receiver(directory))
        os.environ["BOTBAT_ENV"] = "development"  # noqa: TID251 - a benchmark configures the processes it starts
        for name, value in (
            ("BOTBAT_DATA_DIR", str(directory)),
            ("BOTBAT_DEV_ORIGINS", f"https://localhost:{port}"),
            ("BOTBAT_CA_FILE", str(ca_file)),
            ("BOTBAT_LOG_LEVEL", "WARNING"),
            ("BOTBAT_RATE_LIMIT", str(MAX_RATE_LIMIT)),
        ):
            os.environ[name] = value  # noqa: TID251 - see above
        given = os.environ.get("DATABASE_URL", "")  # noqa: TID251 - see above
        if given:
            os.environ["DATABASE_URL"] = stack.enter_context(_scratch_database(given))  # noqa: TID251
        broker = "redis-server"
        if not os.environ.get("BROKER_URL"):  # noqa: TID251 - see above
            broker = "valkey-server"
            stack.enter_context(_process(configure(directory).argv))
        settings = load_settings()
        migrate(settings)
        resources = open_resources(settings, doorbell=_Silent())
        stack.callback(resources.close)
        with resources.transaction() as uow:
            workspace = workspaces.create(uow, name="Benchmark")
            _, key = api_keys.create(uow, workspace_id=workspace.id, name="Benchmark")
        yield Stage(
            resources=resources,
            doorbell=CeleryDoorbell(settings),
            workspace_id=workspace.id,
            api_key=key,
            receiver_url=f"https://localhost:{port}/",
            ca_file=ca_file,
            arrivals=directory / "arrivals.log",
            database="PostgreSQL" if given else "SQLite",
            broker="Redis" if broker == "redis-server" else "Valkey (embedded)",
        )


@contextlib.contextmanager
def worker() -> Iterator[subprocess.Popen[bytes]]:
    """Run one worker process as `./botbat worker` does."""
    with _process([sys.executable, "-m", "app.cli", "worker"]) as process:
        yield process


@contextlib.contextmanager
def web(port: int, processes: int) -> Iterator[subprocess.Popen[bytes]]:
    """Run the API as `./botbat web` does."""
    os.environ["PORT"], os.environ["WEB_PROCESSES"] = str(port), str(processes)  # noqa: TID251
    with _process([sys.executable, "-m", "app.cli", "web"]) as process:
        _wait_for(port)
        yield process


def free_port() -> int:
    """Give a port that nothing listens on."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
    return port


@contextlib.contextmanager
def _process(command: list[str]) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(command, cwd=ROOT, start_new_session=True, stdout=sys.stderr)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)
            process.wait()


@contextlib.contextmanager
def _receiver(directory: Path) -> Iterator[tuple[int, Path]]:
    nginx = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
    if nginx is None:
        sys.exit("The benchmarks' receiver is nginx, which is not on the path (Debian: nginx-light).")
    authority, port = trustme.CA(), free_port()
    certificate = authority.issue_cert("localhost")
    authority.cert_pem.write_to_path(directory / "ca.pem")
    certificate.private_key_pem.write_to_path(directory / "key.pem")
    for part in certificate.cert_chain_pems:
        part.write_to_path(directory / "cert.pem", append=True)
    (directory / "nginx.conf").write_text(_NGINX.format(directory=directory, port=port))
    process = subprocess.Popen(
        [nginx, "-c", str(directory / "nginx.conf"), "-e", str(directory / "error.log")]
    )
    try:
        _wait_for(port)
        yield port, directory / "ca.pem"
    finally:
        process.terminate()
        process.wait()


def _wait_for(port: int) -> None:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.05)
    sys.exit(f"Nothing listens on port {port} after 20 s.")


@contextlib.contextmanager
def _scratch_database(url: str) -> Iterator[str]:
    parsed = make_url(url)
    name = f"botbat_bench_{secrets.token_hex(4)}"
    server = parsed.set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}"')
    try:
        yield parsed.set(drivername="postgresql", database=name).render_as_string(hide_password=False)
    finally:
        with psycopg.connect(server, autocommit=True) as connection:
            connection.execute(f'DROP DATABASE "{name}" WITH (FORCE)')
