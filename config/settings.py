"""Every setting of the service, read once from the environment; nothing else reads it.

A deployment that is misconfigured does not start: all errors are reported together, in one exception.
Any variable can be given as NAME_FILE, a path whose content is the value; meant for secrets.
"""

import base64
import contextlib
import os
import re
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from environs import EnvError, FileAwareEnv
from marshmallow.validate import OneOf, Range

from config import values
from config.values import ENCRYPTION_KEY_BYTES, MAX_PORT, MAX_RATE_LIMIT, Network

_T = TypeVar("_T")
_OUR_PATHS = re.compile(r"BOTBAT_DATA_DIR|(BOTBAT_\w+|DATABASE_URL|BROKER_URL|FLOWER_\w+)_FILE")


class SettingsError(Exception):
    """The environment does not make a valid configuration; `errors` has one sentence per fault."""

    def __init__(self, errors: list[str]) -> None:
        super().__init__("Invalid configuration:\n" + "\n".join(f"  {error}" for error in errors))
        self.errors = errors


@dataclass(frozen=True, slots=True)
class Settings:
    """What differs between deployments. Secrets do not show in its repr."""

    environment: str
    data_dir: Path
    database_url: str = field(repr=False)
    broker_url: str = field(repr=False)
    embedded_broker: bool
    encryption_keys: tuple[tuple[str, bytes], ...] = field(repr=False)
    host: str
    port: int
    web_processes: int
    web_threads: int
    trusted_proxies: int
    rate_limit: int
    failed_key_limit: int
    pumps: int
    sender_connections: int
    disable_after_days: int
    retention_days: int
    dev_origins: tuple[str, ...]
    ca_file: Path | None
    egress_allow_cidrs: tuple[Network, ...]
    egress_deny_cidrs: tuple[Network, ...]
    egress_proxy: str = field(repr=False)
    egress_addresses: tuple[Network, ...]
    log_level: str
    flower_address: str
    flower_port: int
    flower_user: str
    flower_password: str = field(repr=False)

    @property
    def production(self) -> bool:
        """Whether development's conveniences are refused."""
        return self.environment == "production"

    @property
    def embedded_database(self) -> bool:
        """Whether the database is SQLite."""
        return self.database_url.startswith("sqlite")

    def masked(self) -> dict[str, object]:
        """Give the settings for showing: no secret, no password inside a URL."""
        return {
            "environment": self.environment,
            "data_dir": str(self.data_dir),
            "database_url": values.mask_url(self.database_url),
            "broker_url": values.mask_url(self.broker_url),
            "embedded_broker": self.embedded_broker,
            "encryption_keys": [f"{key_id}:***" for key_id, _ in self.encryption_keys],
            "host": self.host,
            "port": self.port,
            "web_processes": self.web_processes,
            "web_threads": self.web_threads,
            "trusted_proxies": self.trusted_proxies,
            "rate_limit": self.rate_limit,
            "failed_key_limit": self.failed_key_limit,
            "pumps": self.pumps,
            "sender_connections": self.sender_connections,
            "disable_after_days": self.disable_after_days,
            "retention_days": self.retention_days,
            "dev_origins": list(self.dev_origins),
            "ca_file": str(self.ca_file) if self.ca_file else None,
            "egress_allow_cidrs": [str(network) for network in self.egress_allow_cidrs],
            "egress_deny_cidrs": [str(network) for network in self.egress_deny_cidrs],
            "egress_proxy": values.mask_url(self.egress_proxy),
            "egress_addresses": [str(network) for network in self.egress_addresses],
            "log_level": self.log_level,
            "flower_address": self.flower_address,
            "flower_port": self.flower_port,
            "flower_user": self.flower_user,
            "flower_password": "***" if self.flower_password else "",
        }


