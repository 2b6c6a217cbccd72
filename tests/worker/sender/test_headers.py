"""What is kept of an answer's headers."""

import pytest

from tests import receivers
from tests.worker.sender.steps import outgoing
from worker.sender import send_one


def test_secrets_and_control_characters_stay_out_of_the_kept_headers(new_sender):
    headers = [
        ("Set-Cookie", "session=1"),
        ("AUTHORIZATION", "Bearer x"),
        ("Proxy-Authenticate", "Basic"),
        ("Proxy-Authorization", "x"),
        ("X-Refresh-Token", "x"),
        ("client_secret", "x"),
        ("X-Tokens", "kept"),
        ("X-Latin", "caf\xe9"),
        ("X-Control", "a\x01b\x85c\td"),
        ("X-Empty", ""),
    ]
    with receivers.ok(headers=headers) as receiver:
        sender = new_sender(receiver.url)
        outcomes = [send_one(sender, outgoing(f"{receiver.url}/")) for _ in range(2)]

    for outcome in outcomes:
        assert outcome.response_headers == [
            ("X-Tokens", "kept"),
            ("X-Latin", "café"),
            ("X-Control", "abcd"),
            ("X-Empty", ""),
            ("Content-Length", "2"),
        ]


def test_at_most_32_headers_are_kept(new_sender):
    with receivers.ok(headers=[(f"X-{number}", "a") for number in range(50)]) as receiver:
        sender = new_sender(receiver.url)
        outcomes = [send_one(sender, outgoing(f"{receiver.url}/")) for _ in range(2)]

    for outcome in outcomes:
        assert outcome.response_headers == [(f"X-{number}", "a") for number in range(32)]


def test_at_most_8_kib_of_headers_are_kept(new_sender):
    with receivers.huge_headers(lines=20) as receiver:
        outcome = send_one(new_sender(receiver.url), outgoing(f"{receiver.url}/"))

    assert outcome.error_code is None
    assert sum(len(name) + len(value) for name, value in outcome.response_headers) <= 8192


FINAL_ANSWER = b"HTTP/1.1 200 OK\r\nX-Final: 1\r\nContent-Length: 2\r\n\r\nok"


@pytest.mark.parametrize(
    "content",
    [
        b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + FINAL_ANSWER,
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 102 Processing\r\n\r\n" + FINAL_ANSWER,
        b"HTTP/1.1 200 OK\nX-Final: 1\nContent-Length: 2\n\nok",
    ],
)
def test_only_headers_of_the_final_answer_are_kept(new_sender, content):
    with receivers.answers_raw(content) as receiver:
        outcome = send_one(new_sender(receiver.url), outgoing(f"{receiver.url}/"))

    assert (outcome.status_code, outcome.error_code, outcome.response_body) == (200, None, b"ok")
    assert outcome.response_headers == [("X-Final", "1"), ("Content-Length", "2")]


def test_a_chunked_answer_is_read_and_its_trailers_are_left_out(new_sender):
    content = (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
        b"2\r\nok\r\n0\r\nHTTP/1.1 500 X: y\r\nX-Trailer: 1\r\n\r\n"
    )
    with receivers.answers_raw(content) as receiver:
        outcome = send_one(new_sender(receiver.url), outgoing(f"{receiver.url}/"))

    assert (outcome.status_code, outcome.error_code, outcome.response_body) == (200, None, b"ok")
    assert outcome.response_headers == [("Transfer-Encoding", "chunked")]
