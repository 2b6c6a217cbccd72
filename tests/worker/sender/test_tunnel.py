"""Through an egress proxy: nothing goes around it, and what it does wrong is never the receiver's fault."""

import ipaddress
import time
from collections.abc import Callable, Iterator

import pytest
from structlog.testing import capture_logs

from app.core.egress_policy import EgressPolicy
from tests import proxies, receivers
from tests.proxies import Proxy
from tests.receivers import Receiver
from tests.worker.sender.steps import (
    DEADLINE_MS,
    DEADLINE_WITH_SLACK,
    assert_helps,
    finish,
    outgoing,
)
from worker.sender import Sender, send_one, tunnel

PUBLIC = "198.51.100.7"  # permitted below; nothing answers there, so only the proxy leads to the receiver
HOST = "hooks.example.com"
ALLOWED = (ipaddress.ip_network(f"{PUBLIC}/32"),)
Through = Callable[..., Sender]


@pytest.fixture
def through(new_sender) -> Through:
    """Make a sender for a proxy and a receiver that seems to be at `addresses`."""

    def make(proxy: Proxy | str, receiver: Receiver, addresses: str = PUBLIC, **options: object) -> Sender:
        options.setdefault("policy", EgressPolicy(allow_cidrs=ALLOWED))
        sender: Sender = new_sender(proxy=proxy if isinstance(proxy, str) else proxy.url, **options)
        sender._resolve = [f"{HOST}:{receiver.port}:{addresses}"]
        return sender

    return make


@pytest.fixture
def receiver() -> Iterator[receivers.FriendlyReceiver]:
    with receivers.ok(body=b"the answer", headers=[("X-Of-The-Receiver", "1")]) as friendly:
        yield friendly


def url_of(receiver: Receiver) -> str:
    return f"https://{HOST}:{receiver.port}/hook"


# --- success


def test_the_receiver_gets_the_request_and_the_proxy_the_name_alone(through, receiver):
    with proxies.tunnels() as proxy:
        headers = ["X-Api-Token: of the customer", "X-BotBat-Signature: v1=0"]
        outcome = send_one(
            through(proxy, receiver), outgoing(url_of(receiver), headers=headers, body=b'{"a":1}')
        )

    assert (outcome.status_code, outcome.error_code, outcome.error_detail) == (200, None, None)
    assert outcome.response_headers == [("X-Of-The-Receiver", "1"), ("Content-Length", "10")]
    assert outcome.response_body == b"the answer"
    [request] = receiver.requests
    assert request.body == b'{"a":1}'
    assert request.head.decode().split("\r\n") == [
        "POST /hook HTTP/1.1",
        f"Host: {HOST}:{receiver.port}",
        *headers,
        "Content-Length: 7",
    ]
    target = f"{HOST}:{receiver.port}"
    assert proxy.asked == [target]
    assert proxy.requests[0].headers == [("Host", target), ("Proxy-Connection", "Keep-Alive")]


def test_a_login_is_given_to_the_proxy_and_not_to_the_receiver(through, receiver):
    with proxies.tunnels(login="us/er:p@ss word") as proxy:
        url = proxy.url.replace("://", "://us%2Fer:p%40ss%20word@")
        outcome = send_one(through(url, receiver), outgoing(url_of(receiver)))

    assert outcome.status_code == 200
    assert receiver.requests[0].header("Proxy-Authorization") is None


def test_a_proxy_may_speak_tls(through, receiver):
    with proxies.tunnels(login="a:b", context=receivers.good_context()) as proxy:
        sender = through(proxy.url.replace("://", "://a:b@"), receiver)
        outcomes = [send_one(sender, outgoing(url_of(receiver), body=b"x" * 100_000)) for _ in range(2)]

    assert [outcome.error_code for outcome in outcomes] == [None, None]
    assert [len(request.body) for request in receiver.requests] == [100_000, 100_000]
    assert proxy.connections == 1


def test_one_tunnel_serves_one_request_after_the_other(through, receiver):
    with proxies.tunnels() as proxy:
        sender = through(proxy, receiver)
        for _ in range(20):
            assert send_one(sender, outgoing(url_of(receiver))).status_code == 200

    assert (len(receiver.requests), receiver.connections) == (20, 1)
    assert (proxy.connections, len(proxy.asked)) == (1, 1)


def test_many_at_once_go_through(through, receiver):
    with proxies.tunnels() as proxy:
        sender = through(proxy, receiver, max_connections=10)
        for number in range(50):
            sender.start(outgoing(url_of(receiver), tag=number, timeout_ms=15_000))
        outcomes = finish(sender)

    assert {outcome.tag for outcome in outcomes} == set(range(50))
    assert {outcome.error_code for outcome in outcomes} == {None}
    assert proxy.connections <= 10


