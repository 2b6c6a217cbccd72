"""Endpoints: made, changed, paused, deleted."""

import json
import time
from typing import Any

from app.deliveries import engine
from tests.api import expect
from tests.conftest import Api

FIELDS = {
    *(
        "id",
        "url",
        "description",
        "status",
        "status_reason",
        "events",
        "event_count",
        "filter",
        "headers",
        "format",
    ),
    *("policy", "created_at", "updated_at", "last_attempt_at", "last_success_at"),
}
POLICY = {
    "retry_schedule": [10, 30, 120, 600, 1800],
    "timeout_seconds": 15,
    "rate_limit": None,
    "max_in_flight": 10,
    "when_failing": "retry",
}
MINIMAL = {"url": "https://hooks.example.com/botbat", "events": ["message.received"]}
MISSING = "/v1/endpoints/ep_01kjpx8tcmej9svxw1fyydhpy2"


def create(api: Api, **fields: Any) -> Any:
    return expect.ok(api.post("/v1/endpoints", MINIMAL | fields), 201)


def patch(api: Api, endpoint_id: str, **fields: Any) -> Any:
    return api.call("PATCH", f"/v1/endpoints/{endpoint_id}", fields)


def listed(api: Api, query: str = "") -> Any:
    return expect.ok(api.get(f"/v1/endpoints{query}"))["data"]


def assert_refused(api: Api, pointers: str | list[str], **fields: Any) -> None:
    """These fields are no endpoint's, neither of a new one nor of one that is there."""
    pointers = [pointers] if isinstance(pointers, str) else pointers
    before = listed(api)
    expect.invalid(api.post("/v1/endpoints", MINIMAL | fields), *pointers)
    for endpoint in before[-1:]:
        expect.invalid(patch(api, endpoint["id"], **fields), *pointers)
    assert listed(api) == before


def test_an_endpoint_is_active_at_once(api):
    made = create(api)
    assert set(made) == {*FIELDS, "signing_secret"}
    assert made["id"].startswith("ep_")
    assert made["status"] == "active"
    assert made["created_at"] == made["updated_at"]
    assert {name: made[name] for name in FIELDS - {"id", "created_at", "updated_at"}} == {
        "url": "https://hooks.example.com/botbat",
        "description": "",
        "status": "active",
        "status_reason": None,
        "events": ["message.received"],
        "event_count": 1,
        "filter": None,
        "headers": {},
        "format": "default",
        "policy": POLICY,
        "last_attempt_at": None,
        "last_success_at": None,
    }
    assert expect.ok(api.get(f"/v1/endpoints/{made['id']}")) == {name: made[name] for name in FIELDS}
    assert listed(api) == [{name: made[name] for name in FIELDS}]


def test_everything_about_an_endpoint_can_be_said_at_once(api):
    given = {
        "description": "Our warehouse \N{FIRE}",
        "events": ["contact.created", "message.*", "*"],
        "filter": {"path": "/data/channel", "op": "eq", "value": "whatsapp"},
        "headers": {"X-Tenant": "acme", "Authorization": "Bearer abc"},
        "format": "default",
        "policy": {
            "retry_schedule": [1, 2],
            "timeout_seconds": 30,
            "rate_limit": {"count": 5, "seconds": 1},
            "max_in_flight": 100,
            "when_failing": "retry",
        },
    }
    made = create(api, **given)
    assert {name: made[name] for name in given} == given | {
        "headers": {"X-Tenant": "***", "Authorization": "***"}
    }
    assert made["event_count"] == 3


def test_a_change_touches_what_it_names(api):
    made = create(api, description="Old", headers={"X-A": "1"}, policy={"timeout_seconds": 5})
    time.sleep(0.005)
    for change in (
        {"description": "New"},
        {"url": "https://other.example.com/"},
        {"events": ["*"]},
        {"filter": {"path": "/type", "op": "exists"}},
        {"filter": None},
        {"format": "default"},
        {},
    ):
        before = expect.ok(api.get(f"/v1/endpoints/{made['id']}"))
        after = expect.ok(patch(api, made["id"], **change))
        assert after == {**before, **change, "updated_at": after["updated_at"]}
        assert after["updated_at"] > made["updated_at"]
        assert expect.ok(api.get(f"/v1/endpoints/{made['id']}")) == after


def test_changes_of_the_policy_are_merged(api):
    made = create(api, policy={"timeout_seconds": 5, "rate_limit": {"count": 1, "seconds": 60}})
    changed = expect.ok(patch(api, made["id"], policy={"max_in_flight": 1}))
    wanted = {**POLICY, "timeout_seconds": 5, "max_in_flight": 1, "rate_limit": {"count": 1, "seconds": 60}}
    assert changed["policy"] == wanted
    changed = expect.ok(patch(api, made["id"], policy={"rate_limit": None, "retry_schedule": []}))
    assert changed["policy"] == {**wanted, "rate_limit": None, "retry_schedule": []}


