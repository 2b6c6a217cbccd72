"""The embedded broker is a real one, on the loopback, and lets nobody in without its password."""

import subprocess
from pathlib import Path

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from app.development import broker
from app.development.broker import Broker
from app.processes import CannotStart
from config.settings import broker_url_file

ONCE = Retry(NoBackoff(), 0)


@pytest.fixture
def server(tmp_path) -> Broker:
    return broker.configure(tmp_path / "my data")


def running(server: Broker) -> "subprocess.Popen[bytes]":
    """Start the server and wait until it answers."""
    process = subprocess.Popen(server.argv, stdout=subprocess.DEVNULL)
    assert broker.wait_until_ready(server.url, 5)
    return process


def stop(process: "subprocess.Popen[bytes]") -> None:
    process.terminate()
    assert process.wait(5) == 0


def test_it_refuses_who_has_not_the_password(server):
    process = running(server)
    try:
        port = int(server.url.rpartition(":")[2].partition("/")[0])
        for password in (None, "guess"):
            with (
                redis.Redis("127.0.0.1", port, password=password, retry=ONCE) as stranger,
                pytest.raises(redis.AuthenticationError),
            ):
                stranger.ping()
        with redis.Redis.from_url(server.url, decode_responses=True) as client:
            assert client.config_get("bind", "save", "appendonly", "maxmemory-policy") == {
                "bind": "127.0.0.1",
                "save": "",
                "appendonly": "no",
                "maxmemory-policy": "noeviction",
            }
    finally:
        stop(process)


def test_the_password_is_in_private_files_and_on_no_command_line(server, tmp_path):
    password = server.url.removeprefix("redis://:").partition("@")[0]
    assert len(password) >= 32
    assert password not in " ".join(server.argv)
    for path in (Path(server.argv[1]), broker_url_file(tmp_path / "my data")):
        assert password in path.read_text()
        assert path.stat().st_mode & 0o777 == 0o600
        assert path.parent.stat().st_mode & 0o777 == 0o700


def test_one_started_again_is_the_same_to_clients_and_keeps_nothing(server, tmp_path):
    process = running(server)
    with redis.Redis.from_url(server.url) as client:
        client.set("key", "value")
        process.kill()
        process.wait()
        process = running(server)
        assert client.get("key") is None
    stop(process)
    assert [path.name for path in (tmp_path / "my data" / "broker").iterdir()] == ["valkey.conf"]


def test_each_run_has_another_password(server, tmp_path):
    assert broker.configure(tmp_path / "my data").url != server.url


def test_a_server_that_does_not_start_is_not_waited_for_forever(server):
    assert not broker.wait_until_ready(server.url, 0.1)


def test_its_url_is_forgotten(server, tmp_path):
    assert broker_url_file(tmp_path / "my data").read_text() == server.url
    broker.forget(tmp_path / "my data")
    broker.forget(tmp_path / "my data")
    assert not broker_url_file(tmp_path / "my data").exists()


def test_a_machine_without_a_build_is_told_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr("platform.system", lambda: "Plan9")
    with pytest.raises(CannotStart, match="set BROKER_URL"):
        broker.configure(tmp_path)
