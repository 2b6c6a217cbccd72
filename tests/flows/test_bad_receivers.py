"""A receiver that misbehaves costs one failed attempt with the right code, a retry, and nobody else anything."""

import contextlib
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest

from app.core.egress_policy import EgressPolicy
from tests import receivers
from tests.flows.steps import deliveries_of, log_of, make_endpoint, publish, queue_of, the_delivery, url_of
from tests.receivers import Receiver
from worker.pump import Pump
from worker.runtime import new_sender

TIMEOUT_SECONDS = 1

BAD_RECEIVERS: dict[str, tuple[Callable[[], AbstractContextManager[Receiver | str]], str]] = {
    "refuses": (receivers.refuses, "connect_failed"),
    "resets at accept": (receivers.resets_at_accept, "connect_failed"),
    "closes at accept": (receivers.closes_at_accept, "connect_failed"),
    "resets after the request": (receivers.resets_after_request, "connect_failed"),
    "closes without an answer": (receivers.closes_without_answer, "invalid_response"),
    "closes without goodbye": (receivers.closes_without_goodbye, "invalid_response"),
    "hangs": (receivers.hangs, "timeout"),
    "drips in the handshake": (receivers.drips_handshake, "timeout"),
    "drips in the headers": (receivers.drips_headers, "timeout"),
    "drips in the body": (receivers.drips_body, "timeout"),
    "continues without end": (lambda: receivers.endless_continue(interval=0.05), "timeout"),
    "floods": (receivers.floods, "response_too_large"),
    "floods with headers": (receivers.huge_headers, "response_too_large"),
    "has another host's certificate": (receivers.wrong_host, "tls_failed"),
    "has a certificate of nobody": (receivers.unknown_authority, "tls_failed"),
    "has an old certificate": (receivers.expired, "tls_failed"),
    "speaks an old TLS": (receivers.speaks_old_tls, "tls_failed"),
    "speaks no TLS": (receivers.speaks_no_tls, "tls_failed"),
    "speaks no HTTP": (receivers.speaks_no_http, "invalid_response"),
    "promises too much": (receivers.promises_too_much, "invalid_response"),
    "has a bad status": (lambda: receivers.answers_raw(b"HTTP/1.1 999 ?\r\n\r\n"), "invalid_response"),
    "asks who it is": (lambda: receivers.ok(401), "http_status"),
    "has lost it": (lambda: receivers.ok(410), "http_status"),
    "is down": (lambda: receivers.ok(503), "http_status"),
}


def test_each_costs_one_failed_attempt_with_its_code_and_a_retry(api, drain, resources):
    threads = set(threading.enumerate())
    with contextlib.ExitStack() as stack:
        made = {}
        for kind, (start, _) in BAD_RECEIVERS.items():
            receiver = stack.enter_context(start())
            made[kind] = make_endpoint(api, receiver, policy={"timeout_seconds": TIMEOUT_SECONDS})
        good = stack.enter_context(receivers.ok())
        healthy = make_endpoint(api, good)
        publish(api)
        started = time.monotonic()
        assert drain() == len(BAD_RECEIVERS) + 1
        # All at once, and none beyond its deadline.
        assert time.monotonic() - started < TIMEOUT_SECONDS + 3

        codes = {}
        for kind, endpoint in made.items():
            (attempt,) = log_of(api, endpoint)
            codes[kind] = attempt["error"]["code"]
            assert (attempt["status"], attempt["number"]) == ("failed", 1)
            assert attempt["error"]["detail"]
            assert attempt["duration_ms"] < TIMEOUT_SECONDS * 1000 + 500
            (delivery,) = deliveries_of(api, endpoint)
            assert (delivery["status"], delivery["attempt_count"]) == ("pending", 1)
            assert delivery["next_attempt_at"] is not None
        assert codes == {kind: code for kind, (_, code) in BAD_RECEIVERS.items()}

        # And the engine is none the worse for it.
        publish(api)
        drain()
        assert [attempt["status"] for attempt in log_of(api, healthy)] == ["success", "success"]
        for endpoint in (*made.values(), healthy):
            assert queue_of(resources, endpoint).lease_id is None
    pumps = {thread for thread in set(threading.enumerate()) - threads if thread.name != "MainThread"}
    assert pumps == set()


def test_a_redirect_is_a_failure_and_leads_nowhere(api, drain):
    with receivers.ok() as elsewhere:
        target = url_of(elsewhere, "/elsewhere")
        with contextlib.ExitStack() as stack:
            made = [
                make_endpoint(api, stack.enter_context(receivers.redirects(target, status)))
                for status in (301, 302, 303, 307, 308)
            ]
            publish(api)
            assert drain() == 5
        assert elsewhere.connections == 0

    for endpoint, status in zip(made, (301, 302, 303, 307, 308), strict=True):
        (attempt,) = log_of(api, endpoint)
        assert (attempt["status"], attempt["status_code"]) == ("failed", status)
        assert attempt["error"]["code"] == "http_status"
        assert attempt["response"]["headers"]["Location"] == target
        assert deliveries_of(api, endpoint)[0]["status"] == "pending"


@pytest.mark.parametrize("status", [200, 201, 202, 204, 299])
def test_every_status_from_200_to_299_is_a_success(api, drain, status):
    body = b"" if status == 204 else b"fine"
    with receivers.ok(status, body=body) as receiver:
        made = make_endpoint(api, receiver)
        publish(api)
        assert drain() == 1
    (attempt,) = log_of(api, made)
    assert (attempt["status"], attempt["status_code"], attempt["error"]) == ("success", status, None)


def test_the_log_keeps_the_start_of_a_long_answer_and_its_odd_characters(api, drain):
    odd = b'tab\tback\\slash\nline\r"quote" \\N \x00 \xff \xc3\xa9'
    long = receivers.ok(500, body=odd + b"x" * 60_000, headers=[("X-Odd", 'a\\b\tc"d'), ("X-Odd", "twice")])
    with long as receiver:
        made = make_endpoint(api, receiver)
        publish(api)
        drain()
    (attempt,) = log_of(api, made)
    assert attempt["response"]["body"].startswith('tab\tback\\slash\nline\r"quote" \\N \ufffd \ufffd é')
    assert len(attempt["response"]["body"].encode("utf-8", "replace")) < 9 * 1024
    assert attempt["response"]["truncated"] is True
    assert attempt["response"]["headers"]["X-Odd"] == 'a\\bc"d, twice'


@pytest.fixture
def guarded_sender(resources):
    """Give the sender of an installation that may call no internal address: no `drain` here, which allows it."""
    assert resources.egress_policy == EgressPolicy()
    sender = new_sender(resources)
    yield sender
    sender.close()


def test_a_name_that_leads_inside_is_never_connected_to(api, resources, guarded_sender):
    from app.deliveries import engine

    with receivers.ok() as receiver:
        guarded_sender._resolve = [f"hooks.example.com:{receiver.port}:127.0.0.1"]
        made = make_endpoint(api, f"https://hooks.example.com:{receiver.port}")
        publish(api)
        with resources.transaction() as uow:
            engine.fan_out(uow)
        assert Pump(resources, guarded_sender).run() == 1
        assert receiver.connections == 0

    (attempt,) = log_of(api, made)
    assert (attempt["status"], attempt["status_code"]) == ("failed", None)
    assert attempt["error"]["code"] == "blocked_address"
    assert attempt["response"] is None
    assert "127.0.0.1" not in str(attempt)
    delivery = the_delivery(resources)
    assert (delivery.status, delivery.attempt_count) == ("pending", 1)
    assert delivery.next_attempt_at is not None