def test_the_limits_of_a_policy(api):
    create(api)
    for policy in (
        *({"retry_schedule": [0]}, {"retry_schedule": [86_400] * 16}),
        *({"timeout_seconds": 1}, {"timeout_seconds": 30}, {"max_in_flight": 1}, {"max_in_flight": 100}),
        *({"rate_limit": {"count": 1, "seconds": 1}}, {"rate_limit": {"count": 100_000, "seconds": 86_400}}),
    ):
        assert create(api, policy=policy)["policy"] == POLICY | policy
    bad: list[tuple[Any, str]] = [
        ({"retry_schedule": [86_401]}, "/policy/retry_schedule/0"),
        ({"retry_schedule": [10, -1]}, "/policy/retry_schedule/1"),
        ({"retry_schedule": [10, 1.5]}, "/policy/retry_schedule/1"),
        ({"retry_schedule": ["10"]}, "/policy/retry_schedule/0"),
        ({"retry_schedule": [True]}, "/policy/retry_schedule/0"),
        ({"retry_schedule": [None]}, "/policy/retry_schedule/0"),
        ({"retry_schedule": [1] * 17}, "/policy/retry_schedule"),
        ({"retry_schedule": None}, "/policy/retry_schedule"),
        ({"retry_schedule": 10}, "/policy/retry_schedule"),
        ({"timeout_seconds": 0}, "/policy/timeout_seconds"),
        ({"timeout_seconds": 31}, "/policy/timeout_seconds"),
        ({"timeout_seconds": 1.5}, "/policy/timeout_seconds"),
        ({"timeout_seconds": 10**30}, "/policy/timeout_seconds"),
        ({"timeout_seconds": None}, "/policy/timeout_seconds"),
        ({"max_in_flight": 0}, "/policy/max_in_flight"),
        ({"max_in_flight": 101}, "/policy/max_in_flight"),
        ({"max_in_flight": "10"}, "/policy/max_in_flight"),
        ({"rate_limit": {"count": 0, "seconds": 1}}, "/policy/rate_limit/count"),
        ({"rate_limit": {"count": 1, "seconds": 0}}, "/policy/rate_limit/seconds"),
        ({"rate_limit": {"count": 1}}, "/policy/rate_limit/seconds"),
        ({"rate_limit": {"count": 1, "seconds": 1, "burst": 1}}, "/policy/rate_limit/burst"),
        ({"rate_limit": 5}, "/policy/rate_limit"),
        ({"when_failing": "give_up"}, "/policy/when_failing"),
        ({"retries": 5}, "/policy/retries"),
        ([], "/policy"),
        (None, "/policy"),
    ]
    for policy, pointer in bad:
        assert_refused(api, pointer, policy=policy)


def test_subscriptions(api):
    api.call("PUT", "/v1/event-types/order.created", {})
    for events in (
        ["*"],
        ["message.*"],
        ["order.created"],
        ["order.*"],
        ["not.yet.*"],
        ["message.read", "*"],
    ):
        assert create(api, events=events)["events"] == events
    assert create(api, events=["*", "message.read", "*"])["events"] == ["*", "message.read"]

    bad: list[tuple[Any, str | list[str]]] = [
        ([], "/events"),
        (None, "/events"),
        ("*", "/events"),
        ({}, "/events"),
        (["order.deleted"], "/events/0"),
        (["message.read", "nope", "message.sent", "*"], ["/events/1", "/events/2"]),
        (["*", "*", "message.read", "message.read", "nope"], "/events/4"),
        (["message"], "/events/0"),
        (["MESSAGE.READ"], "/events/0"),
        (["message.**"], "/events/0"),
        (["mess*"], "/events/0"),
        (["*.read"], "/events/0"),
        ([".*"], "/events/0"),
        (["a b.*"], "/events/0"),
        (["x" * 100 + ".*"], "/events/0"),
        (["**"], "/events/0"),
        ([""], "/events/0"),
        ([None], "/events/0"),
        ([5], "/events/0"),
        ([["*"]], "/events/0"),
        (["*"] * 201, "/events"),
    ]
    for events, pointers in bad:
        assert_refused(api, pointers, events=events)


def nested(levels: int, tree: Any) -> Any:
    return {"not": nested(levels - 1, tree)} if levels else tree


def test_a_filter_is_a_tree_of_conditions(api):
    leaf = {"path": "/data/amount", "op": "gt", "value": 100}
    for tree in (
        *(leaf, {"all": [leaf, {"not": leaf}]}, {"any": [{"path": "", "op": "exists"}]}),
        *(nested(9, leaf), {"all": [leaf] * 100}),
    ):
        assert create(api, filter=tree)["filter"] == tree
    bad: list[tuple[Any, str | list[str]]] = [
        ([], "/filter"),
        ("x", "/filter"),
        ({}, "/filter"),
        ({"all": []}, "/filter/all"),
        ({"all": leaf}, "/filter/all"),
        ({"any": [leaf, {"op": "eq", "value": 1}]}, "/filter/any/1/path"),
        ({"not": {"path": "data", "op": "eq", "value": 1}}, "/filter/not/path"),
        ({"path": "/a", "op": "like", "value": 1}, "/filter/op"),
        ({"path": "/a", "op": "eq"}, "/filter/value"),
        ({"path": "/a", "op": "in", "value": 1}, "/filter/value"),
        ({**leaf, "a/b": 1}, "/filter/a~1b"),
        (nested(10, leaf), "/filter" + "/not" * 10),
        ({"all": [leaf] * 101}, "/filter"),
        ({"path": 5, "op": None}, ["/filter/path", "/filter/op", "/filter/value"]),
    ]
    for tree, pointers in bad[:-1]:
        assert_refused(api, pointers, filter=tree)
    assert_refused(api, ["/filter/path", "/filter/op"], filter=bad[-1][0])


