"""A workspace sees nothing of another."""

import re
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from app.core.clock import format_time, now
from tests import receivers
from tests.api import expect
from tests.api.routes import SCOPES, path_of
from tests.conftest import Api

RECOVERY = {"since": format_time(now() - timedelta(minutes=1)), "dry_run": True}


def test_another_workspaces_object_looks_like_one_that_is_not_there(new_api, drain):
    mine, theirs = new_api(), new_api()
    ids = objects_of_every_kind(theirs, drain)
    # PUT makes one of its own under the same name.
    routes = [(method, rule) for method, rule in SCOPES if "<" in rule and method != "PUT"]
    assert {parameter for _, rule in routes for parameter in re.findall(r"<(\w+)>", rule)} == set(ids)
    readable = [path_of(rule, ids) for method, rule in routes if method == "GET"]
    before = [theirs.get(path).json for path in readable]

    for method, rule in routes:
        body: Any = {} if method in ("POST", "PATCH") else None
        if rule.endswith("/recover"):
            body = RECOVERY
        answers = [
            mine.call(method, path, body, headers={"X-Request-Id": "same"})
            for path in (path_of(rule, ids), path_of(rule))
        ]
        expect.problem(answers[0], 404, "not_found")
        assert answers[0].data == answers[1].data, rule
        assert dict(answers[0].headers) == dict(answers[1].headers)

    assert [theirs.get(path).json for path in readable] == before


def objects_of_every_kind(api: Api, drain: Callable[[], int]) -> dict[str, str]:
    api.get("/v1/events")  # so that the first use of the key is noted
    api.call("PUT", "/v1/event-types/order.created", {"description": "Theirs"})
    with receivers.ok() as receiver:
        url = receiver.url.replace("localhost", "127.0.0.1")
        endpoint = expect.ok(api.post("/v1/endpoints", {"url": url, "events": ["order.created"]}), 201)
        event = expect.ok(api.post("/v1/events", {"type": "order.created", "data": {}}), 202)
        drain()
    (attempt,) = expect.ok(api.get(f"/v1/endpoints/{endpoint['id']}/attempts"))["data"]
    recovery = expect.ok(api.post(f"/v1/endpoints/{endpoint['id']}/recover", RECOVERY), 202)
    return {
        "key_id": api.key_id,
        "event_id": event["id"],
        "name": "order.created",
        "endpoint_id": endpoint["id"],
        "delivery_id": attempt["delivery_id"],
        "attempt_id": attempt["id"],
        "recovery_id": recovery["id"],
    }


def test_lists_show_the_workspaces_own_alone(new_api, drain):
    mine, theirs = new_api(), new_api()
    ids = objects_of_every_kind(theirs, drain)
    for path in ("/v1/events", "/v1/endpoints", "/v1/deliveries"):
        assert len(theirs.get(path).json["data"]) == 1
        assert mine.get(path).json == {"data": [], "next_cursor": None}
    for name in ("endpoint_id", "event_id"):
        assert mine.get(f"/v1/deliveries?{name}={ids[name]}").json["data"] == []
    assert [key["id"] for key in mine.get("/v1/api-keys").json["data"]] == [mine.key_id]
    assert all(entry["built_in"] for entry in mine.get("/v1/event-types").json["data"])


def test_a_type_of_another_workspace_is_unknown(new_api):
    mine, theirs = new_api(), new_api()
    theirs.call("PUT", "/v1/event-types/order.created", {})
    expect.invalid(
        mine.post("/v1/events", {"type": "order.created", "data": {}}), "/type", code="unknown_event_type"
    )
    endpoint = {"url": "https://hooks.example.com", "events": ["order.created"]}
    expect.invalid(mine.post("/v1/endpoints", endpoint), "/events/0")


def test_workspaces_name_the_same_things_alike(new_api):
    mine, theirs = new_api(), new_api()
    event = {"type": "contact.created", "data": {}, "external_id": "1"}
    first = expect.ok(mine.post("/v1/events", event), 202)
    second = expect.ok(theirs.post("/v1/events", event), 202)
    assert first["id"] != second["id"]
    for api, description in ((mine, "Mine"), (theirs, "Theirs")):
        api.call("PUT", "/v1/event-types/order.created", {"description": description})
    assert mine.get("/v1/event-types/order.created").json["description"] == "Mine"
    assert theirs.call("DELETE", "/v1/event-types/order.created").status_code == 204
    assert mine.get("/v1/event-types/order.created").json["description"] == "Mine"
