"""Requests to addresses that customers gave: the only code that opens connections to them.

One thread drives many transfers at once through libcurl's multi interface. A Sender belongs to the process
and the thread that made it (`wake` alone may come from elsewhere): after a fork, make a new one.
"""

import contextlib
import ipaddress
import math
import os
import select
import socket
import ssl
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Protocol, Self

import pycurl
import structlog

from app.core.egress_policy import EgressPolicy, UrlRefused, origin_of

MAX_ANSWER_BYTES: Final = 64 * 1024  # of the header lines, and again of the body
KEPT_BODY_BYTES: Final = 8 * 1024
KEPT_HEADER_CHARACTERS: Final = 8 * 1024  # names and values of all kept headers together
KEPT_HEADERS: Final = 32

# libcurl leaves out a header of its own when a line names it without a value. Where the caller gives the same
# header, the caller's line is sent and this one does nothing.
_NOT_SENT: Final = ["Accept:", "Expect:", "Content-Type:"]
# Node.js, Apache and uvicorn close a connection that was idle for 5 s. A request that crosses with that close
# is a failed attempt, because none is ever sent twice.
_MAX_IDLE_SECONDS: Final = 4
# So that a receiver that moves in the DNS is followed however busy its connections are.
_MAX_CONNECTION_AGE_SECONDS: Final = 600
_MAX_REMEMBERED: Final = 4096
_MAX_REMEMBERED_LINE: Final = 256

_DROPPED_HEADERS: Final = frozenset(
    {"set-cookie", "set-cookie2", "authorization", "proxy-authenticate", "proxy-authorization"}
)
_DROPPED_HEADER_ENDINGS: Final = ("token", "secret")
# Unicode's Cc within latin-1: NUL above all, which PostgreSQL refuses in text.
_CONTROL_CHARACTERS: Final = dict.fromkeys([*range(0x20), *range(0x7F, 0xA0)])

_INTEREST: Final = {
    pycurl.POLL_IN: select.POLLIN,
    pycurl.POLL_OUT: select.POLLOUT,
    pycurl.POLL_INOUT: select.POLLIN | select.POLLOUT,
}

_log = structlog.get_logger(__name__)


@dataclass(slots=True)
class Outgoing:
    """One request to make.

    `headers` are complete `Name: value` lines in ASCII; libcurl leaves out a line without a value. It adds
    Host and Content-Length, nothing else.
    """

    url: str
    headers: list[str]
    body: bytes
    timeout_ms: int  # the whole of it: from the DNS to the last byte of the answer
    tag: object
    method: str = "POST"


@dataclass(slots=True)
class Outcome:
    """What became of an Outgoing: exactly one for each, whatever happened.

    `status_code` is that of a complete answer, or of one that was cut for its size. An answer that the
    deadline or the receiver cut short has none, though what came of its headers and body is kept.
    """

    tag: object
    started_at: float  # seconds since the epoch
    duration_ms: int
    status_code: int | None
    error_code: str | None  # None: 200 to 299, complete
    error_detail: str | None  # a sentence for the customer; holds no address
    response_headers: list[tuple[str, str]]
    response_body: bytes
    response_truncated: bool


