"""The dry run: which endpoints would get an event, why the others would not, and nothing happens."""

import base64
from typing import Any

from sqlalchemy import func, select

from app.deliveries import engine
from app.deliveries.models import Delivery
from app.events.models import Event
from app.events.service import MAX_EVENT_BYTES
from tests.api import expect
from tests.conftest import Api

MATCH = "/v1/endpoints/match"
EVENT = {"type": "order.created", "data": {"amount": 20, "tags": ["vip"]}}
BIG = {"path": "/data/amount", "op": "gt", "value": 100}


def own_type(api: Api, schema: Any = None) -> None:
    expect.ok(api.call("PUT", "/v1/event-types/order.created", {"schema": schema}))


def create(api: Api, **fields: Any) -> str:
    fields = {"url": "https://hooks.example.com/", "events": ["*"], **fields}
    endpoint_id: str = expect.ok(api.post("/v1/endpoints", fields), 201)["id"]
    return endpoint_id


def match(api: Api, body: Any = EVENT, query: str = "") -> Any:
    return expect.ok(api.post(MATCH + query, body))


def verdict(api: Api, event: Any = EVENT, **fields: Any) -> tuple[bool, str | None, str]:
    """Give what is said of a new endpoint."""
    endpoint_id = create(api, **fields)
    told = match(api, event)["data"][0]
    assert set(told) == {"endpoint_id", "url", "matches", "reason", "detail"}
    assert told["endpoint_id"] == endpoint_id
    return told["matches"], told["reason"], told["detail"]


def test_each_endpoint_is_told_with_the_reason(api):
    own_type(api)
    subscribed = "It subscribes to order.created."
    assert verdict(api) == (True, None, subscribed)
    assert verdict(api, events=["order.*"]) == (True, None, subscribed)
    assert verdict(api, events=["message.read", "order.created"]) == (True, None, subscribed)
    missing = (False, "not_subscribed", "It does not subscribe to order.created.")
    assert verdict(api, events=["message.*", "message.read"]) == missing
    # A filter is not what keeps it from an event that it does not subscribe to.
    assert verdict(api, events=["message.*"], filter=BIG) == missing
    met = (True, None, "It subscribes to order.created, and its filter is met.")
    assert verdict(api, filter={"not": BIG}) == met
    assert verdict(api, filter={"path": "/type", "op": "eq", "value": "order.created"}) == met
    for tree, sentence in (
        (BIG, "`/data/amount` is 20, but must be greater than 100."),
        (
            {"path": "/data/total", "op": "gt", "value": 1},
            "`/data/total` is missing, but must be greater than 1.",
        ),
        (
            {"all": [{"not": BIG}, {"path": "/data/tags", "op": "contains", "value": "new"}]},
            '`/data/tags` is an array, but must contain "new".',
        ),
    ):
        assert verdict(api, filter=tree) == (False, "filter", sentence)


def test_a_paused_endpoint_gets_it_later(api):
    own_type(api)
    some = create(api, filter=BIG)
    other = create(api)
    for endpoint_id in (some, other):
        expect.ok(api.post(f"/v1/endpoints/{endpoint_id}/pause"))
    told = {row["endpoint_id"]: row for row in match(api)["data"]}
    assert (told[other]["matches"], told[other]["reason"]) == (True, None)
    assert told[other]["detail"] == (
        "It subscribes to order.created. It is paused: the delivery would wait until it is resumed."
    )
    assert told[some]["reason"] == "filter"
    assert "paused" not in told[some]["detail"]


def test_filters_see_the_whole_envelope(api):
    own_type(api)
    event = {**EVENT, "occurred_at": "2026-01-31T10:30:00+01:00"}
    for tree in (
        {"path": "/timestamp", "op": "eq", "value": "2026-01-31T09:30:00.000Z"},
        {"path": "/id", "op": "starts_with", "value": "evt_"},
        {"path": "/data", "op": "eq", "value": EVENT["data"]},
    ):
        assert verdict(api, event, filter=tree)[0], tree
    now = {"path": "/timestamp", "op": "gt", "value": "2026-01-31T09:30:00.000Z"}
    assert verdict(api, EVENT, filter=now)[0]
    exact = {"path": "/data/amount", "op": "eq", "value": 10**30}
    assert verdict(api, {**EVENT, "data": {"amount": 10**30}}, filter=exact)[0]
    assert not verdict(api, {**EVENT, "data": {"amount": 10**30 + 1}}, filter=exact)[0]


def test_an_event_is_judged_as_in_publishing(api):
    own_type(api, {"type": "object", "properties": {"amount": {"type": "integer"}}})
    bodies: list[Any] = [
        {"type": "order.deleted", "data": {}},
        {**EVENT, "data": {"amount": "20"}},
        {"type": "message.received", "data": {"text": 5}},
        {**EVENT, "data": []},
        {**EVENT, "external_id": "a b"},
        {**EVENT, "extra": 1},
        {"data": {}},
        {},
        {**EVENT, "data": {"text": "a" * MAX_EVENT_BYTES}},
    ]
    for body in bodies:
        published, tried = api.post("/v1/events", body), api.post(MATCH, body)
        assert published.status_code in (413, 422)
        same = {"code", "title", "detail", "status", "type"}
        told = expect.problem(tried, published.status_code, published.json["code"])
        assert {name: told[name] for name in same} == {name: published.json[name] for name in same}
        assert told.get("errors") == published.json.get("errors")


