"""Failures are counted by who is behind an address, in bounded memory; one request at a time waits for a dead Redis."""

import socket
import threading
import time
from dataclasses import replace

import pytest

from app.core import rate_limit
from app.core.errors import RateLimited
from app.core.rate_limit import FailureLimiter, RequestCounter
from config.settings import load_settings


def failures_let_through(limiter: FailureLimiter, addresses: list[str]) -> int:
    """Give how many failures, one of each address, come before the first that is refused."""
    for number, address in enumerate(addresses):
        try:
            limiter.note(address, str(number))
        except RateLimited:
            return number
    return len(addresses)


@pytest.mark.parametrize(
    ("addresses", "let_through"),
    [
        (["203.0.113.1"] * 5, 3),
        ([f"203.0.113.{n}" for n in range(5)], 5),
        ([f"::ffff:203.0.113.{n}" for n in range(5)], 5),
        (["203.0.113.1", "::ffff:203.0.113.1"] * 3, 3),
        ([f"2001:db8::{n:x}" for n in range(5)], 3),
        ([f"2001:db8:0:{n:x}::1" for n in range(5)], 5),
        ([""] * 5, 3),
        (["unix:"] * 5, 3),
        (["fe80::1%eth0"] * 5, 3),
    ],
)
def test_who_counts_as_one(addresses, let_through):
    assert failures_let_through(FailureLimiter(3), addresses) == let_through


def test_memory_is_bounded(monkeypatch):
    monkeypatch.setattr(rate_limit, "_MAX_REMEMBERED", 100)
    limiter = FailureLimiter(1)
    for number in range(1000):
        limiter.note(f"10.0.{number // 250}.{number % 250}", "x")
        assert len(limiter._failures) <= 100
    for number in range(1000):
        failures_let_through(limiter, ["10.1.0.0", "10.1.0.0"])
        with pytest.raises(RateLimited):
            limiter.note("10.1.0.0", str(number))
    assert len(limiter._refused) == 100


def test_while_redis_hangs_one_request_at_a_time_waits_for_it():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(64)
        url = f"redis://127.0.0.1:{server.getsockname()[1]}/0"
        counter = RequestCounter(replace(load_settings(), broker_url=url))
        assert counter.count("key_1") is None
        time.sleep(1.05)

        waits = []

        def count() -> None:
            started = time.monotonic()
            assert counter.count("key_1") is None
            waits.append(time.monotonic() - started)

        threads = [threading.Thread(target=count) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(waits) == 8
    assert sum(wait > 0.2 for wait in waits) == 1
    assert max(waits) < 2
