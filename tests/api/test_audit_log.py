"""The audit log: every change that a workspace's keys make, told once, to that workspace alone, without secrets."""

import re
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import event, text, update

from app.core.clock import format_time, now
from app.endpoints.models import Endpoint
from app.rest.edge import _SMALL_BODY_BYTES
from app.rest.schemas import Timestamp
from tests.api import expect
from tests.api.steps import another_key, with_key
from tests.api.test_pagination import walk
from tests.conftest import Api

URL = "https://hooks.example.com/botbat"
ENDPOINT = {"url": URL, "events": ["message.received"]}
MISSING = "/v1/endpoints/ep_01kjpx8tcmej9svxw1fyydhpy2"
FIELDS = {"id", "action", "actor", "resource", "changed", "address", "request_id", "created_at"}


def log(api: Api, query: str = "") -> list[Any]:
    """Give the log's entries, without those of how the workspace and its keys came to be."""
    found = expect.ok(api.get(f"/v1/audit-log?limit=100{query}"))["data"]
    return [entry for entry in found if entry["resource"]["type"] in ("endpoint", "event_type")]


def told(api: Api, query: str = "") -> list[tuple[str, list[str]]]:
    """Give (action, changed) of each entry, the oldest first."""
    return [(entry["action"], entry["changed"]) for entry in reversed(log(api, query))]


def endpoint(api: Api, **fields: Any) -> str:
    return str(expect.ok(api.post("/v1/endpoints", ENDPOINT | fields), 201)["id"])


def patch(api: Api, endpoint_id: str, **changes: Any) -> Any:
    return expect.ok(api.call("PATCH", f"/v1/endpoints/{endpoint_id}", changes))


def put(api: Api, name: str = "order.created", **fields: Any) -> Any:
    return expect.ok(api.call("PUT", f"/v1/event-types/{name}", fields))


def test_an_entry_says_who_did_what_to_which_when_and_from_where(api):
    made = expect.ok(
        api.post(
            "/v1/endpoints",
            ENDPOINT,
            headers={"X-Request-Id": "my-request"},
            environ_overrides={"REMOTE_ADDR": "2001:db8::7"},
        ),
        201,
    )
    (entry,) = log(api)
    assert set(entry) == FIELDS
    assert re.fullmatch(r"aud_[0-9a-z]{26}", entry.pop("id"))
    assert made["created_at"] <= entry.pop("created_at") <= format_time(now())
    assert entry == {
        "action": "endpoint.created",
        "actor": {"type": "api_key", "id": api.key_id},
        "resource": {"type": "endpoint", "id": made["id"]},
        "changed": [],
        "address": "2001:db8::7",
        "request_id": "my-request",
    }


def test_the_making_of_a_workspace_is_its_first_entry(api):
    first = expect.ok(api.get("/v1/audit-log"))["data"][-1]
    assert first["action"] == "workspace.created"
    assert first["resource"] == {"type": "workspace", "id": api.workspace_id}


def test_every_change_of_an_endpoint_is_told_in_order(api):
    endpoint_id = endpoint(api)
    patch(api, endpoint_id, description="Mine")
    for verb in ("pause", "resume"):
        expect.ok(api.post(f"/v1/endpoints/{endpoint_id}/{verb}"))
    expect.ok(api.get(f"/v1/endpoints/{endpoint_id}/secret"))
    assert api.call("DELETE", f"/v1/endpoints/{endpoint_id}").status_code == 204
    assert told(api) == [
        ("endpoint.created", []),
        ("endpoint.updated", ["description"]),
        ("endpoint.paused", ["status"]),
        ("endpoint.resumed", ["status"]),
        ("endpoint.secret_revealed", []),
        ("endpoint.deleted", []),
    ]
    assert {entry["resource"]["id"] for entry in log(api)} == {endpoint_id}


def test_every_change_of_an_event_type_is_told_in_order(api):
    put(api, description="One")
    put(api, description="Two", example={"id": 1})
    put(api, description="Two", example={"id": True})
    put(api, description="Two", example={"id": True}, schema={"type": "object"})
    assert api.call("DELETE", "/v1/event-types/order.created").status_code == 204
    put(api, description="One")
    assert told(api) == [
        ("event_type.created", []),
        ("event_type.updated", ["description", "example"]),
        ("event_type.updated", ["example"]),
        ("event_type.updated", ["schema"]),
        ("event_type.deleted", []),
        ("event_type.created", []),
    ]
    assert {entry["resource"]["id"] for entry in log(api)} == {"order.created"}