def test_an_event_that_grows_too_large_in_the_writing_is_refused_too(api):
    own_type(api)
    body = '{"type":"order.created","data":{"numbers":[' + ",".join(["1e15"] * 20_000) + "]}}"
    assert len(body) < MAX_EVENT_BYTES
    for path in ("/v1/events", MATCH):
        answer = api.post(path, data=body, content_type="application/json")
        expect.problem(answer, 413, "event_too_large")


def test_nothing_is_stored_and_nobody_is_woken(api, resources, doorbell):
    own_type(api)
    create(api)
    doorbell.rings.clear()
    for _ in range(2):
        assert match(api, {**EVENT, "external_id": "order-1"})["data"][0]["matches"]
    assert doorbell.rings == []
    with resources.transaction() as uow:
        assert engine.fan_out(uow) == 0
        assert uow.session.scalar(select(func.count()).select_from(Event)) == 0
        assert uow.session.scalar(select(func.count()).select_from(Delivery)) == 0
    # So that the event itself is no repetition afterwards.
    expect.ok(api.post("/v1/events", {**EVENT, "external_id": "order-1"}), 202)


def test_what_matches_is_what_fan_out_serves(api, resources):
    own_type(api)
    trees: list[Any] = [
        *(None, BIG, {"not": BIG}, {"any": [BIG, {"path": "/data/tags/0", "op": "eq", "value": "vip"}]}),
        *(
            {"path": "/data/x", "op": "exists", "value": False},
            {"path": "/data/amount", "op": "lt", "value": "9"},
        ),
        {"path": "/type", "op": "in", "value": ["order.created"]},
    ]
    made = {
        create(api, events=events, filter=tree)
        for events in (["*"], ["order.*"], ["order.created"], ["message.*"], ["contact.created"])
        for tree in trees
    }
    for endpoint_id in sorted(made)[::4]:
        expect.ok(api.post(f"/v1/endpoints/{endpoint_id}/pause"))
    seen = set()
    for event in (
        EVENT,
        {"type": "order.created", "data": {"amount": 150, "x": None}},
        {"type": "message.received", "data": {"amount": 5}},
        {"type": "contact.created", "data": {"tags": ["vip"]}},
    ):
        told = match(api, event, "?limit=100")["data"]
        assert {row["endpoint_id"] for row in told} == made
        event_id = expect.ok(api.post("/v1/events", event), 202)["id"]
        with resources.transaction() as uow:
            engine.fan_out(uow)
            served = set(
                uow.session.scalars(select(Delivery.endpoint_id).where(Delivery.event_id == event_id))
            )
        assert {row["endpoint_id"] for row in told if row["matches"]} == served
        seen |= {row["reason"] for row in told}
        assert 0 < len(served) < len(made)
    assert seen == {None, "not_subscribed", "filter"}


def test_it_is_a_list_like_any_other(api):
    own_type(api)
    assert match(api) == {"data": [], "next_cursor": None}
    newest_first = [create(api, url=f"https://hooks.example.com/{number}") for number in range(7)][::-1]
    for limit in (1, 3, 7, 100):
        found, cursor = [], ""
        while True:
            page = match(api, query=f"?limit={limit}{cursor}")
            found += [row["endpoint_id"] for row in page["data"]]
            assert len(page["data"]) <= limit
            if page["next_cursor"] is None:
                break
            cursor = f"&cursor={page['next_cursor']}"
        assert found == newest_first
    assert [row["url"][-1] for row in match(api)["data"]] == list("6543210")
    for bad in ("0", "101", "x"):
        expect.invalid(api.post(f"{MATCH}?limit={bad}", EVENT), "/limit")
    foreign = base64.urlsafe_b64encode(b"evt_01kjpx8tcmej9svxw1fyydhpy2").decode().rstrip("=")
    for cursor in ("x", foreign):
        expect.problem(api.post(f"{MATCH}?cursor={cursor}", EVENT), 400, "invalid_cursor")


def test_another_workspaces_endpoints_are_not_told(new_api):
    mine, theirs = new_api(), new_api()
    own_type(mine)
    create(theirs)
    assert match(mine)["data"] == []
    expect.invalid(theirs.post(MATCH, EVENT), "/type", code="unknown_event_type")


def test_its_path_is_no_endpoints(api):
    expect.problem(api.get(MATCH), 404, "not_found")
    expect.problem(api.call("PATCH", MATCH, {}), 404, "not_found")
    expect.problem(api.call("DELETE", MATCH), 404, "not_found")
    expect.problem(api.call("PUT", MATCH, {}), 405, "method_not_allowed")