def test_a_tunnel_that_was_closed_while_idle_is_not_used_again(through):
    with receivers.closes_after_answer() as receiver, proxies.tunnels() as proxy:
        sender = through(proxy, receiver)
        for _ in range(3):
            assert send_one(sender, outgoing(url_of(receiver))).status_code == 200
            assert sender.run(0.1) == []  # the close arrives

    assert (len(receiver.requests), proxy.connections) == (3, 3)


def test_a_request_is_never_sent_twice_when_its_tunnel_dies(through):
    with receivers.dies_on_second_request() as receiver, proxies.tunnels() as proxy:
        sender = through(proxy, receiver)
        assert send_one(sender, outgoing(url_of(receiver))).status_code == 200
        outcome = send_one(sender, outgoing(url_of(receiver)))

    assert (outcome.status_code, outcome.error_code) == (None, "connect_failed")
    assert len(receiver.requests) == 2
    assert proxy.connections == 1


# --- the environment


@pytest.mark.parametrize("name", ["NO_PROXY", "no_proxy"])
def test_no_exception_of_the_environment_leads_around_the_proxy(through, receiver, monkeypatch, name):
    monkeypatch.setenv(name, "*")
    with proxies.tunnels() as proxy:
        assert send_one(through(proxy, receiver), outgoing(url_of(receiver))).status_code == 200

    assert len(proxy.asked) == 1


def test_no_proxy_of_the_environment_takes_its_place(through, receiver, monkeypatch):
    with proxies.tunnels() as proxy, proxies.tunnels() as other:
        for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
            monkeypatch.setenv(name, other.url)
        assert send_one(through(proxy, receiver), outgoing(url_of(receiver))).status_code == 200

    assert (len(proxy.asked), other.connections) == (1, 0)


# --- addresses


@pytest.mark.parametrize(
    "addresses",
    [
        "127.0.0.1",
        "[::1]",
        "[::ffff:127.0.0.1]",
        "10.0.0.1,192.168.1.1,169.254.169.254,[fd00::1],[fe80::1]",
        f"{PUBLIC},10.0.0.1",
        f"10.0.0.1,{PUBLIC}",
        f"{PUBLIC},[fd00::1]",
        f"[::1],{PUBLIC}",
        f"{PUBLIC},{PUBLIC},{PUBLIC},{PUBLIC},{PUBLIC},{PUBLIC},{PUBLIC},127.0.0.1",
    ],
)
def test_a_name_that_leads_inside_is_blocked_and_the_proxy_is_never_asked(through, receiver, addresses):
    with proxies.tunnels() as proxy:
        sender = through(proxy, receiver, addresses)
        outcomes = [send_one(sender, outgoing(url_of(receiver))) for _ in range(2)]

    for outcome in outcomes:
        assert (outcome.status_code, outcome.error_code) == (None, "blocked_address")
        assert ("beside others" in (outcome.error_detail or "")) is (PUBLIC in addresses)
        assert_helps(outcome)
    assert (proxy.connections, receiver.connections) == (0, 0)


def test_a_url_that_the_policy_refuses_is_blocked_and_the_proxy_is_never_asked(through, receiver):
    with proxies.tunnels() as proxy:
        outcome = send_one(through(proxy, receiver), outgoing("https://127.0.0.1/"))

    assert outcome.error_code == "blocked_address"
    assert proxy.connections == 0


def test_an_address_of_this_machine_is_refused_even_if_the_table_would_allow_it(through, receiver):
    class AllowsAll(EgressPolicy):
        def allows_address(self, address: str, *, origin: str = "") -> bool:
            return True

    with proxies.tunnels() as proxy:
        sender = through(proxy, receiver, "127.0.0.1", policy=AllowsAll())
        outcome = send_one(sender, outgoing(url_of(receiver)))

    assert outcome.error_code == "blocked_address"
    assert proxy.connections == 0


def test_an_address_as_host_is_judged_and_asked_for_as_it_is(through, receiver):
    with proxies.tunnels() as proxy:
        outcome = send_one(through(proxy, receiver), outgoing(f"https://{PUBLIC}:{receiver.port}/"))

    assert outcome.error_code == "tls_failed"  # the certificate is for names
    assert proxy.asked == [f"{PUBLIC}:{receiver.port}"]


def test_a_dev_origin_goes_through_the_proxy_too(through, receiver):
    with proxies.tunnels() as proxy:
        sender = through(proxy, receiver, policy=EgressPolicy(dev_origins=frozenset({receiver.url})))
        assert send_one(sender, outgoing(f"{receiver.url}/")).status_code == 200

    assert proxy.asked == [f"localhost:{receiver.port}"]


