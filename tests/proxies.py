"""HTTP proxies on the loopback, friendly and hostile, each a context manager around a few threads.

    with receivers.ok() as receiver, proxies.tunnels() as proxy:
        ...  # send through proxy.url
        assert proxy.asked == [f"hooks.example.com:{receiver.port}"]

A name that nobody resolves leads to this machine, at the port that was asked for.
"""

import base64
import contextlib
import select
import socket
import ssl

from tests import receivers
from tests.receivers import Behaviour, Connection, Receiver

_HOST = "127.0.0.1"


class Proxy(Receiver):
    """Notes what it is asked for; `behaviour` has each connection."""

    def __init__(self, behaviour: Behaviour, *, context: ssl.SSLContext | None = None) -> None:
        super().__init__(behaviour, context=context)
        self.url = f"{'https' if context else 'http'}://localhost:{self.port}"

    @property
    def asked(self) -> list[str]:
        """Give the targets of all CONNECT requests."""
        return [request.path for request in self.requests if request.method == "CONNECT"]


def tunnels(*, login: str | None = None, context: ssl.SSLContext | None = None) -> Proxy:
    """Open a tunnel for whoever gives this login (`user:password`), or for all."""
    expected = f"Basic {base64.b64encode(login.encode()).decode()}" if login else None

    def behave(connection: Connection) -> None:
        request = connection.read_request()
        if request is None:
            return
        if request.header("Proxy-Authorization") != expected:
            connection.send(
                b"HTTP/1.1 407 Who are you\r\nProxy-Authenticate: Basic\r\nContent-Length: 0\r\n\r\n"
            )
            return
        port = int(request.path.rpartition(":")[2])
        try:
            upstream = socket.create_connection((_HOST, port))
        except OSError:
            connection.send(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n")
            return
        with upstream:
            connection.send(b"HTTP/1.1 200 Connected\r\nX-Of-The-Proxy: 1\r\n\r\n")
            _pass_on(connection.socket, upstream)

    return Proxy(behave, context=context)


def answers_raw(content: bytes) -> Proxy:
    """Answer every request with these very bytes, then close."""

    def behave(connection: Connection) -> None:
        connection.read_request()
        connection.send(content)

    return Proxy(behave)


def refuses(status: int) -> Proxy:
    """Answer every request with this status and a page."""
    page = b"<p>An address of the inside: 10.0.0.1</p>"
    head = f"HTTP/1.1 {status} No\r\nX-Of-The-Proxy: 1\r\nContent-Length: {len(page)}\r\n\r\n"
    return answers_raw(head.encode() + page)


def hangs() -> Proxy:
    """Take requests and never answer."""

    def behave(connection: Connection) -> None:
        connection.read_request()
        connection.wait()

    return Proxy(behave)


def drips() -> Proxy:
    """Send an endless header one byte at a time."""

    def behave(connection: Connection) -> None:
        connection.read_request()
        connection.send(b"HTTP/1.1 200 Connected\r\nX-Slow: ")
        connection.drip(b"a" * 1000)

    return Proxy(behave)


def floods() -> Proxy:
    """Answer with headers without end."""

    def behave(connection: Connection) -> None:
        connection.read_request()
        connection.send(b"HTTP/1.1 200 Connected\r\n")
        while True:
            connection.send(b"X-Filler: " + b"a" * 10_000 + b"\r\n")

    return Proxy(behave)


def resets() -> Proxy:
    """Take the request, then break the connection."""

    def behave(connection: Connection) -> None:
        connection.read_request()
        connection.reset()

    return Proxy(behave)


def unknown_authority() -> Proxy:
    """Speak TLS with a certificate from an authority that nobody knows."""
    return tunnels(context=receivers.unknown_context())


def _pass_on(client: socket.socket, upstream: socket.socket) -> None:
    """Carry bytes both ways until one side closes."""
    other = {client: upstream, upstream: client}
    with contextlib.suppress(OSError):
        while True:
            for readable in select.select(list(other), [], [])[0]:
                received = readable.recv(65536)
                while isinstance(readable, ssl.SSLSocket) and readable.pending():
                    received += readable.recv(65536)
                if not received:
                    return
                other[readable].sendall(received)
