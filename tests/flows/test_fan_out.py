"""An event goes to every endpoint of its workspace that wants it, to each once, and to no other."""

from collections import Counter

from sqlalchemy import select

from app.core.unit_of_work import UnitOfWork
from app.deliveries import engine
from app.events import service as events
from app.events.models import FanOut
from tests import receivers
from tests.flows.steps import (
    change_endpoint,
    deliveries_of,
    ids_received,
    log_of,
    make_endpoint,
    publish,
    publish_many,
)
from tests.receivers import Receiver


def paths(receiver: Receiver) -> Counter[str]:
    return Counter(request.path for request in receiver.requests)


def test_it_goes_to_names_groups_and_everything_that_match(api, drain):
    subscriptions = {
        "/named": ["message.received"],
        "/several": ["contact.created", "message.received"],
        "/twice": ["message.*", "message.received", "*"],
        "/group": ["message.*"],
        "/everything": ["*"],
        "/other-name": ["message.read"],
        "/other-group": ["contact.*", "conversation.*"],
    }
    with receivers.ok() as receiver:
        for path, names in subscriptions.items():
            make_endpoint(api, receiver, path, events=names)
        publish(api)
        assert drain() == 5
        assert paths(receiver) == Counter(["/named", "/several", "/twice", "/group", "/everything"])

        receiver.requests.clear()
        contact = {"id": "con_1", "channel": "whatsapp"}
        publish(api, "contact.created", contact=contact)
        assert drain() == 4
        assert paths(receiver) == Counter(["/several", "/twice", "/everything", "/other-group"])


def test_a_group_covers_the_workspaces_own_types(api, drain):
    for name in ("order.created", "order.line.added", "orders.created"):
        assert api.call("PUT", f"/v1/event-types/{name}", {}).status_code in {200, 201}
    with receivers.ok() as receiver:
        make_endpoint(api, receiver, events=["order.*"])
        for name in ("order.created", "order.line.added", "orders.created"):
            publish(api, name, text="hi")
        drain()
    assert sorted(request.header("X-BotBat-Event") or "" for request in receiver.requests) == [
        "order.created",
        "order.line.added",
    ]


def test_a_filter_narrows_what_an_endpoint_gets(api, drain):
    big = {"path": "/data/amount", "op": "gte", "value": 100}
    urgent = {"path": "/data/text", "op": "contains", "value": "urgent"}
    with receivers.ok() as receiver:
        make_endpoint(api, receiver, "/all")
        make_endpoint(api, receiver, "/big", filter=big)
        made = make_endpoint(api, receiver, "/both", filter={"all": [big, urgent]})
        for amount, text in ((5, "urgent"), (100, "hello"), (10**30, "urgent: pay")):
            publish(api, amount=amount, text=text)
        drain()
        assert paths(receiver) == Counter({"/all": 3, "/big": 2, "/both": 1})

        change_endpoint(api, made, filter=None)
        publish(api, amount=5, text="hello")
        drain()
        assert paths(receiver) == Counter({"/all": 4, "/big": 2, "/both": 2})


def test_another_workspaces_endpoints_get_nothing(new_api, drain):
    ours, theirs = new_api(), new_api()
    with receivers.ok() as receiver:
        made = make_endpoint(ours, receiver, "/ours", events=["*"])
        other = make_endpoint(theirs, receiver, "/theirs", events=["*"])
        event = publish(ours)
        assert drain() == 1
        assert paths(receiver) == Counter(["/ours"])

    assert deliveries_of(theirs, other) == []
    assert log_of(theirs, other) == []
    assert theirs.get(f"/v1/events/{event['id']}").status_code == 404
    (delivery,) = deliveries_of(ours, made)
    assert theirs.get(f"/v1/deliveries/{delivery['id']}").status_code == 404
    (attempt,) = log_of(ours, made)
    assert theirs.get(f"/v1/attempts/{attempt['id']}").status_code == 404


def test_an_event_that_nobody_wants_is_done_with(api, drain, resources):
    event = publish(api)
    assert drain() == 0
    with resources.transaction(write=False) as uow:
        assert not events.any_fan_out(uow)
    assert api.get(f"/v1/events/{event['id']}").json["deliveries"] == []


def test_an_endpoint_gets_what_is_published_after_it_was_made(api, drain):
    with receivers.ok() as receiver:
        publish(api)
        drain()
        make_endpoint(api, receiver)
        assert drain() == 0
        publish(api)
        assert drain() == 1


def test_a_fan_out_that_is_cut_off_leaves_nothing_and_is_done_by_the_next(api, drain, resources):
    with receivers.ok() as receiver:
        made = make_endpoint(api, receiver)
        publish(api)
        uow = UnitOfWork(resources)
        assert engine.fan_out(uow) == 1
        uow.close()
        assert deliveries_of(api, made) == []
        assert drain() == 1
        with resources.transaction() as uow:
            assert engine.fan_out(uow) == 0
        assert drain() == 0
        assert len(receiver.requests) == 1
    assert deliveries_of(api, made)[0]["status"] == "succeeded"


def test_each_workspace_gets_its_share_of_a_batch(new_api, resources, monkeypatch):
    """One that publishes thousands at once does not keep the others waiting."""
    monkeypatch.setattr(engine, "FAN_OUT_EVENTS", 10)
    many, one = new_api(), new_api()
    for _ in range(30):
        publish(many)
    event = publish(one)
    with resources.transaction() as uow:
        assert engine.fan_out(uow) == 6
    with resources.transaction(write=False) as uow:
        left = uow.session.scalars(select(FanOut)).all()
    assert len(left) == 25
    assert event["id"] not in {row.event_id for row in left}


def test_a_large_fan_out_is_made_in_parts_and_whole(api, drain, resources, monkeypatch):
    monkeypatch.setattr(engine, "_FAN_OUT_DELIVERIES", 10)
    with receivers.ok() as receiver:
        for number in range(4):
            make_endpoint(api, receiver, f"/{number}")
        publish_many(api, 10)
        with resources.transaction() as uow:
            assert engine.fan_out(uow) == 3  # 12 deliveries
        assert drain() == 40
        assert set(ids_received(receiver.requests).values()) == {1}
        assert len(receiver.requests) == 40


def test_two_thousand_deliveries_over_twenty_endpoints_arrive_once_each_and_are_logged_once_each(api, drain):
    with receivers.ok() as receiver:
        made = {f"/{number}": make_endpoint(api, receiver, f"/{number}") for number in range(20)}
        published = publish_many(api, 100)
        assert drain() == 2000
        expected = Counter((path, event) for path in made for event in published)
        assert ids_received(receiver.requests) == expected

    logged: Counter[tuple[str, str]] = Counter()
    for path, endpoint in made.items():
        attempts = log_of(api, endpoint)
        logged.update((path, attempt["event_id"]) for attempt in attempts)
        assert {attempt["status"] for attempt in attempts} == {"success"}
        deliveries = deliveries_of(api, endpoint)
        assert {delivery["status"] for delivery in deliveries} == {"succeeded"}
        assert len(deliveries) == 100
    assert logged == expected