@pytest.mark.parametrize(
    ("change", "changed"),
    [
        ({"url": "https://hooks.example.com/other"}, ["url"]),
        ({"events": ["message.read"]}, ["events"]),
        ({"headers": {"X-One": "2"}}, ["headers"]),
        ({"headers": {"X-One": None}}, ["headers"]),
        ({"signing_secret": "a-secret-of-my-own"}, ["signing_secret"]),
        ({"policy": {"timeout_seconds": 5}}, ["policy"]),
        ({"filter": {"path": "/data/x", "op": "eq", "value": 2}}, ["filter"]),
        ({"filter": {"path": "/data/x", "op": "eq", "value": True}}, ["filter"]),
        ({"filter": None}, ["filter"]),
        ({"url": URL, "description": "New", "policy": {"max_in_flight": 3}}, ["description", "policy"]),
        # Nothing of these is other than before.
        ({}, []),
        ({"url": URL, "events": ["message.received"], "description": ""}, []),
        ({"headers": {"X-One": "1"}}, []),
        ({"headers": {"X-Two": None}}, []),
        ({"policy": {"timeout_seconds": 15}}, []),
        ({"filter": {"path": "/data/x", "op": "eq", "value": 1}}, []),
    ],
    ids=str,
)
def test_fields_are_named_that_became_other_than_before(api, change, changed):
    endpoint_id = endpoint(api, headers={"X-One": "1"}, filter={"path": "/data/x", "op": "eq", "value": 1})
    answer = patch(api, endpoint_id, **change)
    assert told(api)[1:] == ([("endpoint.updated", changed)] if changed else [])
    # What is said to have changed did: the answer and what is kept are the same.
    assert str(expect.ok(api.get(f"/v1/endpoints/{endpoint_id}"))) == str(answer)


def test_what_changes_nothing_is_not_told(api):
    endpoint_id = endpoint(api)
    put(api, description="Same", schema={"type": "object"})
    before = log(api)
    put(api, description="Same", schema={"type": "object"})
    expect.ok(api.post(f"/v1/endpoints/{endpoint_id}/resume"))
    assert log(api) == before
    for _ in range(3):
        expect.ok(api.post(f"/v1/endpoints/{endpoint_id}/pause"))
    assert told(api)[len(before) :] == [("endpoint.paused", ["status"])]


def test_what_is_refused_is_not_told(api, resources):
    endpoint_id = endpoint(api)
    _id, key = another_key(resources, api, scopes=["endpoints:read", "event_types:read"])
    reader = with_key(api, key)
    before = log(api)

    expect.invalid(api.post("/v1/endpoints", ENDPOINT | {"url": "http://hooks.example.com"}), "/url")
    path = f"/v1/endpoints/{endpoint_id}"
    expect.invalid(api.call("PATCH", path, {"description": "Mine", "url": "https://127.0.0.1/"}), "/url")
    problem = api.call("PUT", "/v1/event-types/order.created", {"schema": {"type": "no such"}})
    expect.invalid(problem, "/schema")
    expect.problem(api.call("PUT", "/v1/event-types/message.read", {}), 409, "built_in_event_type")
    expect.problem(api.call("DELETE", "/v1/event-types/no.such"), 404, "not_found")
    for method, verb in (("DELETE", ""), ("PATCH", ""), ("POST", "/pause"), ("GET", "/secret")):
        body: Any = {} if method == "PATCH" else None
        expect.problem(api.call(method, MISSING + verb, body), 404, "not_found")
        expect.problem(reader.call(method, path + verb, body), 403, "insufficient_scope")

    assert log(api) == before


def test_a_secret_that_could_not_be_shown_was_not_revealed(api, resources):
    """Its GET is one transaction as a whole, unlike others."""
    endpoint_id = endpoint(api)
    with resources.transaction() as uow:
        uow.session.execute(update(Endpoint).values(signing_secret="k1:not sealed by us"))
    expect.problem(api.get(f"/v1/endpoints/{endpoint_id}/secret"), 500, "internal_error")
    assert told(api) == [("endpoint.created", [])]


