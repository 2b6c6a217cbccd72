"""One request on its way: an easy handle, and what libcurl's callbacks note of it."""

import os
import socket
import time
from collections.abc import Callable
from typing import Any, Final

import pycurl
import structlog

from app.core.egress_policy import origin_of
from worker.sender.exchange import KEPT_BODY_BYTES, MAX_ANSWER_BYTES, Outcome, Outgoing
from worker.sender.explanations import NOT_HTTP, PARTIAL, TOO_LARGE, Failure, explain_status

# Node.js, Apache and uvicorn close a connection that was idle for 5 s. A request that crosses with that close
# is a failed attempt, because none is ever sent twice.
_MAX_IDLE_SECONDS: Final = 4
# So that a receiver that moves in the DNS is followed however busy its connections are.
_MAX_CONNECTION_AGE_SECONDS: Final = 600
_E_TOO_LARGE: Final = 100  # CURLE_TOO_LARGE, which pycurl does not name

_log = structlog.get_logger(__name__)


class Transfer:
    """An easy handle with what came of its current request. Used again and again: making one costs 0.1 ms."""

    __slots__ = (
        *(
            "_body",
            "_body_size",
            "_dead",
            "_head",
            "_keep_trouble",
            "_may_connect",
            "_permitted",
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
        self._permitted = 0
        self._refused = 0
        self._unjudged = False
        self._started_at = time.time()
        self._started = time.monotonic()

    def goes_on(self, _now: float, _curl_code: int) -> bool:
        """Whether the request is to be started once more, although libcurl ended it: nothing of it was sent."""
        dead, self.met_dead_connection = self.met_dead_connection, False
        return dead

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
            return self._outcome(now, headers, None, *PARTIAL)
        if 200 <= status <= 299:  # noqa: PLR2004 - RFC 9110 section 15
            return self._outcome(now, headers, status, None, None)
        if 300 <= status <= 599:  # noqa: PLR2004
            return self._outcome(now, headers, status, "http_status", explain_status(status))
        return self._outcome(now, headers, None, *NOT_HTTP)

    def failed(self, now: float, curl_code: int, message: str) -> Outcome:
        """Give the Outcome of a transfer that libcurl ended with an error."""
        headers = self._read_headers(self._head)[0] if self._head else []
        if self._too_large or curl_code == _E_TOO_LARGE:
            status = self.easy.getinfo(pycurl.RESPONSE_CODE)
            is_final = 200 <= status <= 599  # noqa: PLR2004
            return self._outcome(now, headers, status if is_final else None, *TOO_LARGE)
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

    def _explain(self, curl_code: int, message: str) -> tuple[str, str]:
        assert self.outgoing is not None
        return Failure(
            curl_code=curl_code,
            message=message,
            easy=self.easy,
            timeout_ms=self.outgoing.timeout_ms,
            permitted=self._permitted,
            refused=self._refused,
            unjudged=self._unjudged,
            sent=self._sent,
            answered=bool(self._head),
        ).explain()

    def _open_socket(self, _purpose: int, address: Any) -> Any:
        """Judge the very address that libcurl is about to connect to, and give a socket for it.

        A refusal lets libcurl go on to the name's next address. Reuse needs no second look: libcurl gives a
        connection only to transfers with the same scheme, host and port, that is, the same origin, and so
        the same dev exception or none.
        """
        try:
            if self._sent:  # _on_ready would end it anyway
                return pycurl.SOCKET_BAD
            if self._permits(address):
                self._permitted += 1
                return self._socket_for(address)
        except BaseException as error:  # noqa: BLE001 - run() raises it
            self._unjudged = True
            self._keep_trouble(error)
        self._refused += 1
        return pycurl.SOCKET_BAD

    def _permits(self, address: Any) -> bool:
        origin = origin_of(self.url)
        if self._may_connect(address.family, address.addr, origin):
            return True
        _log.warning("egress.refused", origin=origin, address=address.addr[0])
        return False

    def _socket_for(self, address: Any) -> Any:
        return Handover(socket.socket(address.family, address.socktype, address.protocol).detach())

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


class Handover:
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