def load_settings() -> Settings:
    """Read and check the environment; raises `SettingsError` that names every fault at once."""
    errors: list[str] = []
    env = _Environment(errors)

    environment = env.str("BOTBAT_ENV", "development", validate=OneOf(["development", "test", "production"]))
    data_dir = Path(env.str("BOTBAT_DATA_DIR", "var")).absolute()
    database_url = env.str("DATABASE_URL", "")
    broker_url = env.str("BROKER_URL", "")
    keys_text = env.str("BOTBAT_ENCRYPTION_KEYS", "")
    host = env.str("BOTBAT_HOST", "127.0.0.1")
    port = env.int("PORT", 8000, validate=Range(1, MAX_PORT))
    web_processes = env.int("WEB_PROCESSES", 2, validate=Range(1, 256))
    web_threads = env.int("WEB_THREADS", 4, validate=Range(1, 256))
    trusted_proxies = env.int("BOTBAT_TRUSTED_PROXIES", 0, validate=Range(0, 10))
    rate_limit = env.int("BOTBAT_RATE_LIMIT", 1000, validate=Range(1, MAX_RATE_LIMIT))
    failed_key_limit = env.int("BOTBAT_FAILED_KEY_LIMIT", 300, validate=Range(1, MAX_RATE_LIMIT))
    pumps = env.int("BOTBAT_PUMPS", os.cpu_count() or 1, validate=Range(1, 256))
    sender_connections = env.int("BOTBAT_SENDER_CONNECTIONS", 400, validate=Range(1, 10_000))
    disable_after_days = env.int("BOTBAT_DISABLE_AFTER_DAYS", 5, validate=Range(0, 365))
    retention_days = env.int("BOTBAT_RETENTION_DAYS", 30, validate=Range(1, 3650))
    dev_origins = _each(env, "BOTBAT_DEV_ORIGINS", values.dev_origin, errors)
    ca_text = env.str("BOTBAT_CA_FILE", "")
    egress_allow_cidrs = _each(env, "BOTBAT_EGRESS_ALLOW_CIDRS", values.network, errors)
    egress_deny_cidrs = _each(env, "BOTBAT_EGRESS_DENY_CIDRS", values.network, errors)
    egress_proxy = env.str("BOTBAT_EGRESS_PROXY", "")
    egress_addresses = _each(env, "BOTBAT_EGRESS_ADDRESSES", values.network, errors)
    log_level = env.str("BOTBAT_LOG_LEVEL", "INFO", validate=OneOf(["DEBUG", "INFO", "WARNING", "ERROR"]))
    flower_address = env.str("FLOWER_ADDRESS", "127.0.0.1")
    flower_port = env.int("FLOWER_PORT", 5555, validate=Range(1, MAX_PORT))
    flower_user = env.str("FLOWER_USER", "botbat")
    flower_password = env.str("FLOWER_PASSWORD", "")

    try:
        env.seal()
    except EnvError as error:
        for name, messages in getattr(error, "error_messages", {"environment": [str(error)]}).items():
            errors.extend(f"{name}: {message}" for message in messages)
    ca_file = Path(ca_text).absolute() if ca_text else None
    if ca_file and not ca_file.is_file():
        errors.append("BOTBAT_CA_FILE: no such file")
    if environment == "production":
        errors += _refused_in_production(keys_text, dev_origins, broker_url)
    checked_url = _checked(
        database_url or f"sqlite:///{data_dir / 'botbat.db'}", "DATABASE_URL", values.database_url, errors
    )
    if broker_url:
        _checked(broker_url, "BROKER_URL", values.broker_url, errors)
    if egress_proxy:
        _checked(egress_proxy, "BOTBAT_EGRESS_PROXY", values.proxy_url, errors)
    embedded_broker = not broker_url
    if not errors:
        # Only when all else is right: a mistaken start leaves no file behind.
        keys_text, broker_url = _embedded(data_dir, keys_text, broker_url, errors)
    encryption_keys = (
        _checked(keys_text, "BOTBAT_ENCRYPTION_KEYS", values.encryption_keys, errors) if keys_text else None
    )
    if errors or checked_url is None or encryption_keys is None:
        raise SettingsError(errors)
    return Settings(
        environment=environment,
        data_dir=data_dir,
        database_url=checked_url,
        broker_url=broker_url,
        embedded_broker=embedded_broker,
        encryption_keys=encryption_keys,
        host=host,
        port=port,
        web_processes=web_processes,
        web_threads=web_threads,
        trusted_proxies=trusted_proxies,
        rate_limit=rate_limit,
        failed_key_limit=failed_key_limit,
        pumps=1 if checked_url.startswith("sqlite") else pumps,
        sender_connections=sender_connections,
        disable_after_days=disable_after_days,
        retention_days=retention_days,
        dev_origins=dev_origins,
        ca_file=ca_file,
        egress_allow_cidrs=egress_allow_cidrs,
        egress_deny_cidrs=egress_deny_cidrs,
        egress_proxy=egress_proxy,
        egress_addresses=egress_addresses,
        log_level=log_level,
        flower_address=flower_address,
        flower_port=flower_port,
        flower_user=flower_user,
        flower_password=flower_password,
    )


