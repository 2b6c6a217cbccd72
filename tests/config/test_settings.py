"""A deployment that is misconfigured does not start, and says everything that is wrong with it."""

import base64
import json
import re
import subprocess
import sys
from pathlib import Path

import environs
import pytest

from config import settings as module
from config.settings import SettingsError, load_settings, process_environment, write_private

ROOT = Path(__file__).parents[2]
KEY = base64.b64encode(bytes(range(32))).decode()
OTHER_KEY = base64.b64encode(bytes(32)).decode()
PRODUCTION = {
    "BOTBAT_ENV": "production",
    "BOTBAT_ENCRYPTION_KEYS": f"k1:{KEY}",
    "BROKER_URL": "redis://:pw@broker/0",
    "DATABASE_URL": "postgresql://botbat:pw@db/botbat",
}


BAD_PROXIES = [
    "proxy:3128",
    "socks5://proxy:3128",
    "http://proxy",
    "http://proxy:0",
    "http://proxy:65536",
    "http://proxy:3128/",
    "http://proxy:3128/path",
    "http://proxy:3128?a",
    "http://user@proxy:3128",
    "http://user:@proxy:3128",
    "http://user:pass@word@proxy:3128",
    "http://user:pass/word@proxy:3128",
    "http://user:pass%word@proxy:3128",
    "http://user:pass%0d%0aX-A: b@proxy:3128",
    "http://user:pass%7f@proxy:3128",
    "http://pro xy:3128",
    "http://proxy\\:3128",
    "http://\N{FULLWIDTH LATIN SMALL LETTER A}:3128",
]


@pytest.fixture(autouse=True)
def environment(monkeypatch, tmp_path):
    """Start from an environment without settings."""
    for name in names_read(monkeypatch):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(f"{name}_FILE", raising=False)
    monkeypatch.setenv("BOTBAT_DATA_DIR", str(tmp_path / "var"))
    return monkeypatch


def names_read(monkeypatch) -> list[str]:
    """Give every name that `load_settings` asks the environment for."""
    names = []
    original = environs.FileAwareEnv._get_value

    def record(self, name, default):
        names.append(name)
        return original(self, name, default)

    with monkeypatch.context() as patch:
        patch.setattr(environs.FileAwareEnv, "_get_value", record)
        patch.setenv("BOTBAT_ENV", "nonsense")  # reads all, and stops before it makes a file
        with pytest.raises(SettingsError):
            load_settings()
    return names


def errors_of(environment, **variables) -> list[str]:
    """Give the faults of a configuration."""
    for name, value in variables.items():
        environment.setenv(name, str(value))
    with pytest.raises(SettingsError) as caught:
        load_settings()
    return caught.value.errors


def test_defaults_make_a_development_configuration(tmp_path):
    settings = load_settings()
    assert settings.environment == "development"
    assert not settings.production
    assert settings.database_url == f"sqlite:///{tmp_path / 'var' / 'botbat.db'}"
    assert settings.embedded_database
    assert settings.host == settings.flower_address == "127.0.0.1"
    assert (settings.port, settings.pumps) == (8000, 1)
    assert (settings.rate_limit, settings.failed_key_limit) == (1000, 300)


def test_example_names_every_setting(environment):
    text = (ROOT / ".env.example").read_text()
    assert re.findall(r"^#?([A-Z_]+)=", text, re.MULTILINE) == list(dict.fromkeys(names_read(environment)))


def test_example_s_values_are_the_defaults(environment):
    defaults = load_settings()
    environment.chdir(defaults.data_dir.parent)
    text = (ROOT / ".env.example").read_text()
    for name, value in re.findall(r"^([A-Z_]+)=(.*)$", text, re.MULTILINE):
        environment.setenv(name, value)
    assert load_settings() == defaults


