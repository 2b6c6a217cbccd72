"""Asking for a test: what is refused, and what becomes of one that no worker takes."""

import pytest
from sqlalchemy import func, select

from app.deliveries import trial
from app.deliveries.models import Delivery, PendingDelivery, PendingTest
from app.events.models import Event, FanOut
from app.events.service import MAX_EVENT_BYTES
from config.wire import TaskName
from tests.api import expect
from tests.api.routes import MISSING

ENDPOINT = {"url": "https://hooks.example.com/", "events": ["message.received"]}


@pytest.fixture
def path(api) -> str:
    """Give the path of an endpoint's tests."""
    return f"/v1/endpoints/{expect.ok(api.post('/v1/endpoints', ENDPOINT), 201)['id']}/test"


@pytest.fixture
def impatient(monkeypatch) -> None:
    """Wait for no worker."""
    monkeypatch.setattr(trial, "CLAIMED_WITHIN_SECONDS", 0.0)


def count(resources, model) -> int:
    with resources.transaction(write=False) as uow:
        found: int = uow.session.scalar(select(func.count()).select_from(model))
        return found


def test_what_publishing_refuses_is_refused_and_leaves_nothing(api, resources, path):
    expect.invalid(api.post(path, {"type": "no.such"}), "/type", code="unknown_event_type")
    expect.invalid(api.post(path, {"type": "no.such", "data": {}}), "/type", code="unknown_event_type")
    expect.invalid(api.post(path, {"data": []}), "/data")
    expect.invalid(api.post(path, {"type": 5}), "/type")
    expect.invalid(api.post(path, {"kind": "message.read"}), "/kind")
    expect.problem(api.post(path, {"data": {"text": "x" * MAX_EVENT_BYTES}}), 413, "payload_too_large")
    schema = {"required": ["total"]}
    expect.ok(api.call("PUT", "/v1/event-types/order.created", {"schema": schema}))
    answer = api.post(path, {"type": "order.created", "data": {"sum": 1}})
    expect.invalid(answer, "/data", code="payload_invalid")
    # It has no example either.
    expect.invalid(api.post(path, {"type": "order.created"}), "/data", code="payload_invalid")
    assert [count(resources, model) for model in (Event, Delivery, PendingTest)] == [0, 0, 0]


def test_only_an_endpoint_of_ones_own_is_tested(api, new_api, path):
    missing = api.post(f"/v1/endpoints/{MISSING['endpoint_id']}/test")
    others = new_api().post(path)
    for answer in (missing, others):
        expect.problem(answer, 404, "not_found")


@pytest.mark.usefixtures("impatient")
def test_no_pump_and_no_fan_out_sees_it(api, resources, doorbell, path):
    expect.problem(api.post(path), 503, "no_worker")
    assert [count(resources, model) for model in (Event, Delivery)] == [1, 1]
    assert [count(resources, model) for model in (FanOut, PendingDelivery, PendingTest)] == [0, 0, 0]
    assert doorbell.rings == [(TaskName.DELIVERIES_SEND_TESTS, 0)]


@pytest.mark.usefixtures("impatient")
def test_a_place_is_free_again_whatever_happened(api, resources, path):
    for _ in range(resources.settings.web_threads):
        expect.problem(api.post(path), 503, "no_worker")
        expect.invalid(api.post(path, {"type": "no.such"}), "/type", code="unknown_event_type")


def test_one_thread_can_send_a_test_too(monkeypatch):
    """Half of one would be none."""
    from app.core.unit_of_work import open_resources
    from config.settings import load_settings

    for threads, places in ((1, 1), (2, 1), (3, 1), (8, 4)):
        monkeypatch.setenv("WEB_THREADS", str(threads))
        opened = open_resources(load_settings())
        assert opened.waiting_tests._value == places
        opened.close()
