"""Connections serve again and again, and no request is ever sent twice."""

import contextlib
import os
import time

import pytest

from tests import receivers
from tests.worker.sender.steps import finish, outgoing
from worker.sender import headers, loop, send_one, transfer


def test_one_connection_serves_one_request_after_the_other(new_sender):
    with receivers.ok() as receiver:
        sender = new_sender(receiver.url)
        for number in range(50):
            sender.start(outgoing(f"{receiver.url}/{number % 3}", tag=number))
            assert [outcome.status_code for outcome in finish(sender)] == [200]

    assert len(receiver.requests) == 50
    assert receiver.connections == 1


def test_a_hundred_at_once_are_in_flight_together_and_their_connections_serve_again(new_sender):
    with receivers.ok(delay=0.2) as receiver:
        sender = new_sender(receiver.url)
        started = time.monotonic()
        for round_ in range(2):
            for number in range(100):
                sender.start(outgoing(f"{receiver.url}/", tag=(round_, number), timeout_ms=15_000))
            assert sender.in_flight == 100
            outcomes = finish(sender)
            assert {outcome.tag for outcome in outcomes} == {(round_, number) for number in range(100)}
            assert {outcome.error_code for outcome in outcomes} == {None}

    assert time.monotonic() - started < 100 * 0.2
    assert receiver.connections <= 100
    assert len(receiver.requests) == 200


def test_more_than_max_connections_wait_their_turn_with_their_clock_stopped(new_sender):
    with receivers.ok(delay=0.3) as receiver:
        sender = new_sender(receiver.url, max_connections=2)
        for number in range(10):
            sender.start(outgoing(f"{receiver.url}/", tag=number))
        assert sender.in_flight == 10
        outcomes = finish(sender)

    # The last pair began after 1.2 s, later than its deadline of 1 s from start() would have allowed.
    assert [outcome.error_code for outcome in outcomes] == [None] * 10
    assert {outcome.tag for outcome in outcomes} == set(range(10))
    assert receiver.connections == 2


def test_idle_connections_make_room_for_other_receivers(new_sender):
    with contextlib.ExitStack() as stack:
        several = [stack.enter_context(receivers.ok()) for _ in range(5)]
        sender = new_sender(*(receiver.url for receiver in several), max_connections=2)
        for _ in range(3):
            for receiver in several:
                sender.start(outgoing(f"{receiver.url}/"))
            assert [outcome.error_code for outcome in finish(sender)] == [None] * 5


@pytest.mark.parametrize("idle", [1, 4])  # libcurl would try them all, and then a new one
def test_a_request_is_never_sent_twice_when_its_kept_alive_connection_dies(new_sender, idle):
    with receivers.dies_on_second_request() as receiver:
        sender = new_sender(receiver.url)
        for number in range(idle):
            sender.start(outgoing(f"{receiver.url}/{number}"))
        assert {outcome.status_code for outcome in finish(sender)} == {200}
        outcome = send_one(sender, outgoing(f"{receiver.url}/once"))

    assert (outcome.status_code, outcome.error_code) == (None, "connect_failed")
    assert "connection broke" in (outcome.error_detail or "")
    assert len(receiver.requests_to("/once")) == 1
    assert receiver.connections == idle


def test_a_connection_that_the_receiver_closed_while_idle_is_not_used_again(new_sender):
    with receivers.closes_after_answer() as receiver:
        sender = new_sender(receiver.url)
        for _ in range(3):
            for number in range(5):
                sender.start(outgoing(f"{receiver.url}/{number}"))
            assert [outcome.error_code for outcome in finish(sender)] == [None] * 5
            assert sender.run(0.1) == []  # the closes arrive

    assert len(receiver.requests) == 15
    assert receiver.connections == 15


def test_a_connection_that_was_idle_for_long_is_not_used_again(new_sender, monkeypatch):
    monkeypatch.setattr(transfer, "_MAX_IDLE_SECONDS", 1)
    with receivers.ok() as receiver:
        sender = new_sender(receiver.url)
        for _ in range(2):
            assert send_one(sender, outgoing(f"{receiver.url}/")).status_code == 200
            sender.run(1.2)

    assert receiver.connections == 2


def test_a_hanging_receiver_does_not_hold_up_the_others(new_sender):
    with receivers.hangs() as hanging, receivers.ok() as receiver:
        sender = new_sender(hanging.url, receiver.url)
        for _ in range(20):
            sender.start(outgoing(f"{hanging.url}/", tag="hanging"))
        for number in range(20):
            sender.start(outgoing(f"{receiver.url}/", tag=number))
        first = [outcome for _ in range(40) if sender.in_flight > 20 for outcome in sender.run(1.0)]
        assert {outcome.tag for outcome in first} == set(range(20))
        assert {outcome.error_code for outcome in finish(sender)} == {"timeout"}


def test_sockets_are_closed_with_the_sender(new_sender):
    before = open_descriptors()
    with receivers.ok() as receiver, receivers.hangs() as hanging:
        sender = new_sender(receiver.url, hanging.url)
        for _ in range(10):
            sender.start(outgoing(f"{receiver.url}/"))
            sender.start(outgoing(f"{hanging.url}/"))
        while sender.in_flight > 10:
            sender.run(1.0)
        sender.close()
        sender.close()
        sender.wake()

    assert open_descriptors() == before


def test_what_is_remembered_of_urls_headers_and_dead_connections_is_bounded(new_sender, monkeypatch):
    for module in (loop, headers):
        monkeypatch.setattr(module, "_MAX_REMEMBERED", 2)
    with receivers.closes_after_answer() as receiver:
        sender = new_sender(receiver.url)
        for number in range(12):
            sender.start(outgoing(f"{receiver.url}/{number}"))
        assert {outcome.error_code for outcome in finish(sender)} == {None}
        sender.run(0.2)
    with receivers.ok(headers=[(f"X-{number}", "a") for number in range(10)]) as receiver:
        sender = new_sender(receiver.url)
        for number in range(5):
            outcome = send_one(sender, outgoing(f"{receiver.url}/{number}"))
            assert len(outcome.response_headers) == 11

    assert len(sender._urls) <= 2


def open_descriptors() -> int:
    """Count this process's open sockets, pipes and the like."""
    count = 0
    for descriptor in range(3, 2048):
        with contextlib.suppress(OSError):
            os.fstat(descriptor)
            count += 1
    return count