def test_showing_a_secret_waits_for_other_writers_where_reading_does_not(api, resources):
    """On SQLite a transaction that begins by reading and then writes fails when another one wrote in between."""
    if not resources.database.is_sqlite:
        pytest.skip("PostgreSQL's writers wait for rows, whenever they come to them")
    endpoint_id = endpoint(api)
    begun: list[str] = []
    event.listen(
        resources.database.engine,
        "before_cursor_execute",
        lambda *call: begun.append(call[2]) if call[2].startswith("BEGIN") else None,
    )
    expect.ok(api.get(f"/v1/endpoints/{endpoint_id}"))
    assert set(begun) == {"BEGIN"}
    begun.clear()
    expect.ok(api.get(f"/v1/endpoints/{endpoint_id}/secret"))
    assert set(begun) == {"BEGIN IMMEDIATE"}


def test_a_replay_is_not_told_again(api):
    endpoint_id = endpoint(api)
    for path, body in (("/v1/endpoints", ENDPOINT), (f"/v1/endpoints/{endpoint_id}/pause", None)):
        for _ in range(3):
            answer = api.post(path, body, headers={"Idempotency-Key": path})
            assert answer.status_code in (200, 201)
    assert told(api) == [
        ("endpoint.created", []),
        ("endpoint.created", []),
        ("endpoint.paused", ["status"]),
    ]
    assert {entry["actor"]["id"] for entry in log(api)} == {api.key_id}


def test_who_sends_a_large_body_is_told_too(api):
    """It is read when the key is known already, and in another transaction."""
    put(api, description="Large", example={"text": "x" * _SMALL_BODY_BYTES})
    (entry,) = log(api)
    assert entry["actor"] == {"type": "api_key", "id": api.key_id}
    assert entry["address"] == "127.0.0.1"
    assert entry["request_id"]


def test_no_entry_holds_a_secret_nor_any_other_value(api, resources):
    canary = "canary-0123456789abcdef"
    fields: dict[str, Any] = {
        "url": f"https://hooks.example.com/{canary}?token={canary}",
        "description": canary,
        "headers": {"Authorization": f"Bearer {canary}", f"X-{canary}": "1"},
        "filter": {"path": f"/data/{canary}", "op": "eq", "value": canary},
        "signing_secret": canary,
    }
    endpoint_id = endpoint(api, **fields)
    patch(api, endpoint_id, **(fields | {"signing_secret": canary * 2, "headers": {f"X-{canary}": None}}))
    secret = expect.ok(api.get(f"/v1/endpoints/{endpoint_id}/secret"))["signing_secret"]
    assert secret == canary * 2
    kept = endpoint(api)
    generated = expect.ok(api.get(f"/v1/endpoints/{kept}/secret"))["signing_secret"]
    put(api, description=canary, schema={"required": [canary]}, example={canary: canary})
    put(api, description="", schema={"required": []}, example={"id": canary})
    api.call("DELETE", f"/v1/endpoints/{endpoint_id}")
    api.call("DELETE", "/v1/event-types/order.created")
    assert len(log(api)) == 9

    with resources.database.engine.connect() as connection:
        rows = connection.execute(text("SELECT * FROM audit_entries")).all()
    assert rows
    for value in (canary, generated, api.key):
        assert value not in str(rows)
        assert value not in str(log(api))


@pytest.fixture
def busy(api, resources) -> tuple[Api, Api, list[str]]:
    """Give two keys of a workspace and its endpoints: the first key made both, the second changed the second."""
    key_id, key = another_key(resources, api)
    other = with_key(api, key, key_id)
    ids = [endpoint(api), endpoint(api)]
    patch(other, ids[1], description="Changed")
    put(other, description="Theirs")
    return api, other, ids


def test_filters_narrow_the_log(busy):
    api, other, ids = busy
    created, updated, put_ = "endpoint.created", "endpoint.updated", "event_type.created"

    def actions(query: str) -> list[str]:
        return [action for action, _changed in told(api, query)]

    assert actions("") == [created, created, updated, put_]
    assert actions(f"&actor={api.key_id}") == [created, created]
    assert actions(f"&actor={other.key_id}") == [updated, put_]
    assert actions("&actor=api_key") == [created, created, updated, put_]
    assert actions("&actor=user") == []
    assert actions("&actor=key_01kjpx8tcmej9svxw1fyydhpy2") == []
    assert actions(f"&action={created}") == [created, created]
    assert actions("&action=endpoint") == []
    assert actions(f"&resource={ids[0]}") == [created]
    assert actions(f"&resource={ids[1]}") == [created, updated]
    assert actions("&resource=order.created") == [put_]
    assert actions(f"&resource={ids[1]}&action={updated}&actor={other.key_id}") == [updated]
    assert actions(f"&resource={ids[1]}&action={updated}&actor={api.key_id}") == []


