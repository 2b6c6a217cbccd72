"""The sender against receivers that fail, most of them hostile."""

import ssl
import time

import pytest

from app.core.egress_policy import EgressPolicy
from tests import receivers
from tests.worker.sender.steps import DEADLINE_MS, DEADLINE_WITH_SLACK, assert_helps, outgoing
from worker.sender import Sender, send_one

FAILURES = {
    "resets at accept": (receivers.resets_at_accept, "connect_failed", ""),
    "closes at accept": (receivers.closes_at_accept, "connect_failed", "during the TLS handshake"),
    "resets after the request": (receivers.resets_after_request, "connect_failed", "connection broke"),
    "speaks no TLS": (receivers.speaks_no_tls, "tls_failed", "TLS 1.2 or newer"),
    "speaks TLS 1.1": (receivers.speaks_old_tls, "tls_failed", "TLS 1.2 or newer"),
    "wrong host": (receivers.wrong_host, "tls_failed", "another host name"),
    "unknown authority": (receivers.unknown_authority, "tls_failed", "authority that we know"),
    "expired": (receivers.expired, "tls_failed", "expired"),
    "speaks no HTTP": (receivers.speaks_no_http, "invalid_response", "not valid HTTP"),
    "closes without an answer": (receivers.closes_without_answer, "invalid_response", "without an answer"),
    "closes without close_notify": (
        receivers.closes_without_goodbye,
        "invalid_response",
        "without an answer",
    ),
    "promises too much": (receivers.promises_too_much, "invalid_response", "before its answer was complete"),
    "hangs": (receivers.hangs, "timeout", "did not answer within 1 s"),
    "drips in the handshake": (receivers.drips_handshake, "timeout", "TLS handshake"),
    "drips in the headers": (receivers.drips_headers, "timeout", "answer was not complete"),
    "drips in the body": (receivers.drips_body, "timeout", "answer was not complete"),
    "100 Continue for ever": (
        lambda: receivers.endless_continue(interval=0.05),
        "timeout",
        "answer was not complete",
    ),
}


@pytest.mark.parametrize(("receiver", "code", "words"), FAILURES.values(), ids=FAILURES)
def test_a_hostile_receiver_costs_its_deadline_at_most(new_sender, receiver, code, words):
    with receiver() as hostile:
        sender = new_sender(hostile.url)
        started = time.monotonic()
        outcome = send_one(sender, outgoing(f"{hostile.url}/"))
        elapsed = time.monotonic() - started

    assert (outcome.status_code, outcome.error_code) == (None, code)
    assert words in (outcome.error_detail or "")
    assert_helps(outcome)
    assert elapsed < DEADLINE_WITH_SLACK
    assert hostile.connections == 1
    if code == "timeout":
        assert elapsed >= DEADLINE_MS / 1000
        assert DEADLINE_MS <= outcome.duration_ms < DEADLINE_WITH_SLACK * 1000


TOO_LARGE = {
    "body": (receivers.floods, 200),
    "body of an error": (lambda: receivers.floods(b"HTTP/1.1 503 Busy\r\n\r\n"), 503),
    "many headers": (receivers.huge_headers, 200),
    "very many tiny headers": (lambda: receivers.huge_headers(line_bytes=14, lines=6000), 200),
    "one long header": (lambda: receivers.huge_headers(line_bytes=70_000, lines=1), 200),
    "one endless header": (lambda: receivers.huge_headers(line_bytes=1_000_000, lines=1), 200),
    "interim answers": (lambda: receivers.endless_continue(interval=0), None),
}


@pytest.mark.parametrize(("receiver", "status"), TOO_LARGE.values(), ids=TOO_LARGE)
def test_an_answer_over_64_kib_is_cut_and_keeps_its_status(new_sender, receiver, status):
    with receiver() as hostile:
        outcome = send_one(new_sender(hostile.url), outgoing(f"{hostile.url}/", timeout_ms=10_000))

    assert (outcome.status_code, outcome.error_code) == (status, "response_too_large")
    assert "64 KiB" in (outcome.error_detail or "")
    assert_helps(outcome)
    assert len(outcome.response_body) <= 8192


@pytest.mark.parametrize(
    "content",
    [
        b"HTTP/1.1 999 Strange\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 600 Strange\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 099 Strange\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 000 Strange\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 20 Short\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n",
        b"HTTP/2 200 OK\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nok\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nno colon\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX-Nul: \x00\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX-Cut: of",
        b"HTTP/1.1 200 OK\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nX-Cut: of",
        b"<html>",
    ],
)
def test_what_breaks_http_is_an_invalid_response(new_sender, content):
    with receivers.answers_raw(content) as receiver:
        outcome = send_one(new_sender(receiver.url), outgoing(f"{receiver.url}/"))

    assert (outcome.status_code, outcome.error_code) == (None, "invalid_response")
    assert_helps(outcome)


def test_a_closed_port_is_connect_failed(new_sender):
    with receivers.refuses() as url:
        outcome = send_one(new_sender(url), outgoing(f"{url}/"))

    assert (outcome.status_code, outcome.error_code) == (None, "connect_failed")
    assert_helps(outcome)


def test_a_port_that_does_not_answer_costs_the_deadline(new_sender):
    with receivers.never_accepts() as url:
        started = time.monotonic()
        outcome = send_one(new_sender(url), outgoing(f"{url}/"))

    assert (outcome.status_code, outcome.error_code) == (None, "timeout")
    assert "No connection" in (outcome.error_detail or "")
    assert_helps(outcome)
    assert DEADLINE_MS / 1000 <= time.monotonic() - started < DEADLINE_WITH_SLACK


def test_a_name_that_does_not_resolve_is_dns_failed(new_sender):
    class AnyUrl(EgressPolicy):
        def check_url(self, url: str) -> str:
            return url

    # An empty label is refused by the resolver itself: no DNS server is asked.
    outcome = send_one(new_sender(policy=AnyUrl()), outgoing("https://no..such.example/"))

    assert (outcome.status_code, outcome.error_code) == (None, "dns_failed")
    assert_helps(outcome)


def test_a_deadline_of_zero_is_short_and_not_absent(new_sender):
    with receivers.hangs() as receiver:
        started = time.monotonic()
        outcome = send_one(new_sender(receiver.url), outgoing(f"{receiver.url}/", timeout_ms=0))

    assert outcome.error_code == "timeout"
    assert time.monotonic() - started < DEADLINE_WITH_SLACK


def test_a_ca_file_that_holds_no_certificate_is_refused_when_the_sender_is_made(tmp_path):
    empty = tmp_path / "empty.pem"
    empty.write_text("")
    with pytest.raises(ssl.SSLError):
        Sender(policy=EgressPolicy(), ca_file=str(empty))
