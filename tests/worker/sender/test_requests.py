"""What is sent is what was given, to the byte."""

import pytest

from tests import receivers
from tests.worker.sender.steps import outgoing
from worker.sender import send_one


def test_the_wire_has_the_given_headers_in_order_and_nothing_that_was_not_given(new_sender):
    headers = [
        "Content-Type: application/json",
        "User-Agent: BotBat-Webhooks/1",
        "X-BotBat-Event: message.received",
        "webhook-id: evt_1",
    ]
    body = b'{"id":"evt_1"}\x00\xff'
    with receivers.ok() as receiver:
        outcome = send_one(
            new_sender(receiver.url), outgoing(f"{receiver.url}/a/../b?c=%20d", headers=headers, body=body)
        )

    assert outcome.error_code is None
    [request] = receiver.requests
    assert request.body == body
    assert request.head.decode().split("\r\n") == [
        "POST /a/../b?c=%20d HTTP/1.1",
        f"Host: localhost:{receiver.port}",
        *headers,
        f"Content-Length: {len(body)}",
    ]


def test_without_headers_and_body_only_host_and_length_are_sent(new_sender):
    with receivers.ok() as receiver:
        send_one(new_sender(receiver.url), outgoing(f"{receiver.url}/", body=b""))

    assert [name for name, _ in receiver.requests[0].headers] == ["Host", "Content-Length"]


def test_a_body_over_a_mebibyte_is_sent_without_expect_100_continue(new_sender):
    with receivers.ok() as receiver:
        send_one(new_sender(receiver.url), outgoing(f"{receiver.url}/", body=b"a" * 1_500_000))

    assert receiver.requests[0].header("Expect") is None
    assert len(receiver.requests[0].body) == 1_500_000


def test_a_given_accept_header_is_sent(new_sender):
    with receivers.ok() as receiver:
        send_one(new_sender(receiver.url), outgoing(f"{receiver.url}/", headers=["Accept: text/x"]))

    assert receiver.requests[0].header("Accept") == "text/x"


def test_no_cookie_comes_back_and_no_credentials_are_found_in_netrc(new_sender, tmp_path, monkeypatch):
    (tmp_path / ".netrc").write_text("machine localhost login someone password secret\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    with receivers.ok(headers=[("Set-Cookie", "a=b"), ("WWW-Authenticate", "Basic")]) as receiver:
        sender = new_sender(receiver.url)
        for _ in range(2):
            send_one(sender, outgoing(f"{receiver.url}/"))

    for request in receiver.requests:
        assert [name for name, _ in request.headers] == ["Host", "Content-Length"]


@pytest.mark.parametrize(
    ("method", "body", "expected"),
    [
        ("GET", b"", ["Host"]),
        ("DELETE", b"", ["Host"]),
        ("GET", b"x", ["Host", "Content-Length"]),
        ("PUT", b"", ["Host", "Content-Length"]),
        ("PATCH", b"x", ["Host", "Content-Length"]),
    ],
)
def test_other_methods_leave_no_trace_on_the_next_post(new_sender, method, body, expected):
    with receivers.ok() as receiver:
        sender = new_sender(receiver.url)
        first = send_one(sender, outgoing(f"{receiver.url}/", method=method, body=body))
        second = send_one(sender, outgoing(f"{receiver.url}/", body=b"post"))

    assert (first.status_code, second.status_code) == (200, 200)
    assert [(request.method, request.body) for request in receiver.requests] == [
        (method, body),
        ("POST", b"post"),
    ]
    assert [name for name, _ in receiver.requests[0].headers] == expected


def test_head_takes_no_body_from_the_answer(new_sender):
    with receivers.answers_raw(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n") as receiver:
        outcome = send_one(new_sender(receiver.url), outgoing(f"{receiver.url}/", method="HEAD", body=b""))

    assert (outcome.status_code, outcome.error_code, outcome.response_body) == (200, None, b"")


@pytest.mark.parametrize(
    "changes",
    [
        {"headers": ["X-A: b\r\nX-Injected: c"]},
        {"headers": ["X-A: b\nX-Injected: c"]},
        {"headers": ["X-A: b\0"]},
        {"headers": ["X-A: é"]},
        {"method": "GET / HTTP/1.1\r\nX-Injected: c\r\n"},
        {"method": ""},
    ],
)
def test_what_cannot_be_put_on_the_wire_as_it_is_is_refused_at_once(new_sender, changes):
    sender = new_sender("https://localhost:9443")
    with pytest.raises(ValueError, match=r"consists of letters|header line"):
        sender.start(outgoing("https://localhost:9443/", **changes))
    assert sender.in_flight == 0


def test_proxies_of_the_environment_are_ignored(new_sender, monkeypatch):
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    with receivers.ok() as receiver:
        assert send_one(new_sender(receiver.url), outgoing(f"{receiver.url}/")).status_code == 200