def test_what_was_done_without_a_key_is_found_by_its_kind(api):
    everything = expect.ok(api.get("/v1/audit-log"))["data"]
    system = expect.ok(api.get("/v1/audit-log?actor=system"))["data"]
    assert system == [entry for entry in everything if entry["actor"] == {"type": "system", "id": None}]
    assert system
    assert expect.ok(api.get("/v1/audit-log?actor=cli"))["data"] == []


def test_a_span_of_time_narrows_the_log(api):
    endpoint(api)
    (entry,) = log(api)
    at, later = entry["created_at"], a_second_after(entry)
    assert log(api, f"&since={at}") == log(api, f"&until={later}") == [entry]
    assert log(api, f"&since={at}&until={later}") == [entry]
    assert log(api, f"&since={later}") == log(api, f"&until={at}") == []
    expect.invalid(api.get("/v1/audit-log?since=yesterday"), "/since")
    expect.invalid(api.get("/v1/audit-log?until=2026-01-31"), "/until")


def a_second_after(entry: Any) -> str:
    return format_time(Timestamp().deserialize(entry["created_at"]) + timedelta(seconds=1))


def test_the_log_is_walked_by_cursors_while_it_grows(api):
    ids = [endpoint(api) for _ in range(12)]
    whole = [entry["id"] for entry in expect.ok(api.get("/v1/audit-log?limit=100"))["data"]]
    assert whole == sorted(whole, reverse=True)
    assert walk(api, "/v1/audit-log", 5, meanwhile=lambda: endpoint(api)) == whole
    filtered = f"/v1/audit-log?action=endpoint.created&actor={api.key_id}"
    found: list[Any] = walk(api, filtered, 5, field="resource")
    assert [resource["id"] for resource in found[-12:]] == ids[::-1]
    cursor = expect.ok(api.get("/v1/endpoints?limit=1"))["next_cursor"]
    expect.problem(api.get(f"/v1/audit-log?cursor={cursor}"), 400, "invalid_cursor")
    expect.invalid(api.get("/v1/audit-log?limit=101"), "/limit")


def test_another_workspaces_log_is_never_seen(new_api):
    mine, theirs = new_api(), new_api()
    endpoint_id = endpoint(theirs)
    put(theirs, description="Theirs")
    first = expect.ok(theirs.get("/v1/audit-log?limit=1"))
    seen = expect.ok(mine.get("/v1/audit-log?limit=100"))["data"]
    assert not {entry["id"] for entry in seen} & {
        entry["id"] for entry in expect.ok(theirs.get("/v1/audit-log?limit=100"))["data"]
    }
    for query in (
        f"resource={endpoint_id}",
        "resource=order.created",
        f"resource={theirs.workspace_id}",
        f"actor={theirs.key_id}",
        "actor=api_key",
        "action=endpoint.created",
    ):
        assert expect.ok(mine.get(f"/v1/audit-log?{query}"))["data"] == [], query
    # A cursor of theirs is a place in time, and shows what is older of mine alone.
    older = expect.ok(mine.get(f"/v1/audit-log?limit=100&cursor={first['next_cursor']}"))["data"]
    assert all(entry in seen for entry in older)


def test_the_log_has_a_scope_of_its_own_and_cannot_be_written(api, resources):
    _id, key = another_key(resources, api, scopes=["audit_log:read"])
    expect.ok(with_key(api, key).get("/v1/audit-log"))
    _id, key = another_key(resources, api, scopes=["endpoints:write", "api_keys:write", "audit_log:write"])
    expect.problem(with_key(api, key).get("/v1/audit-log"), 403, "insufficient_scope")
    for method in ("POST", "PUT", "PATCH", "DELETE"):
        expect.problem(api.call(method, "/v1/audit-log"), 405, "method_not_allowed")


def test_the_document_tells_of_the_log(api):
    operation = expect.ok(api.client.get("/openapi.json"))["paths"]["/v1/audit-log"]["get"]
    assert operation["x-required-scope"] == "audit_log:read"
    names = {parameter["name"] for parameter in operation["parameters"]}
    assert names == {"actor", "action", "resource", "since", "until", "limit", "cursor"}
    schema = operation["responses"]["200"]["content"]["application/json"]["schema"]
    assert schema == {"$ref": "#/components/schemas/AuditEntryObjectList"}