def test_a_name_that_does_not_resolve_is_dns_failed_and_the_proxy_is_never_asked(through, receiver):
    class AnyUrl(EgressPolicy):
        def check_url(self, url: str) -> str:
            return url

    with proxies.tunnels() as proxy:
        sender = through(proxy, receiver, policy=AnyUrl())
        outcome = send_one(sender, outgoing("https://no..such.example/"))

    assert outcome.error_code == "dns_failed"
    assert proxy.connections == 0


def test_where_a_name_leads_is_looked_at_again_after_a_while(through, receiver, monkeypatch):
    judged = []

    class Counts(EgressPolicy):
        def allows_address(self, address: str, *, origin: str = "") -> bool:
            judged.append(origin)
            return super().allows_address(address, origin=origin)

    policy = Counts(dev_origins=frozenset({receiver.url}))
    with proxies.tunnels() as proxy:
        sender = through(proxy, receiver, policy=policy)
        sender._resolve = [f"localhost:{receiver.port}:127.0.0.1"]
        for number, wait in enumerate((0.0, 0.0, 0.6)):
            monkeypatch.setattr(tunnel, "_LOOK_HOLDS_SECONDS", 0.5)
            sender.run(wait)
            assert send_one(sender, outgoing(f"{receiver.url}/")).status_code == 200
            assert len(judged) == (2 if number == 2 else 1)

    assert set(judged) == {receiver.url}
    assert proxy.connections == 1


def test_an_exception_while_judging_comes_out_of_run_and_the_proxy_is_never_asked(through, receiver):
    class Broken(EgressPolicy):
        def allows_address(self, address: str, *, origin: str = "") -> bool:
            if address != PUBLIC:
                raise LookupError("a bug")
            return super().allows_address(address, origin=origin)

    with proxies.tunnels() as proxy:
        sender = through(proxy, receiver, f"{PUBLIC},10.0.0.1", policy=Broken(allow_cidrs=ALLOWED))
        sender.start(outgoing(url_of(receiver)))
        with pytest.raises(LookupError, match="a bug"):
            finish(sender)
        [outcome] = finish(sender)

    assert outcome.error_code == "connect_failed"
    assert proxy.connections == 0


# --- the proxy's failures

FAILURES = {
    "refuses with 403": (lambda: proxies.refuses(403), "answered 403"),
    "refuses with 502": (lambda: proxies.refuses(502), "answered 502"),
    "refuses with 503": (lambda: proxies.refuses(503), "answered 503"),
    "redirects": (lambda: proxies.refuses(302), "answered 302"),
    "wants a login": (lambda: proxies.tunnels(login="a:b"), "credentials"),
    "resets": (proxies.resets, "no valid answer"),
    "closes without an answer": (lambda: proxies.answers_raw(b""), "no valid answer"),
    "closes in its headers": (
        lambda: proxies.answers_raw(b"HTTP/1.1 200 OK\r\nX-A: b\r\n"),
        "no valid answer",
    ),
    "speaks no HTTP": (lambda: proxies.answers_raw(b"SSH-2.0-OpenSSH_9.2\r\n"), "no valid answer"),
    "floods": (proxies.floods, "no valid answer"),
    "hangs": (proxies.hangs, "within 1 s"),
    "drips": (proxies.drips, "within 1 s"),
    "has a certificate of an unknown authority": (proxies.unknown_authority, "TLS handshake with our egress"),
}


@pytest.mark.parametrize(("proxy", "words"), FAILURES.values(), ids=FAILURES)
def test_what_the_proxy_does_wrong_is_proxy_failed(through, receiver, proxy, words):
    with proxy() as failing:
        sender = through(failing, receiver)
        started = time.monotonic()
        outcome = send_one(sender, outgoing(url_of(receiver)))
        elapsed = time.monotonic() - started

    assert (outcome.status_code, outcome.error_code) == (None, "proxy_failed")
    assert words in (outcome.error_detail or "")
    assert "contact support" in (outcome.error_detail or "")
    assert_helps(outcome)
    assert (outcome.response_headers, outcome.response_body) == ([], b"")
    assert elapsed < DEADLINE_WITH_SLACK
    assert receiver.connections == 0
    assert failing.connections == 1
    if words == "within 1 s":
        assert elapsed >= DEADLINE_MS / 1000


@pytest.mark.parametrize("where", ["closed port", "unknown name", "never accepts"])
def test_a_proxy_that_cannot_be_reached_is_proxy_failed(through, receiver, where):
    with receivers.refuses() as refusing, receivers.never_accepts() as silent:
        url = {
            "closed port": refusing.replace("https", "http"),
            "unknown name": "http://no..such.example:3128",
            "never accepts": silent.replace("https", "http"),
        }[where]
        outcome = send_one(through(url, receiver), outgoing(url_of(receiver)))

    assert (outcome.status_code, outcome.error_code) == (None, "proxy_failed")
    words = "within 1 s" if where == "never accepts" else "could not be reached"
    assert words in (outcome.error_detail or "")
    assert_helps(outcome)
    assert receiver.connections == 0


