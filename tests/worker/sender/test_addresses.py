"""No connection goes to an address that may not be called."""

import ipaddress

import pytest

from app.core.egress_policy import EgressPolicy
from tests import receivers
from tests.worker.sender.steps import assert_helps, outgoing
from worker.sender import Sender, send_one


@pytest.mark.parametrize(
    "url",
    [
        "http://hooks.example.com/",
        "https://127.0.0.1/",
        "https://[::1]/",
        "https://localhost/",
        "https://user@hooks.example.com/",
        "https://2130706433/",
    ],
)
def test_a_url_that_the_policy_refuses_is_blocked_without_a_connection(new_sender, url):
    outcome = send_one(new_sender(), outgoing(url))

    assert (outcome.status_code, outcome.error_code) == (None, "blocked_address")
    assert outcome.error_detail
    assert outcome.duration_ms == 0


def test_another_port_than_that_of_the_dev_origin_is_refused(new_sender):
    with receivers.ok() as allowed, receivers.ok() as other:
        outcome = send_one(new_sender(allowed.url), outgoing(f"{other.url}/"))

    assert outcome.error_code == "blocked_address"
    assert other.connections == 0


def loopback_allowed(*cidrs: str) -> EgressPolicy:
    return EgressPolicy(allow_cidrs=tuple(ipaddress.ip_network(cidr) for cidr in cidrs))


def name_resolving_to(sender: Sender, port: int, addresses: str) -> str:
    sender._resolve = [f"hooks.example.com:{port}:{addresses}"]
    return f"https://hooks.example.com:{port}/"


@pytest.mark.parametrize(
    "addresses",
    [
        "127.0.0.1",
        "127.0.0.1,[::1]",
        "[::ffff:127.0.0.1]",
        "10.0.0.1,192.168.1.1,169.254.169.254,[fd00::1],[fe80::1]",
    ],
)
def test_a_name_that_leads_to_refused_addresses_only_is_blocked(new_sender, addresses):
    with receivers.ok() as receiver:
        sender = new_sender(policy=EgressPolicy())
        outcome = send_one(sender, outgoing(name_resolving_to(sender, receiver.port, addresses)))

    assert (outcome.status_code, outcome.error_code) == (None, "blocked_address")
    assert_helps(outcome)
    assert receiver.connections == 0


@pytest.mark.parametrize(
    "addresses",
    [
        "127.0.0.2,127.0.0.1",
        "127.0.0.1,127.0.0.2",
        "[::ffff:127.0.0.1]",
        "[::1],127.0.0.2,10.0.0.1,127.0.0.1,[fd00::1]",
    ],
)
def test_a_refused_address_is_skipped_for_the_next_of_the_name(new_sender, addresses):
    with (
        receivers.ok() as receiver,
        receivers.ok(host="127.0.0.2", port=receiver.port) as refused,
        receivers.ok(host="::1", port=receiver.port) as refused_too,
    ):
        sender = new_sender(policy=loopback_allowed("127.0.0.1/32"))
        outcome = send_one(sender, outgoing(name_resolving_to(sender, receiver.port, addresses)))

    assert outcome.status_code == 200
    assert receiver.requests[0].header("Host") == f"hooks.example.com:{receiver.port}"
    assert (refused.connections, refused_too.connections) == (0, 0)


def test_when_the_only_permitted_address_does_not_answer_the_name_is_not_called_blocked(new_sender):
    with receivers.refuses() as url:
        sender = new_sender(policy=loopback_allowed("127.0.0.1/32"))
        port = int(url.rpartition(":")[2])
        outcome = send_one(sender, outgoing(name_resolving_to(sender, port, "10.0.0.1,127.0.0.1")))

    assert outcome.error_code == "connect_failed"
    assert "left out" in (outcome.error_detail or "")
    assert_helps(outcome)


def test_an_address_of_this_machine_is_refused_even_if_the_table_would_allow_it(new_sender):
    class AllowsAll(EgressPolicy):
        def allows_address(self, address: str, *, origin: str = "") -> bool:
            return True

    with receivers.ok() as receiver:
        sender = new_sender(policy=AllowsAll())
        outcome = send_one(sender, outgoing(name_resolving_to(sender, receiver.port, "127.0.0.1,[::1]")))

    assert outcome.error_code == "blocked_address"
    assert receiver.connections == 0


def test_a_dev_origin_reaches_loopback_and_nothing_else(new_sender):
    with receivers.ok() as receiver:
        sender = new_sender(receiver.url)
        sender._resolve = [f"localhost:{receiver.port}:10.0.0.1,93.184.215.14"]
        outcome = send_one(sender, outgoing(f"{receiver.url}/"))

    assert outcome.error_code == "blocked_address"


def test_ipv6_is_called(new_sender):
    with receivers.ok(host="::1") as receiver:
        outcome = send_one(new_sender(receiver.url), outgoing(f"{receiver.url}/"))

    assert outcome.status_code == 200
    assert receiver.requests[0].header("Host") == f"[::1]:{receiver.port}"