def test_production_starts_with_keys_and_broker(environment):
    for name, value in PRODUCTION.items():
        environment.setenv(name, value)
    settings = load_settings()
    assert settings.production
    assert settings.encryption_keys == (("k1", bytes(range(32))),)
    assert not settings.data_dir.exists()


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"BOTBAT_ENCRYPTION_KEYS": ""}, "BOTBAT_ENCRYPTION_KEYS: required in production"),
        ({"BROKER_URL": ""}, "BROKER_URL: required in production"),
        ({"BOTBAT_DEV_ORIGINS": "https://localhost:9443"}, "BOTBAT_DEV_ORIGINS: not allowed in production"),
    ],
)
def test_production_refuses(environment, change, error):
    (found,) = errors_of(environment, **{**PRODUCTION, **change})
    assert found.startswith(error)


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("BOTBAT_ENV", "prod", "Must be one of: development, test, production."),
        ("PORT", "70000", "less than or equal to 65535"),
        ("PORT", "http", "Not a valid integer."),
        ("WEB_PROCESSES", "0", "greater than or equal to 1"),
        ("BOTBAT_RATE_LIMIT", "0", "greater than or equal to 1"),
        ("BOTBAT_RATE_LIMIT", "1000001", "less than or equal to 1000000"),
        ("BOTBAT_FAILED_KEY_LIMIT", "none", "Not a valid integer."),
        ("BOTBAT_LOG_LEVEL", "loud", "Must be one of"),
        ("DATABASE_URL", "mysql://localhost/x", "must start with postgresql:// or sqlite:///"),
        ("BROKER_URL", "amqp://localhost", "must start with redis:// or rediss://"),
        ("BOTBAT_CA_FILE", "/nowhere/ca.pem", "no such file"),
        ("BOTBAT_EGRESS_ALLOW_CIDRS", "10.0.0.1/8", "has host bits set"),
        ("BOTBAT_EGRESS_DENY_CIDRS", "::ffff:10.0.0.0/104", "IPv4 form"),
        ("BOTBAT_EGRESS_ADDRESSES", "203.0.113.7/24", "has host bits set"),
        *(("BOTBAT_EGRESS_PROXY", url, "must be like http://proxy.example.com:3128") for url in BAD_PROXIES),
        ("BOTBAT_DEV_ORIGINS", "https://example.com", "is not like https://localhost:9443"),
        ("BOTBAT_DEV_ORIGINS", "http://localhost:9443", "is not like https://localhost:9443"),
        ("BOTBAT_DEV_ORIGINS", "https://localhost:9443/", "is not like https://localhost:9443"),
        ("BOTBAT_DEV_ORIGINS", "https://localhost:99999", "is not like https://localhost:9443"),
        ("BOTBAT_ENCRYPTION_KEYS", "k1", "32 bytes in base64"),
        ("BOTBAT_ENCRYPTION_KEYS", "k1:c2hvcnQ=", "32 bytes in base64"),
        ("BOTBAT_ENCRYPTION_KEYS", f"k-1:{KEY}", "32 bytes in base64"),
        ("BOTBAT_ENCRYPTION_KEYS", f"k1:{KEY}é", "32 bytes in base64"),
        ("BOTBAT_ENCRYPTION_KEYS", f"k1:{KEY},k1:{OTHER_KEY}", "two entries have the same id"),
        ("BOTBAT_ENCRYPTION_KEYS", ",", "there is no key in it"),
    ],
)
def test_bad_values_are_named(environment, name, value, error):
    (found,) = errors_of(environment, **{name: value})
    assert found.startswith(f"{name}: ")
    assert error in found


def test_all_errors_are_reported_at_once(environment, tmp_path):
    errors = errors_of(
        environment,
        BOTBAT_ENV="production",
        PORT="0",
        DATABASE_URL="mysql://x",
        BOTBAT_CA_FILE="/nowhere",
        BOTBAT_EGRESS_DENY_CIDRS="x,y",
        BOTBAT_DEV_ORIGINS="https://localhost:1",
        FLOWER_PASSWORD_FILE="/nowhere",
    )
    assert sorted(error.split(":")[0] for error in errors) == [
        "BOTBAT_CA_FILE",
        "BOTBAT_DEV_ORIGINS",
        "BOTBAT_EGRESS_DENY_CIDRS",
        "BOTBAT_EGRESS_DENY_CIDRS",
        "BOTBAT_ENCRYPTION_KEYS",
        "BROKER_URL",
        "DATABASE_URL",
        "FLOWER_PASSWORD_FILE",
        "PORT",
    ]
    assert not (tmp_path / "var").exists()


def test_a_file_gives_a_value(environment, tmp_path):
    (tmp_path / "url").write_text("postgres://u:p@db/x\n")
    (tmp_path / "port").write_text(" 8123 ")
    environment.setenv("DATABASE_URL_FILE", str(tmp_path / "url"))
    environment.setenv("PORT_FILE", str(tmp_path / "port"))
    settings = load_settings()
    assert settings.database_url == "postgresql+psycopg://u:p@db/x"
    assert settings.port == 8123


@pytest.mark.parametrize("kind", ["absent", "directory", "not text", "below a file"])
def test_a_file_that_cannot_be_read_is_an_error_and_no_traceback(environment, tmp_path, kind):
    path = tmp_path / "secret"
    if kind == "directory":
        path.mkdir()
    elif kind == "not text":
        path.write_bytes(b"\xff\xfe")
    elif kind == "below a file":
        path.write_text("")
        path /= "secret"
    errors = errors_of(environment, DATABASE_URL_FILE=path, PORT="x")
    assert errors == ["DATABASE_URL_FILE: not a readable text file", "PORT: Not a valid integer."]


