"""What comes back, and how much of it is kept."""

import time

import pytest

from tests import receivers
from tests.worker.sender.steps import DEADLINE_MS, assert_helps, outgoing
from worker.sender import send_one


def test_an_outcome_tells_whose_it_is_and_when_it_was(new_sender):
    tag = object()
    with receivers.ok(201, body=b"made", headers=[("X-Id", "7")], delay=0.1) as receiver:
        before = time.time()
        outcome = send_one(new_sender(receiver.url), outgoing(f"{receiver.url}/", tag=tag))

    assert outcome.tag is tag
    assert before <= outcome.started_at <= time.time()
    assert 100 <= outcome.duration_ms < DEADLINE_MS
    assert (outcome.status_code, outcome.error_code, outcome.error_detail) == (201, None, None)
    assert outcome.response_headers == [("X-Id", "7"), ("Content-Length", "4")]
    assert (outcome.response_body, outcome.response_truncated) == (b"made", False)


@pytest.mark.parametrize("status", [200, 201, 202, 226, 299])
def test_200_to_299_is_success(new_sender, status):
    with receivers.ok(status) as receiver:
        outcome = send_one(new_sender(receiver.url), outgoing(f"{receiver.url}/"))

    assert (outcome.status_code, outcome.error_code) == (status, None)


@pytest.mark.parametrize("status", [300, 301, 304, 308, 400, 401, 404, 410, 429, 500, 503, 599])
def test_any_other_status_is_a_failure_that_keeps_it(new_sender, status):
    # 304 never has a body, so none is promised here.
    with receivers.ok(status, body=b"") as receiver:
        outcome = send_one(new_sender(receiver.url), outgoing(f"{receiver.url}/"))

    assert (outcome.status_code, outcome.error_code) == (status, "http_status")
    assert f"answered {status}." in (outcome.error_detail or "")
    assert_helps(outcome)
    assert ("never followed" in (outcome.error_detail or "")) is (status < 400)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_not_followed(new_sender, status):
    with receivers.ok() as target, receivers.redirects(f"{target.url}/", status) as receiver:
        outcome = send_one(new_sender(receiver.url, target.url), outgoing(f"{receiver.url}/"))

    assert (outcome.status_code, outcome.error_code) == (status, "http_status")
    assert ("Location", f"{target.url}/") in outcome.response_headers
    assert target.connections == 0


@pytest.mark.parametrize(
    ("size", "kept", "truncated", "error"),
    [
        (0, 0, False, None),
        (8192, 8192, False, None),
        (8193, 8192, True, None),
        (65536, 8192, True, None),
        (65537, 8192, True, "response_too_large"),
    ],
)
def test_64_kib_of_the_body_are_read_and_8_kept(new_sender, size, kept, truncated, error):
    with receivers.ok(body=b"a" * size) as receiver:
        outcome = send_one(new_sender(receiver.url), outgoing(f"{receiver.url}/"))

    assert outcome.error_code == error
    assert outcome.status_code == 200
    assert outcome.response_body == b"a" * kept
    assert outcome.response_truncated is truncated


def test_a_compressed_answer_is_kept_as_it_came(new_sender):
    with receivers.ok(headers=[("Content-Encoding", "gzip")], body=b"\x1f\x8bnot really") as receiver:
        outcome = send_one(new_sender(receiver.url), outgoing(f"{receiver.url}/"))

    assert (outcome.error_code, outcome.response_body) == (None, b"\x1f\x8bnot really")
