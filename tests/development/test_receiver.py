"""The built-in receiver keeps and judges what it gets, and misbehaves by path."""

import concurrent.futures
import http.client
import json
import ssl
import subprocess
import sys
import threading
import time
from http.client import HTTPSConnection
from typing import Any

import pytest

from app.core import signing
from app.development import certificates
from app.development.inbox import KEPT, Inbox
from app.development.ports import free
from app.development.receiver import Behaviour, Receiver, behaviour
from app.processes import ROOT
from config.settings import write_private

SECRET = signing.generate_secret()
BODY = b'{"id":"evt_1","type":"message.received","data":{"text":"<b>hi</b>"}}'


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    return certificates.ensure(tmp_path_factory.mktemp("receiver"))


@pytest.fixture
def receiver(certificate, tmp_path):
    write_private(tmp_path / "secrets.json", json.dumps({"ep_1": SECRET}))
    with Receiver(0, certificate.server, Inbox(tmp_path / "secrets.json")) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield server
        server.stopping.set()
        server.shutdown()
        thread.join()


@pytest.fixture
def client(receiver, certificate):
    connection = connect(receiver, certificate)
    yield connection
    connection.close()


def connect(receiver: Receiver, certificate: certificates.Certificate) -> HTTPSConnection:
    """Open a connection that trusts the receiver's authority alone."""
    context = ssl.create_default_context(cafile=certificate.authority)
    return HTTPSConnection("localhost", receiver.server_address[1], context=context, timeout=5)


def signed(secret: str = SECRET, body: bytes = BODY) -> dict[str, str]:
    """Give the headers of a delivery."""
    at = int(time.time())
    ours, standard = signing.sign([signing.signing_key(secret)], "evt_1", at, body)
    return {
        "Content-Type": "application/json",
        "X-BotBat-Event": "message.received",
        "X-BotBat-Delivery": "dlv_1",
        "X-BotBat-Signature": ours,
        "webhook-id": "evt_1",
        "webhook-timestamp": str(at),
        "webhook-signature": standard,
    }


def post(
    client: HTTPSConnection, path: str = "/inbox", headers: dict[str, str] | None = None
) -> tuple[int, Any]:
    """Send a request; give status and JSON."""
    client.request("POST", path, BODY, signed() if headers is None else headers)
    answer = client.getresponse()
    return answer.status, json.loads(answer.read())


def kept(client: HTTPSConnection) -> Any:
    """Give what `/requests` lists."""
    client.request("GET", "/requests")
    return json.loads(client.getresponse().read())["data"]


def test_a_delivery_is_kept_and_verified(client):
    assert post(client) == (200, {"received": True, "verified": True, "reason": None})
    (received,) = kept(client)
    assert received["path"] == "/inbox"
    assert received["headers"]["x-botbat-delivery"] == "dlv_1"
    assert received["body"] == BODY.decode()
    assert (received["event"], received["delivery"]) == ("message.received", "dlv_1")
    assert (received["verified"], received["verified_by"], received["status"]) == (True, "ep_1", 200)
    assert received["received_at"].endswith("Z")


def test_a_wrong_secret_is_kept_and_not_verified(client):
    status, answer = post(client, headers=signed("another secret"))
    assert status == 200
    assert answer == {"received": True, "verified": False, "reason": "no known secret signed this"}
    assert kept(client)[0]["verified"] is False


def test_secrets_are_read_again_when_they_change(client, tmp_path):
    write_private(tmp_path / "secrets.json", json.dumps({"ep_1": SECRET, "ep_2": "another secret"}))
    assert post(client, headers=signed("another secret"))[1]["verified"]
    assert kept(client)[0]["verified_by"] == "ep_2"
    (tmp_path / "secrets.json").unlink()
    assert not post(client)[1]["verified"]
    (tmp_path / "secrets.json").write_text("{")
    assert not post(client)[1]["verified"]


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/inbox", Behaviour()),
        ("/anything/else?x=1", Behaviour()),
        ("//[", Behaviour()),
        ("/fail", Behaviour(500)),
        ("/fail/503", Behaviour(503)),
        ("/fail/503?x=1", Behaviour(503)),
        ("/fail/200", Behaviour(500)),
        ("/fail/" + "9" * 5000, Behaviour(500)),
        ("/hang", Behaviour(None, 60)),
        ("/hang/5", Behaviour(None, 5)),
        ("/hang/999999", Behaviour(None, 300)),
        ("/hang/-1", Behaviour(None, 0)),
        ("/slow/0.5", Behaviour(200, 0.5)),
        ("/slow", Behaviour(200, 2)),
        ("/redirect", Behaviour(302, location="/inbox")),
    ],
)
def test_a_path_says_what_it_does(path, expected):
    assert behaviour(path) == expected


@pytest.mark.parametrize(("path", "status"), [("/fail", 500), ("/fail/418", 418), ("/redirect", 302)])
def test_it_fails_when_asked_to(client, path, status):
    assert post(client, path)[0] == status
    assert kept(client)[0]["status"] == status
    assert kept(client)[0]["verified"]


