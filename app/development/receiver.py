"""The built-in HTTPS receiver, a process of its own: keeps what it gets, and misbehaves where told to."""

import http.server
import json
import re
import socket
import ssl
import sys
import threading
import time
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any, cast

from app.development import certificates, receiver_page
from app.development.inbox import Inbox

_HANDSHAKE_SECONDS = 10
_IDLE_SECONDS = 75
_MAX_BODY_BYTES = 1024 * 1024
_MAX_WAIT_SECONDS = 300.0
_FAILURE = re.compile(r"[45]\d\d", re.ASCII)
_LENGTH = re.compile(r"\d{1,9}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Behaviour:
    """How a path answers: after a pause, with a status; None closes the connection without an answer."""

    status: int | None = HTTPStatus.OK
    wait_seconds: float = 0.0
    location: str | None = None


def behaviour(path: str) -> Behaviour:
    """Give what a path asks for: `/fail/503`, `/hang/5`, `/slow/2`, `/redirect`; every other one is fine."""
    name, _, argument = _without_query(path).strip("/").partition("/")
    match name:
        case "fail":
            chosen = _FAILURE.fullmatch(argument)
            return Behaviour(int(argument) if chosen else HTTPStatus.INTERNAL_SERVER_ERROR)
        case "hang":
            return Behaviour(None, _seconds(argument, 60.0))
        case "slow":
            return Behaviour(wait_seconds=_seconds(argument, 2.0))
        case "redirect":
            return Behaviour(HTTPStatus.FOUND, location="/inbox")
        case _:
            return Behaviour()


def _without_query(path: str) -> str:
    return path.partition("?")[0]


def _seconds(text: str, default: float) -> float:
    try:
        return min(max(float(text), 0.0), _MAX_WAIT_SECONDS)
    except ValueError:
        return default


class Receiver(http.server.ThreadingHTTPServer):
    """One thread per connection; the TLS handshake is made there too, so that nobody holds up the others."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self, port: int, certificate: Path, inbox: Inbox) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.inbox = inbox
        self.stopping = threading.Event()
        self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._tls.minimum_version = ssl.TLSVersion.TLSv1_2
        self._tls.load_cert_chain(certificate)

    def finish_request(self, request: Any, client_address: Any) -> None:
        """Serve a connection."""
        raw = cast(socket.socket, request)
        raw.settimeout(_HANDSHAKE_SECONDS)
        with self._tls.wrap_socket(raw, server_side=True) as encrypted:
            Handler(encrypted, client_address, self)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of clients that go away or refuse the certificate; anything else is a bug to see."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


class Handler(http.server.BaseHTTPRequestHandler):
    """The requests of one connection."""

    server: Receiver
    protocol_version = "HTTP/1.1"
    server_version = "BotBatReceiver"
    sys_version = ""
    timeout = _IDLE_SECONDS
    disable_nagle_algorithm = True
    wbufsize = 16 * 1024  # head and body leave in one packet

    def do_POST(self) -> None:
        """Keep the request, then answer as its path asks for."""
        body = self._body()
        if body is None:
            return
        asked = behaviour(self.path)
        headers: dict[str, str] = {}
        for name, value in self.headers.items():
            headers[name.lower()] = f"{headers[name.lower()]}, {value}" if name.lower() in headers else value
        received = self.server.inbox.keep(self.path, headers, body, asked.status)
        if asked.wait_seconds and self.server.stopping.wait(asked.wait_seconds):
            asked = Behaviour(None)
        if asked.status is None:
            self.close_connection = True
            return
        answer = {"received": True, "verified": received.verified, "reason": received.reason}
        extra = {"Location": asked.location} if asked.location else {}
        self._answer(asked.status, json.dumps(answer), **extra)

    def do_GET(self) -> None:
        """Show what was kept."""
        match _without_query(self.path):
            case "/":
                page = receiver_page.render(self.server.inbox.requests())
                policy = {"Content-Security-Policy": receiver_page.CONTENT_SECURITY_POLICY}
                self._answer(HTTPStatus.OK, page, "text/html; charset=utf-8", **policy)
            case "/requests":
                self._answer(HTTPStatus.OK, json.dumps(self.server.inbox.as_json()))
            case _:
                self._answer(HTTPStatus.NOT_FOUND, json.dumps({"error": "GET / or /requests; POST anywhere"}))

    def do_DELETE(self) -> None:
        """Forget what was kept."""
        if _without_query(self.path) == "/requests":
            self.server.inbox.empty()
            self._answer(HTTPStatus.NO_CONTENT, "")
        else:
            self._answer(HTTPStatus.NOT_FOUND, json.dumps({"error": "DELETE /requests"}))

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class names it so
        """Log nothing: the page shows the requests."""

    def _body(self) -> bytes | None:
        length = self.headers.get("Content-Length", "")
        if not _LENGTH.fullmatch(length):
            self._refuse(HTTPStatus.LENGTH_REQUIRED)
        elif int(length) > _MAX_BODY_BYTES:
            self._refuse(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
        else:
            return self.rfile.read(int(length))
        return None

    def _refuse(self, status: HTTPStatus) -> None:
        self.close_connection = True  # the body stays unread
        self._answer(status, json.dumps({"error": status.phrase}), Connection="close")

    def _answer(self, status: int, body: str, kind: str = "application/json", **headers: str) -> None:
        content = body.encode()
        self.send_response(status)
        if content:
            self.send_header("Content-Type", kind)
            self.send_header("X-Content-Type-Options", "nosniff")
        for name, value in headers.items():
            self.send_header(name, value)
        if status != HTTPStatus.NO_CONTENT:
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


def main() -> None:
    """Serve the folder of the first argument on the port of the second."""
    folder, port = Path(sys.argv[1]), int(sys.argv[2])
    with Receiver(port, certificates.ensure(folder).server, Inbox(folder / "secrets.json")) as server:
        print(f"{time.strftime('%FT%TZ', time.gmtime())} listening on https://localhost:{port}", flush=True)
        server.serve_forever()


if __name__ == "__main__":
    main()
