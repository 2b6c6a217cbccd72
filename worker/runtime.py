"""What a worker process keeps between tasks; made after the fork, since neither pools nor libcurl survive one."""

import gc
from functools import cache
from pathlib import Path

import certifi

from app.core.unit_of_work import Resources, open_resources
from config.settings import Settings, load_settings, write_private
from worker.sender import Sender


@cache
def settings() -> Settings:
    """Give the settings of this process."""
    return load_settings()


@cache
def resources() -> Resources:
    """Give the database, the doorbell and the keys of this process."""
    return open_resources(settings())


@cache
def sender() -> Sender:
    """Give the sender of this process; its connections stay open from one pump to the next."""
    made = new_sender(resources())
    # All modules are loaded by now and live for good: later collections need not look through them again. Rows by the
    # thousand come and go without cycles: looking for those after each 700 costs a twentieth of all that a pump does.
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000)
    return made


@cache
def tests_sender() -> Sender:
    """Give the sender of this process for tests: what a pump has under way and what a test has never mix."""
    return new_sender(resources())


def new_sender(of: Resources) -> Sender:
    """Make a sender that trusts the public authorities and, where configured, `BOTBAT_CA_FILE`."""
    return Sender(
        policy=of.egress_policy,
        ca_file=str(_ca_bundle(of.settings)),
        max_connections=of.settings.sender_connections,
        proxy=of.settings.egress_proxy,
    )


def _ca_bundle(of: Settings) -> Path:
    public = Path(certifi.where())
    if of.ca_file is None:
        return public
    # libcurl takes one file.
    bundle = of.data_dir / "ca-bundle.pem"
    text = public.read_text() + "\n" + of.ca_file.read_text()
    if not bundle.is_file() or bundle.read_text() != text:
        write_private(bundle, text)
    return bundle