def test_redirects_lead_to_the_inbox(client):
    client.request("POST", "/redirect", BODY)
    answer = client.getresponse()
    answer.read()
    assert answer.headers["Location"] == "/inbox"


def test_it_hangs_and_never_answers(client):
    started = time.monotonic()
    with pytest.raises(http.client.RemoteDisconnected):
        post(client, "/hang/0.3")
    assert time.monotonic() - started >= 0.3
    assert kept(client)[0]["status"] is None


def test_it_is_slow_and_answers(client):
    started = time.monotonic()
    assert post(client, "/slow/0.3")[0] == 200
    assert time.monotonic() - started >= 0.3


def test_one_that_hangs_holds_up_nobody(client, receiver, certificate):
    client.request("POST", "/hang/30", BODY)
    other = connect(receiver, certificate)
    started = time.monotonic()
    assert post(other)[0] == 200
    other.close()
    # Nor does one that never begins its handshake.
    assert time.monotonic() - started < 2


def test_connections_are_kept_alive(client):
    assert post(client)[0] == 200
    socket = client.sock
    assert post(client)[0] == 200
    assert client.sock is socket


def test_the_last_requests_are_kept_newest_first(client):
    for number in range(KEPT + 5):
        post(client, f"/{number}", {})
    paths = [received["path"] for received in kept(client)]
    assert paths == [f"/{number}" for number in range(KEPT + 4, 4, -1)]


def test_requests_can_be_forgotten(client):
    post(client)
    client.request("DELETE", "/requests")
    answer = client.getresponse()
    assert (answer.status, answer.read()) == (204, b"")
    assert kept(client) == []


def test_the_page_shows_requests_escaped_and_runs_nothing(client):
    post(client, "/<script>alert(1)</script>")
    client.request("GET", "/")
    answer = client.getresponse()
    page = answer.read().decode()
    assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
    assert answer.headers["Content-Security-Policy"].startswith("default-src 'none'")
    assert "<script" not in page
    assert "&lt;b&gt;hi&lt;/b&gt;" in page
    assert "verified by ep_1" in page
    assert '<meta http-equiv="refresh"' in page


def test_the_empty_page_says_so(client):
    client.request("GET", "/")
    assert b"Nothing yet." in client.getresponse().read()


@pytest.mark.parametrize(("method", "path"), [("GET", "/inbox"), ("DELETE", "/inbox")])
def test_unknown_pages_are_not_found(client, method, path):
    client.request(method, path)
    assert client.getresponse().status == 404


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Transfer-Encoding": "chunked"}, 411),
        ({"Content-Length": "²"}, 411),
        ({"Content-Length": "1048577"}, 413),
        ({"Content-Length": "9" * 5000}, 411),
    ],
)
def test_bodies_are_bounded(client, headers, status):
    client.putrequest("POST", "/inbox")
    for name, value in headers.items():
        client.putheader(name, value)
    client.endheaders()
    answer = client.getresponse()
    assert answer.status == status
    assert answer.headers["Connection"] == "close"


def test_who_does_not_trust_its_authority_gets_nothing(receiver, capfd):
    stranger = http.client.HTTPSConnection("localhost", receiver.server_address[1], timeout=5)
    with pytest.raises(ssl.SSLCertVerificationError):
        stranger.request("POST", "/inbox", BODY)
    assert "Traceback" not in capfd.readouterr().err


def test_it_takes_some_hundred_requests_a_second(receiver, certificate):
    def send(count):
        client = connect(receiver, certificate)
        try:
            return [post(client)[0] for _ in range(count)]
        finally:
            client.close()

    started = time.monotonic()
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        statuses = [status for part in pool.map(send, [50] * 8) for status in part]
    assert statuses == [200] * 400
    assert time.monotonic() - started < 4


def test_it_runs_as_a_process_of_its_own(tmp_path):
    port = free()
    command = [sys.executable, "-m", "app.development.receiver", str(tmp_path), str(port)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout
            assert process.stdout.readline().endswith(f"listening on https://localhost:{port}\n")
            context = ssl.create_default_context(cafile=tmp_path / "ca.pem")
            client = http.client.HTTPSConnection("127.0.0.1", port, context=context, timeout=5)
            assert kept(client) == []
            client.close()
        finally:
            process.terminate()


def test_what_came_before_its_secret_was_told_is_verified_later(client, tmp_path):
    other = signing.generate_secret()
    assert post(client, headers=signed(other))[1]["verified"] is False
    (received,) = kept(client)
    assert (received["verified"], received["reason"]) == (False, "no known secret signed this")
    (tmp_path / "secrets.json").unlink()
    (tmp_path / "secrets.json").write_text(json.dumps({"ep_new": other}))
    (received,) = kept(client)
    assert (received["verified"], received["verified_by"], received["reason"]) == (True, "ep_new", None)