class Sender:
    """Makes up to `max_connections` requests at once; what is started beyond that waits, its clock too.

    `ca_file` holds the trusted certificates (PEM); ssl.SSLError or OSError if it does not.
    """

    def __init__(self, *, policy: EgressPolicy, ca_file: str, max_connections: int = 200) -> None:
        ssl.create_default_context(cafile=ca_file)
        self.in_flight = 0  # started, and not yet given back by run() or abort()
        self._policy = policy
        self._ca_file = ca_file
        self._max_connections = max_connections
        self._resolve: list[str] = []  # CURLOPT_RESOLVE: lets tests give a name any address

        self._urls: dict[str, str] = {}  # as given: as check_url made it
        self._waiting: deque[tuple[Outgoing, str]] = deque()
        self._finished: list[Outcome] = []
        self._transfers: list[_Transfer] = []
        self._free: list[_Transfer] = []
        self._active = 0  # handles in the multi handle
        self._trouble: BaseException | None = None
        self._read_headers = _HeaderReader().read

        self._poll: _Poll = select.epoll() if hasattr(select, "epoll") else _PortablePoll()
        self._wanted: set[int] = set()  # descriptors that libcurl waits for
        self._dead: set[tuple[str, int]] = set()  # local addresses of kept-alive connections that ended
        self._timer_at = math.inf
        self._wake_lock = threading.Lock()
        self._wake_reader, self._wake_writer = os.pipe()
        os.set_blocking(self._wake_reader, False)
        os.set_blocking(self._wake_writer, False)
        self._poll.register(self._wake_reader, select.POLLIN)

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
        with self._wake_lock, contextlib.suppress(BlockingIOError):  # a full pipe wakes as well
            if self._wake_writer >= 0:
                os.write(self._wake_writer, b"\0")

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
        with self._wake_lock:
            if self._wake_writer < 0:
                return
            os.close(self._wake_writer)
            self._wake_writer = -1
        self.abort()
        self._multi.close()
        for transfer in self._transfers:
            transfer.easy.close()
        self._poll.close()
        os.close(self._wake_reader)

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
        transfer = _Transfer(
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
                if easy.transfer.met_dead_connection:
                    easy.transfer.met_dead_connection = False
                    self._multi.add_handle(easy)
                    continue
                self._finished.append(easy.transfer.failed(now, code, message))
                self._release(easy.transfer)

    def _release(self, transfer: "_Transfer") -> None:
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
            if descriptor == self._wake_reader:
                os.read(descriptor, 65536)  # all that a pipe holds
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

    def _may_connect(self, family: int, address: tuple[Any, ...], origin: str) -> bool:
        """Whether a connection for `origin` may go to this very socket address."""
        ip = address[0]
        if not self._policy.allows_address(ip, origin=origin):
            return False
        if origin in self._policy.dev_origins or self._is_allowed_by_operator(ip):
            return True
        return not _is_own_address(family, address)

    def _is_allowed_by_operator(self, ip: str) -> bool:
        address = ipaddress.ip_address(ip)
        if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
            address = address.ipv4_mapped
        return any(address in network for network in self._policy.allow_cidrs)


def send_one(sender: Sender, outgoing: Outgoing) -> Outcome:
    """Make one request and wait for its Outcome. RuntimeError if the sender is busy with others."""
    if sender.in_flight:
        raise RuntimeError("The sender has other requests in flight.")
    sender.start(outgoing)
    while True:
        for outcome in sender.run(1.0):
            return outcome


class _Transfer:
    """An easy handle with what came of its current request. Used again and again: making one costs 0.1 ms."""

    __slots__ = (
        *(
            "_body",
            "_body_size",
            "_dead",
            "_head",
            "_keep_trouble",
            "_may_connect",
            "_opened",
            "_read_headers",
        ),
        *("_refused", "_sent", "_started", "_started_at", "_too_large", "_unjudged"),
        *("easy", "met_dead_connection", "method", "outgoing", "timeout_ms", "url"),
    )

    def __init__(
        self,
        ca_file: str,
        resolve: list[str],
        *,
        may_connect: Callable[[int, tuple[Any, ...], str], bool],
        read_headers: Callable[[bytearray], tuple[list[tuple[str, str]], bool]],
        keep_trouble: Callable[[BaseException], None],
        dead: set[tuple[str, int]],
    ) -> None:
        self._may_connect = may_connect
        self._read_headers = read_headers
        self._keep_trouble = keep_trouble
        self._dead = dead
        self.met_dead_connection = False
        self.outgoing: Outgoing | None = None  # None: free
        self.url = ""
        self.method = "POST"
        self.timeout_ms = -1  # none set yet
        self._head = bytearray()

        self.easy = pycurl.Curl()
        self.easy.transfer = self
        setopt = self.easy.setopt
        # pycurl has no PROTOCOLS_STR; this older option sets the same bits.
        setopt(pycurl.PROTOCOLS, pycurl.PROTO_HTTPS)
        setopt(pycurl.HTTP_VERSION, pycurl.CURL_HTTP_VERSION_1_1)
        setopt(pycurl.HTTP09_ALLOWED, 0)
        setopt(pycurl.FOLLOWLOCATION, 0)
        setopt(pycurl.PATH_AS_IS, 1)  # what was checked is what is asked for
        setopt(pycurl.PROXY, "")  # beats https_proxy of the environment
        setopt(pycurl.NETRC, pycurl.NETRC_IGNORED)
        setopt(pycurl.NOSIGNAL, 1)
        setopt(pycurl.TCP_NODELAY, 1)
        setopt(pycurl.HTTP_CONTENT_DECODING, 0)  # a compressed answer stays as small as it came
        setopt(pycurl.SSLVERSION, pycurl.SSLVERSION_TLSv1_2)
        setopt(pycurl.SSL_VERIFYPEER, 1)
        setopt(pycurl.SSL_VERIFYHOST, 2)
        setopt(pycurl.CAINFO, ca_file)
        self.easy.unsetopt(pycurl.CAPATH)  # a build may have a default that would be trusted too
        setopt(pycurl.MAXAGE_CONN, _MAX_IDLE_SECONDS)
        setopt(pycurl.MAXLIFETIME_CONN, _MAX_CONNECTION_AGE_SECONDS)
        setopt(pycurl.OPENSOCKETFUNCTION, self._open_socket)
        setopt(pycurl.PREREQFUNCTION, self._on_ready)
        setopt(pycurl.HEADERFUNCTION, self._on_header)
        setopt(pycurl.WRITEFUNCTION, self._on_body)
        setopt(pycurl.USERAGENT, "")  # none, instead of PycURL's
        if resolve:
            setopt(pycurl.RESOLVE, resolve)

    def restart(self, outgoing: Outgoing) -> None:
        self.outgoing = outgoing
        self._head.clear()
        self._body = b""
        self._body_size = 0
        self._too_large = False
        self._sent = False
        self._opened = 0
        self._refused = 0
        self._unjudged = False
        self._started_at = time.time()
        self._started = time.monotonic()

    def set_method(self, method: str, body: bytes) -> None:
        """Prepare any method; `_begin` has a shorter way from POST to POST."""
        setopt = self.easy.setopt
        self.easy.unsetopt(pycurl.CUSTOMREQUEST)
        setopt(pycurl.NOBODY, 0)
        if body or method in {"POST", "PUT", "PATCH"}:
            setopt(pycurl.POSTFIELDS, body)
        else:
            setopt(pycurl.HTTPGET, 1)
        if method == "HEAD":
            setopt(pycurl.NOBODY, 1)
        elif method != "POST":
            setopt(pycurl.CUSTOMREQUEST, method)
        self.method = method

    def succeeded(self, now: float) -> Outcome:
        """Give the Outcome of a transfer that libcurl calls complete."""
        status = self.easy.getinfo(pycurl.RESPONSE_CODE)
        headers, whole = self._read_headers(self._head)
        if not whole:
            # libcurl takes an orderly close in the middle of the headers for their end.
            return self._outcome(now, headers, None, *_PARTIAL)
        if 200 <= status <= 299:  # noqa: PLR2004 - RFC 9110 section 15
            return self._outcome(now, headers, status, None, None)
        if 300 <= status <= 599:  # noqa: PLR2004
            detail = f"The endpoint answered {status}."
            if status <= 399:  # noqa: PLR2004
                detail += " Redirects are never followed: set the URL to the final address."
            return self._outcome(now, headers, status, "http_status", detail)
        return self._outcome(now, headers, None, *_NOT_HTTP)

    def failed(self, now: float, curl_code: int, message: str) -> Outcome:
        """Give the Outcome of a transfer that libcurl ended with an error."""
        headers = self._read_headers(self._head)[0] if self._head else []
        if self._too_large or curl_code == _E_TOO_LARGE:
            status = self.easy.getinfo(pycurl.RESPONSE_CODE)
            is_final = 200 <= status <= 599  # noqa: PLR2004
            return self._outcome(now, headers, status if is_final else None, *_TOO_LARGE)
        return self._outcome(now, headers, None, *self._explain(curl_code, message))

    def _outcome(
        self,
        now: float,
        headers: list[tuple[str, str]],
        status: int | None,
        code: str | None,
        detail: str | None,
    ) -> Outcome:
        assert self.outgoing is not None
        return Outcome(
            self.outgoing.tag,
            self._started_at,
            int((now - self._started) * 1000),
            status,
            code,
            detail,
            headers,
            self._body,
            self._body_size > KEPT_BODY_BYTES,
        )

    def _explain(self, curl_code: int, message: str) -> tuple[str, str]:  # noqa: PLR0911 - a table with questions
        """Give error code and detail. libcurl's text is searched but never shown: it may hold an address."""
        if curl_code == pycurl.E_OPERATION_TIMEDOUT:
            return "timeout", self._explain_timeout(message)
        if curl_code == pycurl.E_COULDNT_CONNECT:
            return self._explain_connect()
        if curl_code == pycurl.E_PEER_FAILED_VERIFICATION:
            return "tls_failed", self._explain_certificate(message)
        if curl_code == pycurl.E_SSL_CONNECT_ERROR:
            cut = any(sign in message for sign in ("SYSCALL", "reset by peer", "unexpected eof"))
            return _CUT_HANDSHAKE if cut else _BAD_HANDSHAKE
        if curl_code == pycurl.E_RECV_ERROR:
            return self._explain_receive_error(message)
        if curl_code == pycurl.E_GOT_NOTHING and self._head:  # an interim answer only
            return _PARTIAL
        return _EXPLAINED.get(curl_code, _UNEXPLAINED)

    def _explain_timeout(self, message: str) -> str:
        within = f"within {self.timeout_ms / 1000:g} s"
        if message.startswith("Resolving"):
            return f"The host name could not be resolved {within}. Check the DNS servers of the name."
        if not message.startswith("Connection"):
            progress = (
                "The endpoint's answer was not complete" if self._head else "The endpoint did not answer"
            )
            return f"{progress} {within}. Answer first, then do the work."
        if self.easy.getinfo(pycurl.CONNECT_TIME):
            return f"The TLS handshake with the endpoint was not complete {within}."
        return f"No connection to the endpoint could be made {within}. Check that its firewall lets us in."

    def _explain_connect(self) -> tuple[str, str]:
        if self._unjudged:
            return _UNEXPLAINED
        if self._sent:
            return _BROKEN
        if self._refused and not self._opened:
            return _BLOCKED
        code, detail = _UNREACHABLE
        if self._refused:
            detail += " Some addresses of the host name were left out: they may not be called."
        return code, detail

    def _explain_certificate(self, message: str) -> str:
        if "subject name" in message:
            return "The endpoint's certificate is for another host name. It must have the name in the URL."
        verdict = self.easy.getinfo(pycurl.SSL_VERIFYRESULT)
        if verdict in _OUT_OF_DATE:
            return "The endpoint's certificate has expired, or is not valid yet. Renew it."
        if verdict in _UNKNOWN_AUTHORITY:
            return (
                "The endpoint's certificate is not from an authority that we know. Use one from a public "
                "authority, and let the server send the whole chain."
            )
        return "The endpoint's certificate could not be verified. Check it and its chain."

    def _explain_receive_error(self, message: str) -> tuple[str, str]:
        if "unexpected eof" in message:
            # TCP was closed in good order, only without TLS's word for it.
            return _PARTIAL if self._head else _NO_ANSWER
        if "Recv failure" in message or "SSL_" in message:
            return _BROKEN
        return _NOT_HTTP  # bad chunks come with this code too

    def _open_socket(self, _purpose: int, address: Any) -> Any:
        """Judge the very address that libcurl is about to connect to, and give a socket for it.

        A refusal lets libcurl go on to the name's next address. Reuse needs no second look: libcurl gives a
        connection only to transfers with the same scheme, host and port, that is, the same origin, and so
        the same dev exception or none.
        """
        try:
            if self._sent:  # _on_ready would end it anyway
                return pycurl.SOCKET_BAD
            origin = origin_of(self.url)
            if self._may_connect(address.family, address.addr, origin):
                self._opened += 1
                opened = socket.socket(address.family, address.socktype, address.protocol)
                return _Handover(opened.detach())
            _log.warning("egress.refused", origin=origin, address=address.addr[0])
        except BaseException as error:  # noqa: BLE001 - run() raises it
            self._unjudged = True
            self._keep_trouble(error)
        self._refused += 1
        return pycurl.SOCKET_BAD

    def _on_ready(self, _ip: str, local_ip: str, _port: int, local_port: int) -> int:
        """Allow one request, on a connection that is not known to be dead.

        When a kept-alive connection ends without an answer, libcurl sends the request again, up to five times.
        The receiver may well have acted on each, and a POST that nobody logged must not be. Where nothing was
        sent yet, the Sender lets libcurl take another connection.
        """
        try:
            if self._dead and (local_ip, local_port) in self._dead:
                self._dead.discard((local_ip, local_port))
                self.met_dead_connection = not self._sent
            elif not self._sent:
                self._sent = True
                return 0  # PREREQFUNC_OK
        except BaseException as error:  # noqa: BLE001 - run() raises it
            self._keep_trouble(error)
        return 1  # PREREQFUNC_ABORT, which closes the connection

    def _on_header(self, line: bytes) -> int | None:
        try:
            head = self._head
            head += line
            if len(head) <= MAX_ANSWER_BYTES:
                return None  # goes on
            self._too_large = True
        except BaseException as error:  # noqa: BLE001 - run() raises it
            self._keep_trouble(error)
        return -1  # ends the transfer

    def _on_body(self, data: bytes) -> int | None:
        try:
            size = self._body_size
            if size < KEPT_BODY_BYTES:
                self._body += data[: KEPT_BODY_BYTES - size]
            self._body_size = size = size + len(data)
            if size <= MAX_ANSWER_BYTES:
                return None
            self._too_large = True
        except BaseException as error:  # noqa: BLE001 - run() raises it
            self._keep_trouble(error)
        return -1


class _HeaderReader:
    """Reads header lines, and remembers those seen: most receivers send the same ones again and again."""

    def __init__(self) -> None:
        self._known: dict[bytes, tuple[str, str]] = {}

    def read(self, head: bytearray) -> tuple[list[tuple[str, str]], bool]:
        """Give what may be kept of the final answer's headers, and whether they came to their end.

        Headers of interim answers and trailers are left out.
        """
        lines = bytes(head).split(b"\n")
        usual = lines.count(b"\r") == 1 and lines[-2] == b"\r"  # one block and nothing after it
        if usual and len(head) <= KEPT_HEADER_CHARACTERS:
            known = self._known
            try:
                return [known[line] for line in lines[1:-2]][:KEPT_HEADERS], True
            except KeyError:
                pass  # read them one by one
        return self._read_each(lines)

    def _read_each(self, lines: list[bytes]) -> tuple[list[tuple[str, str]], bool]:
        headers: list[tuple[str, str]] = []
        inside = final = False
        for line in lines[:-1]:
            if line in {b"\r", b""}:
                if final:
                    return _cut(headers), True
                inside = False
            elif not inside:
                inside = True
                final = not line.partition(b" ")[2].startswith(b"1")
                headers = []
            else:
                header = self._known.get(line) or _read_header(line)
                if header is not None:
                    headers.append(header)
                    self._remember(line, header)
        return _cut(headers), False

    def _remember(self, line: bytes, header: tuple[str, str]) -> None:
        if len(line) <= _MAX_REMEMBERED_LINE:
            if len(self._known) >= _MAX_REMEMBERED:
                self._known.clear()
            self._known[line] = header


class _Handover:
    """A descriptor on its way to pycurl, which duplicates it. It must be closed at once after that: while it
    is open, libcurl's close neither ends the connection nor takes it out of epoll.
    """

    __slots__ = ("_descriptor",)

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def fileno(self) -> int:
        return self._descriptor

    def __del__(self) -> None:
        os.close(self._descriptor)


class _Poll(Protocol):
    """What select.epoll offers, as far as it is used."""

    def register(self, fd: int, eventmask: int, /) -> None: ...
    def modify(self, fd: int, eventmask: int, /) -> None: ...
    def unregister(self, fd: int, /) -> None: ...
    def poll(self, timeout: float, /) -> list[tuple[int, int]]: ...
    def close(self) -> None: ...


class _PortablePoll:
    """select.poll in the manner of select.epoll, for systems without the latter."""

    def __init__(self) -> None:
        self._poll = select.poll()
        self.register = self._poll.register
        self.modify = self._poll.modify
        self.unregister = self._poll.unregister

    def poll(self, timeout: float, /) -> list[tuple[int, int]]:
        return self._poll.poll(math.ceil(timeout * 1000))

    def close(self) -> None:
        """Nothing to close."""


_E_TOO_LARGE: Final = 100  # CURLE_TOO_LARGE, which pycurl does not name

# Error code and detail, as customers see them.
_BLOCKED: Final = (
    "blocked_address",
    (
        "The host name leads only to addresses that may not be called (private, reserved, or our own). "
        "Use a name with a public address."
    ),
)
_UNREACHABLE: Final = (
    "connect_failed",
    "No connection to the endpoint could be made. Check that it is up and that its firewall lets us in.",
)
_CUT_HANDSHAKE: Final = ("connect_failed", "The endpoint closed the connection during the TLS handshake.")
_BROKEN: Final = ("connect_failed", "The connection broke before the endpoint had answered completely.")
_UNEXPLAINED: Final = (
    "connect_failed",
    "The request could not be made. Try again; if that does not help, contact support.",
)
_BAD_HANDSHAKE: Final = (
    "tls_failed",
    "The TLS handshake failed. The endpoint must speak TLS 1.2 or newer on this port.",
)
_NOT_HTTP: Final = ("invalid_response", "The endpoint's answer is not valid HTTP/1.1.")
_NO_ANSWER: Final = ("invalid_response", "The endpoint closed the connection without an answer.")
_PARTIAL: Final = (
    "invalid_response",
    "The endpoint closed the connection before its answer was complete.",
)
_TOO_LARGE: Final = (
    "response_too_large",
    f"The endpoint's answer is larger than {MAX_ANSWER_BYTES // 1024} KiB. Answer with less.",
)
_EXPLAINED: Final = {
    pycurl.E_COULDNT_RESOLVE_HOST: (
        "dns_failed",
        "The host name could not be resolved. Check the URL and the DNS records of the name.",
    ),
    pycurl.E_SSL_CIPHER: _BAD_HANDSHAKE,
    pycurl.E_SSL_CERTPROBLEM: _BAD_HANDSHAKE,
    pycurl.E_SEND_ERROR: _BROKEN,
    pycurl.E_ABORTED_BY_CALLBACK: _BROKEN,  # by _on_ready
    pycurl.E_GOT_NOTHING: _NO_ANSWER,
    pycurl.E_PARTIAL_FILE: _PARTIAL,
    pycurl.E_FTP_WEIRD_SERVER_REPLY: _NOT_HTTP,  # CURLE_WEIRD_SERVER_REPLY by its older name
    pycurl.E_UNSUPPORTED_PROTOCOL: _NOT_HTTP,  # HTTP/0.9, and status codes that are none
    pycurl.E_BAD_CONTENT_ENCODING: _NOT_HTTP,  # of Transfer-Encoding too
}

# X509_V_ERR_*, https://docs.openssl.org/master/man3/X509_STORE_CTX_get_error/
_OUT_OF_DATE: Final = {9, 10}
_UNKNOWN_AUTHORITY: Final = {2, 18, 19, 20, 21}


def _is_own_address(family: int, address: tuple[Any, ...]) -> bool:
    """Whether an interface of this machine has the address: only then the kernel would use it as source too.

    Connecting a UDP socket sends nothing.
    """
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(address)
        except OSError:
            return False
        return bool(probe.getsockname()[0] == address[0])


def _read_header(line: bytes) -> tuple[str, str] | None:
    """Give name and value, or None for what is not kept."""
    name, _, value = line.decode("latin-1").translate(_CONTROL_CHARACTERS).partition(":")
    folded = name.strip().lower()
    if not folded or folded in _DROPPED_HEADERS or folded.endswith(_DROPPED_HEADER_ENDINGS):
        return None
    return name.strip(), value.strip()


def _cut(headers: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Give the first headers that fit into what is kept."""
    kept: list[tuple[str, str]] = []
    room = KEPT_HEADER_CHARACTERS
    for name, value in headers[:KEPT_HEADERS]:
        room -= len(name) + len(value)
        if room >= 0:
            kept.append((name, value))
    return kept
