"""The loop ends when it should, and an exception in it spoils nothing else."""

import contextlib
import select
import sys
import threading
import time

import pytest

from app.core.egress_policy import EgressPolicy
from tests import receivers
from tests.worker.sender.steps import finish, outgoing
from worker.sender import Sender, loop, send_one, transfer


def test_run_gives_nothing_after_its_timeout(new_sender):
    with receivers.hangs() as receiver:
        sender = new_sender(receiver.url)
        sender.start(outgoing(f"{receiver.url}/", timeout_ms=10_000))
        started = time.monotonic()
        assert sender.run(0.3) == []
        assert 0.3 <= time.monotonic() - started < 0.8
        assert sender.run(0.0) == []
        assert sender.in_flight == 1


def test_wake_ends_a_run_that_waits(new_sender):
    sender = new_sender()
    waker = threading.Timer(0.2, sender.wake)
    started = time.monotonic()
    waker.start()
    assert sender.run(10.0) == []
    waker.join()
    assert 0.2 <= time.monotonic() - started < 5.0


def test_wake_before_run_is_not_lost_and_many_count_as_one(new_sender):
    sender = new_sender()
    for _ in range(70_000):  # more than a pipe holds
        sender.wake()
    started = time.monotonic()
    assert sender.run(10.0) == []
    assert time.monotonic() - started < 5.0
    started = time.monotonic()
    assert sender.run(0.2) == []
    assert time.monotonic() - started >= 0.2


def test_abort_gives_the_tags_of_what_it_abandons_and_the_sender_goes_on(new_sender):
    with receivers.hangs() as hanging, receivers.ok() as receiver:
        sender = new_sender(hanging.url, receiver.url, max_connections=3)
        for number in range(5):  # three under way, two waiting
            sender.start(outgoing(f"{hanging.url}/", tag=number, timeout_ms=10_000))
        while len(hanging.requests) < 3:
            assert sender.run(0.05) == []
        assert sorted(sender.abort(), key=str) == [0, 1, 2, 3, 4]
        assert sender.in_flight == 0
        assert sender.abort() == []
        assert sender.run(0.0) == []
        assert send_one(sender, outgoing(f"{receiver.url}/")).status_code == 200


def test_what_had_finished_before_abort_still_comes_from_run(new_sender):
    with receivers.hangs() as hanging:
        sender = new_sender(hanging.url)
        sender.start(outgoing(f"{hanging.url}/", tag="under way"))
        sender.start(outgoing("https://10.0.0.1/", tag="refused"))
        assert sender.abort() == ["under way"]
        assert [outcome.tag for outcome in sender.run(0.0)] == ["refused"]
        assert sender.in_flight == 0


def test_send_one_wants_the_sender_for_itself(new_sender):
    with receivers.hangs() as receiver:
        sender = new_sender(receiver.url)
        sender.start(outgoing(f"{receiver.url}/"))
        with pytest.raises(RuntimeError, match="in flight"):
            send_one(sender, outgoing(f"{receiver.url}/"))


def test_an_exception_in_the_policy_comes_out_of_run_and_spoils_nothing_else(new_sender):
    class Broken(EgressPolicy):
        def allows_address(self, address: str, *, origin: str = "") -> bool:
            if origin == broken.url:
                raise LookupError("a bug")
            return super().allows_address(address, origin=origin)

    with receivers.ok() as receiver, receivers.ok() as broken:
        sender = new_sender(policy=Broken(dev_origins=frozenset({receiver.url, broken.url})))
        sender.start(outgoing(f"{receiver.url}/", tag="good"))
        sender.start(outgoing(f"{broken.url}/", tag="bad"))
        with pytest.raises(LookupError, match="a bug"):
            finish(sender)
        outcomes = {outcome.tag: outcome for outcome in finish(sender)}
        outcomes |= {"again": send_one(sender, outgoing(f"{receiver.url}/"))}

    assert outcomes["bad"].error_code == "connect_failed"
    assert outcomes["again"].error_code is None
    assert broken.connections == 0


class FailsFor:
    """A limit, or a clock, that fails where it is asked about one thing."""

    def __init__(self, subject: object) -> None:
        self.subject = subject

    def __ge__(self, size: object) -> bool:
        if size == self.subject:
            raise ZeroDivisionError
        return True

    def __call__(self) -> float:
        if sys._getframe(1).f_code.co_name == self.subject:
            raise ZeroDivisionError
        return time.perf_counter()

    def __bool__(self) -> bool:
        raise ZeroDivisionError


def spoil(callback: str, sender: Sender, patched: pytest.MonkeyPatch) -> None:
    """Let one callback raise."""
    match callback:
        case "_on_header":
            patched.setattr(transfer, "MAX_ANSWER_BYTES", FailsFor(len("HTTP/1.1 200 OK\r\n")))
        case "_on_body":
            patched.setattr(transfer, "MAX_ANSWER_BYTES", FailsFor(len("the body")))
        case "_on_ready":
            patched.setattr(sender._transfers[0], "_sent", FailsFor(None))
        case "_on_socket":
            patched.setattr(loop, "_INTEREST", {})
        case "_on_timer":
            patched.setattr(time, "monotonic", FailsFor("_on_timer"))


@pytest.mark.parametrize("callback", ["_on_header", "_on_body", "_on_ready", "_on_socket", "_on_timer"])
def test_an_exception_in_a_callback_comes_out_of_run_and_spoils_nothing_else(
    new_sender, callback, monkeypatch
):
    with receivers.ok(body=b"the body") as receiver:
        sender = new_sender(receiver.url)
        assert send_one(sender, outgoing(f"{receiver.url}/")).error_code is None
        receiver.script("/", [receivers.Answer(body=b"the body", delay=0.1)])  # so that a timer is set
        sender.start(outgoing(f"{receiver.url}/", tag="bad"))
        with monkeypatch.context() as patched:
            spoil(callback, sender, patched)
            with pytest.raises((ZeroDivisionError, KeyError)):
                finish(sender)
        outcomes = []
        while sender.in_flight:
            with contextlib.suppress(ZeroDivisionError, KeyError):  # several callbacks may have failed
                outcomes += sender.run(0.5)
        assert [outcome.tag for outcome in outcomes] == ["bad"]
        assert send_one(sender, outgoing(f"{receiver.url}/")).error_code is None


def test_where_there_is_no_epoll_poll_does_the_same(new_sender, monkeypatch):
    monkeypatch.delattr(select, "epoll")
    with (
        receivers.ok() as receiver,
        receivers.hangs() as hanging,
        receivers.closes_without_answer() as closing,
    ):
        sender = new_sender(receiver.url, hanging.url, closing.url)
        for _ in range(3):
            for url in (receiver.url, hanging.url, closing.url):
                sender.start(outgoing(f"{url}/", tag=url, timeout_ms=300))
            outcomes = {outcome.tag: outcome.error_code for outcome in finish(sender)}
            assert outcomes == {
                receiver.url: None,
                hanging.url: "timeout",
                closing.url: "invalid_response",
            }
        sender.wake()
        assert sender.run(10.0) == []
    assert receiver.connections == 1
