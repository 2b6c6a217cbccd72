"""The event loop: one thread drives many transfers at once through libcurl's multi interface.

A Sender belongs to the process and the thread that made it (`wake` alone may come from elsewhere): after a
fork, make a new one.
"""

import contextlib
import math
import select
import socket
import ssl
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from types import TracebackType
from typing import Final, Self

import pycurl

from app.core.egress_policy import EgressPolicy, UrlRefused
from worker.sender.addresses import AddressJudge
from worker.sender.exchange import Outcome, Outgoing
from worker.sender.headers import HeaderReader
from worker.sender.polls import Waker, new_poll
from worker.sender.transfer import Transfer
from worker.sender.tunnel import TunneledTransfer

# libcurl leaves out a header of its own when a line names it without a value. Where the caller gives the same
# header, the caller's line is sent and this one does nothing.
_NOT_SENT: Final = ["Accept:", "Expect:", "Content-Type:"]
_MAX_REMEMBERED: Final = 4096

_INTEREST: Final = {
    pycurl.POLL_IN: select.POLLIN,
    pycurl.POLL_OUT: select.POLLOUT,
    pycurl.POLL_INOUT: select.POLLIN | select.POLLOUT,
}


class Sender:
    """Makes up to `max_connections` requests at once; what is started beyond that waits, its clock too.

    `ca_file` holds the trusted certificates (PEM); ssl.SSLError or OSError if it does not. `proxy` is the URL of
    the HTTP proxy that all requests go through, or "" for none.
    """

    def __init__(
        self, *, policy: EgressPolicy, ca_file: str, max_connections: int = 200, proxy: str = ""
    ) -> None:
        ssl.create_default_context(cafile=ca_file)
        self.in_flight = 0  # started, and not yet given back by run() or abort()
        self._policy = policy
        self._ca_file = ca_file
        self._max_connections = max_connections
        self._new_transfer: Callable[..., Transfer] = (
            partial(TunneledTransfer, proxy=proxy, looks={}) if proxy else Transfer
        )
        self._resolve: list[str] = []  # CURLOPT_RESOLVE: lets tests give a name any address

        self._urls: dict[str, str] = {}  # as given: as check_url made it
        self._waiting: deque[tuple[Outgoing, str]] = deque()
        self._finished: list[Outcome] = []
        self._transfers: list[Transfer] = []
        self._free: list[Transfer] = []
        self._active = 0  # handles in the multi handle
        self._trouble: BaseException | None = None
        self._may_connect = AddressJudge(policy).may_connect
        self._read_headers = HeaderReader().read

        self._poll = new_poll()
        self._wanted: set[int] = set()  # descriptors that libcurl waits for
        self._dead: set[tuple[str, int]] = set()  # local addresses of kept-alive connections that ended
        self._timer_at = math.inf
        self._waker = Waker()
        self._poll.register(self._waker.descriptor, select.POLLIN)

        self._multi = pycurl.CurlMulti()
        self._multi.setopt(pycurl.M_SOCKETFUNCTION, self._on_socket)
        self._multi.setopt(pycurl.M_TIMERFUNCTION, self._on_timer)
        self._multi.setopt(pycurl.M_PIPELINING, pycurl.PIPE_NOTHING)
        # Idle connections count too: for a new one beyond this the oldest idle one is closed. Transfers are
        # never more than this, so none ever waits inside libcurl, where its deadline would already run.
        self._multi.setopt(pycurl.M_MAXCONNECTS, max_connections)
        self._multi.setopt(pycurl.M_MAX_TOTAL_CONNECTIONS, max_connections)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def start(self, outgoing: Outgoing) -> None:
        """Take a request; its Outcome comes from run(), also when the policy refuses the URL.

        Raises ValueError, and takes nothing, for a method or a header line that cannot be put on the wire as
        it is: checking those is the caller's part, and a line break here would be another header.
        """
        lines = "".join(outgoing.headers)
        if not lines.isascii() or "\n" in lines or "\r" in lines or "\0" in lines:
            raise ValueError("A header line holds a line break, a NUL, or a character that is not ASCII.")
        if outgoing.method != "POST" and not (outgoing.method.isascii() and outgoing.method.isalpha()):
            raise ValueError("A method consists of letters.")

        url = self._urls.get(outgoing.url)
        if url is None:
            try:
                url = self._policy.check_url(outgoing.url)
            except UrlRefused as refused:
                self.in_flight += 1
                self._finished.append(
                    Outcome(
                        outgoing.tag, time.time(), 0, None, "blocked_address", refused.detail, [], b"", False
                    )
                )
                return
            if len(self._urls) >= _MAX_REMEMBERED:
                self._urls.clear()
            self._urls[outgoing.url] = url

        if self._free or len(self._transfers) < self._max_connections:
            self._begin(outgoing, url)
        else:
            self._waiting.append((outgoing, url))
        self.in_flight += 1

    def run(self, timeout: float) -> list[Outcome]:
        """Drive what was started and give what finished.

        Returns as soon as something finished, `timeout` seconds passed, or wake() was called. Raises what
        a callback of libcurl raised (a signal handler may do so anywhere); no Outcome is lost by that, the
        next call gives them.
        """
        act = self._multi.socket_action
        wanted = self._wanted
        deadline = time.monotonic() + timeout
        while True:
            now = time.monotonic()
            wait = 0.0 if self._finished or self._trouble else min(deadline, self._timer_at) - now
            events = self._poll.poll(max(wait, 0.0))
            woken = self._set_aside(events)
            running = self._active
            for descriptor, event in events:
                if descriptor in wanted:
                    # POLLIN, POLLOUT, and POLLERR or POLLHUP, in the bits of CURL_CSELECT_*
                    _, running = act(descriptor, event & 1 | (event & 4) >> 1 | (4 if event & 0b11000 else 0))
            if self._timer_at <= time.monotonic():
                # libcurl begins new transfers here, and often gets them right to the end of their answers.
                _, running = act(pycurl.SOCKET_TIMEOUT, 0)
            if running != self._active:
                self._collect()

            if self._trouble is not None:
                trouble, self._trouble = self._trouble, None
                raise trouble
            if self._finished or woken or now >= deadline:
                finished, self._finished = self._finished, []
                self.in_flight -= len(finished)
                return finished

    def wake(self) -> None:
        """Let the run() that waits, or else the next one, return at once. Any thread may call this."""
        self._waker.wake()

    def abort(self) -> list[object]:
        """Abandon what is under way or waits and give the tags. What had finished still comes from run()."""
        tags = []
        for transfer in self._transfers:
            if transfer.outgoing is not None:
                with contextlib.suppress(pycurl.error):  # run() was interrupted right after it took it out
                    self._multi.remove_handle(transfer.easy)
                tags.append(transfer.outgoing.tag)
                transfer.outgoing = None
                self._free.append(transfer)
        tags.extend(outgoing.tag for outgoing, _ in self._waiting)
        self._waiting.clear()
        self._active = 0
        self.in_flight -= len(tags)
        return tags

    def close(self) -> None:
        """Abandon everything and close all connections.

        Waits for names that are just being resolved, for as long as the system's resolver tries.
        """
        if not self._waker.close():
            return
        self.abort()
        self._multi.close()
        for transfer in self._transfers:
            transfer.easy.close()
        self._poll.close()

    def _begin(self, outgoing: Outgoing, url: str) -> None:
        if not self._free:
            self._add_transfer()
        transfer = self._free[-1]
        setopt = transfer.easy.setopt
        if url != transfer.url:
            setopt(pycurl.URL, url)
            transfer.url = url
        if outgoing.timeout_ms != transfer.timeout_ms:
            setopt(pycurl.TIMEOUT_MS, max(outgoing.timeout_ms, 1))  # 0 would mean no deadline at all
            transfer.timeout_ms = outgoing.timeout_ms
        setopt(pycurl.HTTPHEADER, outgoing.headers + _NOT_SENT)
        if outgoing.method == transfer.method == "POST":
            setopt(pycurl.POSTFIELDS, outgoing.body)
        else:
            transfer.set_method(outgoing.method, outgoing.body)
        self._multi.add_handle(transfer.easy)
        self._active += 1
        self._free.pop()
        transfer.restart(outgoing)

    def _add_transfer(self) -> None:
        transfer = self._new_transfer(
            self._ca_file,
            self._resolve,
            may_connect=self._may_connect,
            read_headers=self._read_headers,
            keep_trouble=self._keep_trouble,
            dead=self._dead,
        )
        self._transfers.append(transfer)
        self._free.append(transfer)

    def _collect(self) -> None:
        remove = self._multi.remove_handle
        queued = 1
        while queued:
            queued, complete, failed = self._multi.info_read()
            now = time.monotonic()
            for easy in complete:
                remove(easy)
                self._finished.append(easy.transfer.succeeded(now))
                self._release(easy.transfer)
            for easy, code, message in failed:
                remove(easy)
                if easy.transfer.goes_on(now, code):
                    self._multi.add_handle(easy)
                    continue
                self._finished.append(easy.transfer.failed(now, code, message))
                self._release(easy.transfer)

    def _release(self, transfer: Transfer) -> None:
        self._active -= 1
        transfer.outgoing = None
        self._free.append(transfer)
        if self._waiting:
            self._begin(*self._waiting.popleft())

    def _on_socket(self, what: int, descriptor: int, _multi: object, _assigned: object) -> None:
        """Follow libcurl's interest in a socket.

        Between two transfers libcurl loses interest in a kept-alive connection. It stays registered: that saves
        a system call in most transfers, and tells when the receiver closes it. Closing a descriptor unregisters
        it. Returns nothing and raises nothing, because anything else makes libcurl give up all transfers for
        good.
        """
        try:
            if what == pycurl.POLL_REMOVE:
                self._wanted.discard(descriptor)
                return
            self._wanted.add(descriptor)
            try:
                self._poll.modify(descriptor, _INTEREST[what])
            except FileNotFoundError:
                self._poll.register(descriptor, _INTEREST[what])
        except BaseException as error:  # noqa: BLE001 - run() raises it
            self._keep_trouble(error)

    def _on_timer(self, timeout_ms: int) -> None:
        try:
            self._timer_at = time.monotonic() + timeout_ms / 1000 if timeout_ms >= 0 else math.inf
        except BaseException as error:  # noqa: BLE001 - run() raises it
            self._timer_at = 0.0
            self._keep_trouble(error)

    def _set_aside(self, events: list[tuple[int, int]]) -> bool:
        """Take care of descriptors that libcurl does not wait for, and tell whether wake() was called.

        This comes before the others: any call may let libcurl begin on a kept-alive connection, and it should
        be known by then which are dead.
        """
        woken = False
        for descriptor, event in events:
            if descriptor == self._waker.descriptor:
                self._waker.clear()
                woken = True
            elif descriptor not in self._wanted:
                self._set_idle_aside(descriptor, event)
        return woken

    def _set_idle_aside(self, descriptor: int, event: int) -> None:
        """Take an idle connection on which something came for dead, and stop listening to it.

        What comes is its end, or what no client has to expect. libcurl itself looks only once a second. That it
        can be written to means nothing: the last transfer may have waited for that.
        """
        with contextlib.suppress(OSError, KeyError):  # closed meanwhile, or no socket
            if event == select.POLLOUT:
                self._poll.modify(descriptor, select.POLLIN)
                return
            self._poll.unregister(descriptor)
            idle = socket.socket(fileno=descriptor)
            try:
                name = idle.getsockname()
            finally:
                idle.detach()
            if len(self._dead) >= _MAX_REMEMBERED:  # libcurl closed most of them by itself
                self._dead.clear()
            self._dead.add(name[:2])

    def _keep_trouble(self, error: BaseException) -> None:
        """Keep a callback's first exception for run() to raise: libcurl has no way to pass it on."""
        if self._trouble is None:
            self._trouble = error


def send_one(sender: Sender, outgoing: Outgoing) -> Outcome:
    """Make one request and wait for its Outcome. RuntimeError if the sender is busy with others."""
    if sender.in_flight:
        raise RuntimeError("The sender has other requests in flight.")
    sender.start(outgoing)
    while True:
        for outcome in sender.run(1.0):
            return outcome