def test_a_filter_may_compare_with_a_long_integer(api):
    tree = {"path": "/data/amount", "op": "eq", "value": 12345678901234567890123}
    endpoint_id = create(api, filter=tree)["id"]
    answer = api.get(f"/v1/endpoints/{endpoint_id}")
    assert json.loads(answer.data)["filter"] == tree  # the test client's own parser ends at 64 bits


def test_descriptions_and_formats(api):
    assert create(api, description="x" * 500)["description"] == "x" * 500
    assert create(api, description="\u00fc\N{FIRE}\n\u202e")["description"] == "\u00fc\N{FIRE}\n\u202e"
    bad: Any
    for bad in ("x" * 501, None, 5, []):
        assert_refused(api, "/description", description=bad)
    for bad in ("xml", "", None, 5):
        assert_refused(api, "/format", format=bad)


def test_unknown_and_absent_fields_are_named(api):
    create(api)
    assert_refused(api, "/secret", secret="x" * 20)
    assert_refused(api, ["/id", "/status"], id="ep_1", status="paused")
    expect.invalid(api.post("/v1/endpoints", {}), "/url", "/events")
    expect.invalid(api.post("/v1/endpoints"), "/url", "/events")
    for body in ("[]", '"x"', "5", "null"):
        expect.invalid(api.post("/v1/endpoints", data=body, content_type="application/json"), "")
    assert len(listed(api)) == 1


def test_a_refused_change_changes_nothing(api):
    made = create(api)
    before = api.get(f"/v1/endpoints/{made['id']}").json
    answer = patch(api, made["id"], description="New", url="https://new.example.com/", events=["nope"])
    expect.invalid(answer, "/events/0")
    assert api.get(f"/v1/endpoints/{made['id']}").json == before


def test_pause_and_resume(api):
    ids = [create(api)["id"] for _ in range(2)]
    for action, status in (
        ("pause", "paused"),
        ("pause", "paused"),
        ("resume", "active"),
        ("resume", "active"),
    ):
        endpoint = expect.ok(api.post(f"/v1/endpoints/{ids[0]}/{action}"))
        assert set(endpoint) == FIELDS
        assert endpoint["status"] == status
        assert expect.ok(api.get(f"/v1/endpoints/{ids[0]}"))["status"] == status
    api.post(f"/v1/endpoints/{ids[0]}/pause")
    assert [endpoint["id"] for endpoint in listed(api, "?status=paused")] == [ids[0]]
    assert [endpoint["id"] for endpoint in listed(api, "?status=active")] == [ids[1]]
    assert [endpoint["id"] for endpoint in listed(api, "?status=paused,active")] == ids[::-1]
    for status in ("", "gone", "active,,paused"):
        expect.invalid(api.get(f"/v1/endpoints?status={status}"), "/status")
    expect.invalid(api.post(f"/v1/endpoints/{ids[0]}/resume", {"now": True}), "/now")
    assert api.get(f"/v1/endpoints/{ids[0]}").json["status"] == "paused"


def test_deleting_cancels_what_is_pending_and_keeps_the_log(api, resources):
    ids = [create(api)["id"] for _ in range(2)]
    event = api.post("/v1/events", {"type": "message.received", "data": {}}).json
    with resources.transaction() as uow:
        engine.fan_out(uow)

    answer = api.call("DELETE", f"/v1/endpoints/{ids[0]}")
    assert (answer.status_code, answer.data) == (204, b"")
    assert {
        delivery["endpoint_id"]: (delivery["status"], delivery["next_attempt_at"] is None)
        for delivery in api.get(f"/v1/events/{event['id']}").json["deliveries"]
    } == {ids[0]: ("canceled", True), ids[1]: ("pending", False)}
    assert [endpoint["id"] for endpoint in listed(api)] == [ids[1]]


def test_an_endpoint_that_is_gone_is_not_found(api):
    gone = f"/v1/endpoints/{create(api)['id']}"
    api.call("DELETE", gone)
    for path in (gone, MISSING, "/v1/endpoints/%00", "/v1/endpoints/" + "x" * 5000):
        for method, suffix in (
            *(("GET", ""), ("PATCH", ""), ("DELETE", ""), ("GET", "/secret"), ("GET", "/attempts")),
            *(("POST", "/pause"), ("POST", "/resume")),
        ):
            expect.problem(api.call(method, path + suffix), 404, "not_found")