def test_a_receiver_that_the_proxy_does_not_reach_is_proxy_failed(through):
    with receivers.ok() as gone:
        pass
    with proxies.tunnels() as proxy:
        outcome = send_one(through(proxy, gone), outgoing(url_of(gone)))

    assert outcome.error_code == "proxy_failed"
    assert "answered 502" in (outcome.error_detail or "")


def test_a_proxy_that_fails_after_it_worked_is_proxy_failed(through):
    with receivers.closes_after_answer() as receiver:
        with proxies.tunnels() as proxy:
            sender = through(proxy, receiver)
            assert send_one(sender, outgoing(url_of(receiver))).status_code == 200
            sender.run(0.1)
        outcome = send_one(sender, outgoing(url_of(receiver)))

    assert outcome.error_code == "proxy_failed"
    assert "could not be reached" in (outcome.error_detail or "")


def test_the_deadline_after_a_failure_is_the_next_request_s_own(through, receiver):
    with proxies.hangs() as proxy:
        sender = through(proxy, receiver)
        for timeout_ms in (300, 600, 300):
            outcome = send_one(sender, outgoing(url_of(receiver), timeout_ms=timeout_ms))
            assert outcome.error_code == "proxy_failed"
            assert f"within {timeout_ms / 1000:g} s" in (outcome.error_detail or "")
            assert timeout_ms <= outcome.duration_ms < timeout_ms + 250


def test_the_look_counts_towards_the_deadline_of_its_request_alone(through, receiver):
    class Slow(EgressPolicy):
        def allows_address(self, address: str, *, origin: str = "") -> bool:
            time.sleep(0.5)
            return super().allows_address(address, origin=origin)

    policy = Slow(dev_origins=frozenset({receiver.url}))
    with proxies.hangs() as proxy:
        sender = through(proxy, receiver, policy=policy)
        sender._resolve = [f"localhost:{receiver.port}:127.0.0.1"]
        for _ in range(2):
            outcome = send_one(sender, outgoing(f"{receiver.url}/"))
            assert outcome.error_code == "proxy_failed"
            assert DEADLINE_MS - 1 <= outcome.duration_ms < DEADLINE_MS + 250


def test_the_login_stays_out_of_details_and_logs(through, receiver):
    with (
        proxies.tunnels(login="other:login") as proxy,
        receivers.refuses() as refusing,
        capture_logs() as logs,
    ):
        for url in (proxy.url, refusing.replace("https", "http"), proxy.url.replace("http", "https")):
            sender = through(url.replace("://", "://canary-user:canary-password@"), receiver)
            outcome = send_one(sender, outgoing(url_of(receiver)))
            assert outcome.error_code == "proxy_failed"
            assert "canary" not in repr(outcome)

    assert [entry["event"] for entry in logs] == ["egress.proxy_failed"] * 3
    assert [entry["status"] for entry in logs] == [407, 0, 0]
    assert "canary" not in repr(logs)


# --- the receiver's failures, inside the tunnel

INSIDE = {
    "wrong host": (receivers.wrong_host, "tls_failed", "another host name"),
    "unknown authority": (receivers.unknown_authority, "tls_failed", "authority that we know"),
    "expired": (receivers.expired, "tls_failed", "expired"),
    "speaks no TLS": (receivers.speaks_no_tls, "tls_failed", "TLS 1.2 or newer"),
    "closes at accept": (receivers.closes_at_accept, "connect_failed", "during the TLS handshake"),
    "drips in the handshake": (receivers.drips_handshake, "timeout", "TLS handshake with the endpoint"),
    "hangs": (receivers.hangs, "timeout", "did not answer within 1 s"),
    "closes without an answer": (receivers.closes_without_answer, "invalid_response", "without an answer"),
    "speaks no HTTP": (receivers.speaks_no_http, "invalid_response", "not valid HTTP"),
    "floods": (receivers.floods, "response_too_large", "64 KiB"),
    "answers 407": (lambda: receivers.ok(407), "http_status", "answered 407"),
    "answers 502": (lambda: receivers.ok(502), "http_status", "answered 502"),
}


@pytest.mark.parametrize("proxy_tls", [False, True], ids=["http", "https"])
@pytest.mark.parametrize(("receiver", "code", "words"), INSIDE.values(), ids=INSIDE)
def test_what_fails_inside_the_tunnel_is_called_as_it_is_without_a_proxy(
    through, receiver, code, words, proxy_tls
):
    context = receivers.good_context() if proxy_tls else None
    with receiver() as hostile, proxies.tunnels(context=context) as proxy:
        outcome = send_one(through(proxy, hostile), outgoing(url_of(hostile)))

    assert outcome.error_code == code
    assert words in (outcome.error_detail or "")
    assert_helps(outcome)
    assert proxy.connections == 1
