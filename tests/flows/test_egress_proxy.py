"""A deployment with an egress proxy: every delivery goes through it."""

import pytest

from tests import proxies, receivers
from tests.flows.steps import log_of, make_endpoint, publish, the_delivery


@pytest.fixture(autouse=True)
def proxy(monkeypatch):
    """Give the proxy of the deployment, which settings know before anything reads them."""
    with proxies.tunnels(login="canary:canary") as running:
        monkeypatch.setenv("BOTBAT_EGRESS_PROXY", running.url.replace("://", "://canary:canary@"))
        yield running


def test_a_delivery_goes_through_the_proxy(api, drain, proxy):
    with receivers.ok() as receiver:
        made = make_endpoint(api, receiver)
        publish(api)
        drain()

    assert len(receiver.requests) == 1
    assert proxy.asked == [f"127.0.0.1:{receiver.port}"]
    (attempt,) = log_of(api, made)
    assert (attempt["status"], attempt["status_code"]) == ("success", 200)


def test_a_delivery_that_the_proxy_failed_is_told_so_and_tried_again(api, drain, resources):
    with receivers.refuses() as url:
        made = make_endpoint(api, url)
        publish(api)
        drain()

    (attempt,) = log_of(api, made)
    assert (attempt["status"], attempt["status_code"], attempt["response"]) == ("failed", None, None)
    assert attempt["error"]["code"] == "proxy_failed"
    assert "answered 502" in attempt["error"]["detail"]
    assert "canary" not in str(attempt)
    delivery = the_delivery(resources)
    assert (delivery.status, delivery.attempt_count) == ("pending", 1)