def test_a_data_directory_that_cannot_be_made_is_an_error(environment, tmp_path):
    (tmp_path / "file").write_text("")
    (error,) = errors_of(environment, BOTBAT_DATA_DIR=tmp_path / "file")
    assert error.startswith("BOTBAT_DATA_DIR: ")
    assert "Traceback" not in error


@pytest.mark.parametrize(
    "url",
    [
        "http://proxy:3128",
        "https://proxy.example.com:443",
        "http://user:pass@10.0.0.1:3128",
        "http://u%40x:p%2Fw%c3%a9%21@proxy:1",
        "http://[fd00::1]:3128",
    ],
)
def test_a_proxy_and_its_addresses_are_taken_as_they_are(environment, url):
    environment.setenv("BOTBAT_EGRESS_PROXY", url)
    environment.setenv("BOTBAT_EGRESS_ADDRESSES", "203.0.113.7, 2001:db8::/48")
    settings = load_settings()
    assert settings.egress_proxy == url
    assert [str(network) for network in settings.egress_addresses] == ["203.0.113.7/32", "2001:db8::/48"]


def test_masked_settings_and_repr_show_no_secret(environment):
    secrets = ["pw1", "pw2@/x", "pw3", "pw4", "pw5", "pw6", KEY, OTHER_KEY]
    environment.setenv(
        "DATABASE_URL", "postgresql://u:pw1@db/x?sslpassword=pw5&password=pw3&connect_timeout=3"
    )
    environment.setenv("BROKER_URL", "redis://:pw2@/x@broker/0")
    environment.setenv("BOTBAT_ENCRYPTION_KEYS", f"new:{KEY},old:{OTHER_KEY}")
    environment.setenv("FLOWER_PASSWORD", "pw4")
    environment.setenv("BOTBAT_EGRESS_PROXY", "http://u:pw6@proxy:3128")
    settings = load_settings()
    shown = json.dumps(settings.masked()) + repr(settings)
    assert not any(secret in shown for secret in secrets)
    masked = settings.masked()
    assert masked["database_url"] == (
        "postgresql+psycopg://u:***@db/x?sslpassword=***&password=***&connect_timeout=3"
    )
    assert masked["broker_url"] == "redis://:***@broker/0"
    assert masked["egress_proxy"] == "http://u:***@proxy:3128"
    assert masked["encryption_keys"] == ["new:***", "old:***"]
    assert masked.keys() == set(module.Settings.__dataclass_fields__)


def test_errors_quote_no_key(environment):
    errors = errors_of(
        environment,
        BOTBAT_ENCRYPTION_KEYS=f"k1:{KEY},k1:{OTHER_KEY}",
        DATABASE_URL="x://u:pw9@y",
        BOTBAT_EGRESS_PROXY="http://u:pw8@proxy",
    )
    assert len(errors) == 3
    assert not any(secret in str(errors) for secret in (KEY, OTHER_KEY, "pw9", "pw8"))


def test_two_processes_agree_on_the_development_key(tmp_path):
    code = "from config.settings import load_settings; print(load_settings().encryption_keys)"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code],
            cwd=ROOT,
            env=process_environment(BOTBAT_DATA_DIR=str(tmp_path / "shared")),
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(4)
    ]
    printed = {process.communicate(timeout=20)[0] for process in processes}
    assert len(printed) == 1
    assert len(printed.pop()) > 32
    (path,) = (tmp_path / "shared").iterdir()
    assert path.name == "encryption_keys"
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700


def test_embedded_broker_s_url_is_read_from_its_file(tmp_path):
    assert load_settings().broker_url == "redis://127.0.0.1:1/0"
    write_private(module.broker_url_file(tmp_path / "var"), "redis://:pw@127.0.0.1:7777/0")
    assert load_settings().broker_url == "redis://:pw@127.0.0.1:7777/0"


def test_a_child_gets_absolute_paths(environment, tmp_path):
    environment.chdir(tmp_path)
    environment.setenv("BOTBAT_DATA_DIR", "data")
    environment.setenv("BOTBAT_CA_FILE", "ca.pem")
    environment.setenv("BROKER_URL_FILE", "secrets/broker")
    environment.setenv("DATABASE_URL", "sqlite:///my.db")
    environment.setenv("COMPOSE_FILE", "compose.yml")
    child = process_environment(PORT="9")
    assert child["BOTBAT_DATA_DIR"] == str(tmp_path / "data")
    assert child["BOTBAT_CA_FILE"] == str(tmp_path / "ca.pem")
    assert child["BROKER_URL_FILE"] == str(tmp_path / "secrets" / "broker")
    assert child["DATABASE_URL"] == f"sqlite:///{tmp_path / 'my.db'}"
    assert child["COMPOSE_FILE"] == "compose.yml"
    assert child["PORT"] == "9"