def process_environment(**changes: str) -> dict[str, str]:
    """Give the environment for a child process: ours, with `changes`.

    Relative paths are made absolute, because the child runs in another directory.
    """
    environment = {
        name: str(Path(value).absolute()) if value and _OUR_PATHS.fullmatch(name) else value
        for name, value in os.environ.items()  # noqa: TID251 - the one reader
    }
    if "DATABASE_URL" in environment:
        environment["DATABASE_URL"] = values.absolute_sqlite(environment["DATABASE_URL"])
    return {**environment, **changes}


def broker_url_file(data_dir: Path) -> Path:
    """Where the embedded broker's URL, with its password, is kept while `./botbat up` runs."""
    return data_dir / "broker_url"


def make_private_dir(folder: Path) -> None:
    """Make a folder and those above it that are missing, all for their owner alone."""
    for each in reversed((folder, *folder.parents)):
        # mkdir's own `parents` would give the upper ones the default mode.
        if not each.is_dir():
            each.mkdir(mode=0o700, exist_ok=True)


def write_private(path: Path, text: str) -> None:
    """Replace a file at once, readable by its owner alone."""
    make_private_dir(path.parent)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
    temporary.replace(path)


class _Environment(FileAwareEnv):
    """Notes a NAME_FILE that cannot be read as one fault among the others, where the library would raise."""

    def __init__(self, errors: list[str]) -> None:
        super().__init__(eager=False, strip_whitespace=True)
        self._file_errors = errors

    def _get_value(self, env_key: str, default: Any) -> Any:
        try:
            return super()._get_value(env_key, default)
        except (ValueError, OSError):
            self._file_errors.append(f"{env_key}_FILE: not a readable text file")
            return default


def _each(env: _Environment, name: str, parse: Callable[[str], _T], errors: list[str]) -> tuple[_T, ...]:
    parsed = (_checked(entry, name, parse, errors) for entry in values.split(env.str(name, "")))
    return tuple(value for value in parsed if value is not None)


def _checked(text: str, name: str, parse: Callable[[str], _T], errors: list[str]) -> _T | None:
    try:
        return parse(text)
    except ValueError as error:
        errors.append(f"{name}: {error}")
        return None


def _refused_in_production(keys_text: str, dev_origins: tuple[str, ...], broker_url: str) -> list[str]:
    refused = {
        "BOTBAT_ENCRYPTION_KEYS: required in production": not keys_text,
        "BOTBAT_DEV_ORIGINS: not allowed in production": bool(dev_origins),
        "BROKER_URL: required in production; the embedded broker is for development": not broker_url,
    }
    return [sentence for sentence, applies in refused.items() if applies]


def _embedded(data_dir: Path, keys_text: str, broker_url: str, errors: list[str]) -> tuple[str, str]:
    """Give what the data directory has where the environment has nothing: the keys and the broker's URL."""
    try:
        return keys_text or _development_keys(data_dir), broker_url or _embedded_broker_url(data_dir)
    except OSError as error:
        errors.append(f"BOTBAT_DATA_DIR: {error.filename}: {error.strerror}")
        return keys_text, broker_url


def _embedded_broker_url(data_dir: Path) -> str:
    # Port 1 refuses at once: while no `./botbat up` runs, doorbells are lost and the sweep finds the work.
    path = broker_url_file(data_dir)
    return path.read_text().strip() if path.is_file() else "redis://127.0.0.1:1/0"


def _development_keys(data_dir: Path) -> str:
    path = data_dir / "encryption_keys"
    if not path.is_file():
        candidate = path.with_name(f".encryption_keys.{secrets.token_hex(4)}")
        write_private(candidate, f"k1:{base64.b64encode(secrets.token_bytes(ENCRYPTION_KEY_BYTES)).decode()}")
        # Two processes may start at once: a link never replaces, so both end up with the first one's key.
        with contextlib.suppress(FileExistsError):
            os.link(candidate, path)
        candidate.unlink()
    return path.read_text().strip()
