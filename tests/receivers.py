"""HTTPS receivers on the loopback, friendly and hostile, each a context manager around a few threads.

    with receivers.ok() as receiver:
        receiver.script("/hook", [500, 200])
        ...  # POST to f"{receiver.url}/hook"
        assert [request.body for request in receiver.requests] == [b"1", b"2"]

`receiver.url` is also its origin. All certificates but the deliberately bad ones come from the one authority
in `ca_file()`.
"""

import atexit
import contextlib
import functools
import shutil
import socket
import ssl
import struct
import tempfile
import threading
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from http import HTTPStatus
from pathlib import Path
from types import TracebackType
from typing import Self

import trustme

NAMES = ("localhost", "127.0.0.1", "::1", "hooks.example.com")  # of the good certificate

_BYTE_INTERVAL_SECONDS = 0.2
_JOIN_SECONDS = 5.0


@functools.cache
def authority() -> trustme.CA:
    """Give the certificate authority of this test session."""
    return trustme.CA()


@functools.cache
def ca_file() -> str:
    """Give the path of a PEM file with that authority; it is deleted when the process ends."""
    folder = tempfile.mkdtemp(prefix="receivers-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    path = Path(folder) / "ca.pem"
    authority().cert_pem.write_to_path(str(path))
    return str(path)


@dataclass(frozen=True, slots=True)
class Received:
    """A request as it came."""

    method: str
    path: str
    headers: list[tuple[str, str]]
    body: bytes
    head: bytes  # request line and header lines, up to the empty line

    def header(self, name: str) -> str | None:
        """Give the first value of a header, or None."""
        return next((value for other, value in self.headers if other.lower() == name.lower()), None)


@dataclass(frozen=True, slots=True)
class Answer:
    """What the friendly receiver answers. Content-Length is added; `delay` is in seconds."""

    status: int = 200
    headers: Sequence[tuple[str, str]] = ()
    body: bytes = b"ok"
    delay: float = 0.0

    def as_bytes(self) -> bytes:
        lines = [f"HTTP/1.1 {self.status} {_reason(self.status)}"]
        lines += [f"{name}: {value}" for name, value in self.headers]
        lines += [f"Content-Length: {len(self.body)}", "", ""]
        return "\r\n".join(lines).encode("latin-1") + self.body


class Connection:
    """One accepted connection: plain at first, encrypted after `encrypt`."""

    def __init__(self, accepted: socket.socket, receiver: "Receiver") -> None:
        self.socket = accepted
        self.receiver = receiver
        self._buffer = b""

    def encrypt(self, context: ssl.SSLContext) -> None:
        self.socket = context.wrap_socket(self.socket, server_side=True, do_handshake_on_connect=False)
        self.socket.do_handshake()

    def read_request(self) -> Received | None:
        """Give the next request and count it, or None when the client has closed."""
        while b"\r\n\r\n" not in self._buffer:
            if not self._receive():
                return None
        head, _, self._buffer = self._buffer.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        method, path, _ = first.split(" ")
        headers = [(name, value.strip()) for name, _, value in (line.partition(":") for line in lines)]
        length = next((int(value) for name, value in headers if name.lower() == "content-length"), 0)
        while len(self._buffer) < length:
            if not self._receive():
                return None
        body, self._buffer = self._buffer[:length], self._buffer[length:]
        request = Received(method, path, headers, body, head)
        self.receiver.note(request)
        return request

    def send(self, content: bytes) -> None:
        self.socket.sendall(content)

    def drip(self, content: bytes) -> None:
        """Send one byte at a time, slowly, until all is sent or the receiver is closed."""
        for position in range(len(content)):
            self.send(content[position : position + 1])
            if self.receiver.closing.wait(_BYTE_INTERVAL_SECONDS):
                return

    def wait(self) -> None:
        """Do nothing until the receiver is closed."""
        self.receiver.closing.wait()

    def reset(self) -> None:
        """Close with an RST instead of a FIN."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        socket.socket.close(self.socket)

    def _receive(self) -> bool:
        received = self.socket.recv(65536)
        self._buffer += received
        return bool(received)


Behaviour = Callable[[Connection], None]


class Receiver:
    """Accepts connections and lets `behaviour` have each, in a thread of its own."""

    def __init__(
        self,
        behaviour: Behaviour,
        *,
        context: ssl.SSLContext | None = None,
        host: str = "127.0.0.1",
        port: int = 0,
    ) -> None:
        self.connections = 0
        self.requests: list[Received] = []
        self.closing = threading.Event()
        self._behaviour = behaviour
        self._context = context
        self._changed = threading.Condition()
        self._live: set[Connection] = set()
        self._threads: list[threading.Thread] = []
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._listener = socket.socket(family, socket.SOCK_STREAM)
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._listener.bind((host, port))
        self._listener.listen(512)
        self.port: int = self._listener.getsockname()[1]
        self.url = f"https://[{host}]:{self.port}" if ":" in host else f"https://localhost:{self.port}"

    def __enter__(self) -> Self:
        self._start(self._accept)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.closing.set()
        _shut(self._listener)
        with self._changed:
            for connection in self._live:
                _shut(connection.socket)
        for thread in self._threads:
            thread.join(_JOIN_SECONDS)
            assert not thread.is_alive(), "a receiver's thread did not end"
        self._listener.close()

    def note(self, request: Received) -> None:
        """Add a request to the list."""
        with self._changed:
            self.requests.append(request)
            self._changed.notify_all()

    def wait_for_requests(self, count: int, *, timeout: float = 5.0) -> list[Received]:
        """Wait until at least `count` requests came, and give all; AssertionError after `timeout` seconds."""
        with self._changed:
            came = self._changed.wait_for(lambda: len(self.requests) >= count, timeout)
            assert came, f"{len(self.requests)} of {count} requests came within {timeout:g} s"
            return list(self.requests)

    def requests_to(self, path: str) -> list[Received]:
        """Give the requests to one path, in the order in which they came."""
        with self._changed:
            return [request for request in self.requests if request.path == path]

    def _start(self, work: Callable[..., None], *arguments: object) -> None:
        thread = threading.Thread(target=work, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                accepted, _ = self._listener.accept()
            except OSError:
                return
            connection = Connection(accepted, self)
            with self._changed:
                self.connections += 1
                self._live.add(connection)
            if self.closing.is_set():
                _shut(accepted)
            self._start(self._serve, connection)

    def _serve(self, connection: Connection) -> None:
        try:
            connection.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self._context is not None:
                connection.encrypt(self._context)
            self._behaviour(connection)
        except (OSError, ValueError):
            pass  # the client went away, or __exit__ closed the connection: each test judges by its own side
        finally:
            with self._changed:
                self._live.discard(connection)
            connection.socket.close()


class FriendlyReceiver(Receiver):
    """Answers every request and keeps connections open; what it answers can be scripted per path."""

    def __init__(
        self, default: Answer, *, context: ssl.SSLContext, host: str = "127.0.0.1", port: int = 0
    ) -> None:
        super().__init__(self._answer, context=context, host=host, port=port)
        self.default = default
        self._scripts: dict[str, deque[Answer]] = {}

    def script(self, path: str, answers: Sequence[int | Answer]) -> None:
        """Answer the next requests to `path` so, one after the other; then with `default` again."""
        with self._changed:
            self._scripts.setdefault(path, deque()).extend(
                answer if isinstance(answer, Answer) else Answer(answer) for answer in answers
            )

    def _answer(self, connection: Connection) -> None:
        while (request := connection.read_request()) is not None:
            with self._changed:
                script = self._scripts.get(request.path)
                answer = script.popleft() if script else self.default
            if answer.delay and self.closing.wait(answer.delay):
                return
            connection.send(answer.as_bytes())


def ok(
    status: int = 200,
    *,
    headers: Sequence[tuple[str, str]] = (),
    body: bytes = b"ok",
    delay: float = 0.0,
    host: str = "127.0.0.1",
    port: int = 0,
) -> FriendlyReceiver:
    """Answer everything so, and keep connections open."""
    return FriendlyReceiver(
        Answer(status, headers, body, delay), context=good_context(), host=host, port=port
    )


def answers_raw(content: bytes) -> Receiver:
    """Answer the first request of each connection with these very bytes, then close in good order."""

    def behave(connection: Connection) -> None:
        if connection.read_request():
            connection.send(content)
            connection.socket.unwrap()  # type: ignore[attr-defined] # an SSLSocket: the context is given

    return Receiver(behave, context=good_context())


def redirects(to: str, status: int = 302) -> FriendlyReceiver:
    """Send every request on to another URL."""
    return ok(status, headers=[("Location", to)])


@contextlib.contextmanager
def refuses() -> Iterator[str]:
    """Give the URL of a port on which nothing listens, and keep others from taking it."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield f"https://localhost:{bound.getsockname()[1]}"


@contextlib.contextmanager
def never_accepts() -> Iterator[str]:
    """Give the URL of a port whose queue is full, so that the kernel leaves new connections unanswered."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(3):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                waiting.connect(listener.getsockname())
        yield f"https://localhost:{listener.getsockname()[1]}"


def resets_at_accept() -> Receiver:
    """Break the connection before a word of TLS."""
    return Receiver(Connection.reset)


def closes_at_accept() -> Receiver:
    """Close in good order when the client has begun to speak TLS."""

    def behave(connection: Connection) -> None:
        connection.socket.recv(65536)

    return Receiver(behave)


def resets_after_request() -> Receiver:
    """Take the request, then break the connection."""

    def behave(connection: Connection) -> None:
        connection.read_request()
        connection.reset()

    return Receiver(behave, context=good_context())


def closes_without_answer() -> Receiver:
    """Take the request, then close in good order."""
    return answers_raw(b"")


def closes_without_goodbye() -> Receiver:
    """Take the request, then close TCP without TLS's close_notify."""

    def behave(connection: Connection) -> None:
        connection.read_request()

    return Receiver(behave, context=good_context())


def hangs() -> Receiver:
    """Take requests and never answer."""

    def behave(connection: Connection) -> None:
        connection.read_request()
        connection.wait()

    return Receiver(behave, context=good_context())


def drips_handshake() -> Receiver:
    """Send the server's part of the TLS handshake one byte at a time."""

    def behave(connection: Connection) -> None:
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        server = good_context().wrap_bio(incoming, outgoing, server_side=True)
        incoming.write(connection.socket.recv(65536))
        with contextlib.suppress(ssl.SSLWantReadError):
            server.do_handshake()
        connection.drip(outgoing.read())

    return Receiver(behave)


def drips_headers() -> Receiver:
    """Send an endless header one byte at a time."""

    def behave(connection: Connection) -> None:
        connection.read_request()
        connection.send(b"HTTP/1.1 200 OK\r\nX-Slow: ")
        connection.drip(b"a" * 1000)

    return Receiver(behave, context=good_context())


def drips_body() -> Receiver:
    """Send a status, headers, and then the body one byte at a time."""

    def behave(connection: Connection) -> None:
        connection.read_request()
        connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
        connection.drip(b"a" * 1000)

    return Receiver(behave, context=good_context())


def endless_continue(*, interval: float) -> Receiver:
    """Send `100 Continue` for ever, one each `interval` seconds."""

    def behave(connection: Connection) -> None:
        connection.read_request()
        while not connection.receiver.closing.wait(interval):
            connection.send(b"HTTP/1.1 100 Continue\r\n\r\n")

    return Receiver(behave, context=good_context())


def floods(head: bytes = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r\n") -> Receiver:
    """Send a body without end, as fast as it is taken."""

    def behave(connection: Connection) -> None:
        connection.read_request()
        connection.send(head)
        while True:
            connection.send(b"a" * 16384)

    return Receiver(behave, context=good_context())


def huge_headers(*, line_bytes: int = 1000, lines: int = 100) -> Receiver:
    """Answer 200 with this many header lines of this length, and no body."""
    line = b"X-Filler: " + b"a" * (line_bytes - len(b"X-Filler: \r\n")) + b"\r\n"
    return answers_raw(b"HTTP/1.1 200 OK\r\n" + line * lines + b"Content-Length: 0\r\n\r\n")


def promises_too_much() -> Receiver:
    """Announce a longer body than is sent, then close."""
    return answers_raw(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nshort")


def speaks_no_http() -> Receiver:
    """Answer with what is not HTTP."""
    return answers_raw(b"SSH-2.0-OpenSSH_9.2\r\n")


def speaks_no_tls() -> Receiver:
    """Answer the TLS greeting with plain HTTP."""

    def behave(connection: Connection) -> None:
        connection.socket.recv(65536)
        connection.send(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")

    return Receiver(behave)


def speaks_old_tls() -> FriendlyReceiver:
    """Speak TLS 1.1 at most."""
    context = _context(authority().issue_cert(*NAMES))
    with warnings.catch_warnings(action="ignore", category=DeprecationWarning):  # the point
        context.minimum_version = ssl.TLSVersion.TLSv1_1
        context.maximum_version = ssl.TLSVersion.TLSv1_1
    context.set_ciphers("ALL:@SECLEVEL=0")
    return FriendlyReceiver(Answer(), context=context)


def closes_after_answer() -> Receiver:
    """Answer one request per connection, then close without having said so in the headers."""

    def behave(connection: Connection) -> None:
        connection.read_request()
        connection.send(Answer().as_bytes())

    return Receiver(behave, context=good_context())


def dies_on_second_request() -> Receiver:
    """Answer the first request of each connection; close at the second, having read it."""

    def behave(connection: Connection) -> None:
        connection.read_request()
        connection.send(Answer().as_bytes())
        connection.read_request()

    return Receiver(behave, context=good_context())


def wrong_host() -> FriendlyReceiver:
    """Have a good certificate, for another name."""
    return FriendlyReceiver(Answer(), context=_context(authority().issue_cert("other.example.org")))


def unknown_authority() -> FriendlyReceiver:
    """Have a certificate from an authority that nobody knows."""
    return FriendlyReceiver(Answer(), context=unknown_context())


def expired() -> FriendlyReceiver:
    """Have a certificate that was good until yesterday."""
    yesterday = datetime.now(UTC) - timedelta(days=1)
    certificate = authority().issue_cert(
        *NAMES, not_before=yesterday - timedelta(days=1), not_after=yesterday
    )
    return FriendlyReceiver(Answer(), context=_context(certificate))


def _context(certificate: trustme.LeafCert) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate.configure_cert(context)
    return context


@functools.cache
def good_context() -> ssl.SSLContext:
    """Give a server's context with the good certificate."""
    return _context(authority().issue_cert(*NAMES))


def unknown_context() -> ssl.SSLContext:
    """Give a server's context with a certificate from an authority that nobody knows."""
    return _context(trustme.CA().issue_cert(*NAMES))


def _reason(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Unknown"


def _shut(sock: socket.socket) -> None:
    """Wake the thread that waits in this socket. SSLSocket.shutdown would pull the TLS state from under it."""
    with contextlib.suppress(OSError):
        socket.socket.shutdown(sock, socket.SHUT_RDWR)
