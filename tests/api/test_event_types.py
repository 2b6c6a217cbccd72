"""The catalogue of event types, and what a workspace adds to it."""

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

from sqlalchemy import insert

from app.events.catalogue import BUILT_IN
from app.events.models import CustomEventType
from tests.api import expect
from tests.conftest import Api

FIELDS = {"name", "description", "schema", "example", "built_in"}
ORDER = {
    "description": "An order was placed.",
    "schema": {
        "type": "object",
        "required": ["id"],
        "properties": {"id": {"type": "string"}, "a/b": {"items": {"type": "integer"}}},
        "additionalProperties": False,
    },
    "example": {"id": "o-1"},
}


def put(api: Api, name: str, body: Any = None) -> Any:
    return api.call("PUT", f"/v1/event-types/{name}", body)


def test_the_built_in_types_are_there_from_the_start(api):
    entries = expect.ok(api.get("/v1/event-types"))
    assert entries["next_cursor"] is None
    assert [entry["name"] for entry in entries["data"]] == [
        *("message.received", "message.delivered", "message.read"),
        *("conversation.created", "conversation.waiting", "conversation.closed"),
        *("contact.created", "contact.updated", "campaign.completed"),
        *("api_key.expiring", "api_key.expired"),
        *("endpoint.failing", "endpoint.recovered", "endpoint.disabled"),
    ]
    for entry in entries["data"]:
        assert set(entry) == FIELDS
        assert entry["built_in"] is True
        assert entry["description"]
        assert entry["schema"]["type"] == "object"
        assert entry["example"]
        assert expect.ok(api.get(f"/v1/event-types/{entry['name']}")) == entry


def test_a_workspace_adds_a_type_of_its_own(api):
    made = expect.ok(put(api, "order.created", ORDER))
    assert made == {"name": "order.created", **ORDER, "built_in": False}
    assert expect.ok(api.get("/v1/event-types/order.created")) == made
    assert api.get("/v1/event-types").json["data"][-1] == made
    expect.ok(api.post("/v1/events", {"type": "order.created", "data": {"id": "o-2"}}), 202)


def test_everything_about_a_type_may_be_absent(api):
    for body in (None, {}, {"description": "", "schema": None, "example": None}):
        made = expect.ok(put(api, "order.created", body))
        assert made == {
            "name": "order.created",
            "description": "",
            "schema": None,
            "example": None,
            "built_in": False,
        }
    expect.ok(api.post("/v1/events", {"type": "order.created", "data": {"any": "thing"}}), 202)


def test_putting_a_type_again_replaces_the_whole_of_it(api):
    put(api, "order.created", ORDER)
    assert expect.ok(put(api, "order.created", {"description": "Other"}))["schema"] is None
    expect.ok(api.post("/v1/events", {"type": "order.created", "data": {"free": 1}}), 202)
    put(api, "order.created", ORDER)
    answer = api.post("/v1/events", {"type": "order.created", "data": {"free": 1}})
    expect.invalid(answer, "/data", code="payload_invalid")
    assert len(api.get("/v1/event-types").json["data"]) == len(BUILT_IN) + 1


def test_the_schema_of_an_own_type_names_the_faults_of_data(api):
    put(api, "order.created", ORDER)
    for data, pointers in (
        ({}, ["/data"]),
        ({"id": 5}, ["/data/id"]),
        ({"id": "1", "a/b": [1, "2", None]}, ["/data/a~1b/1", "/data/a~1b/2"]),
        ({"id": "1", "b": 1}, ["/data"]),
    ):
        answer = api.post("/v1/events", {"type": "order.created", "data": data})
        errors = expect.invalid(answer, *pointers, code="payload_invalid")
        assert {error["code"] for error in errors} == {"schema"}


def test_no_more_than_twenty_faults_are_told(api):
    put(api, "order.created", {"schema": {"additionalProperties": False, "items": False}})
    put(api, "list.created", {"schema": {"properties": {"all": {"items": {"type": "string"}}}}})
    answer = api.post("/v1/events", {"type": "list.created", "data": {"all": list(range(1000))}})
    assert len(expect.problem(answer, 422, "payload_invalid")["errors"]) == 20


def test_true_and_false_are_schemas(api):
    put(api, "never.happens", {"schema": False})
    assert api.get("/v1/event-types/never.happens").json["schema"] is False
    expect.problem(api.post("/v1/events", {"type": "never.happens", "data": {}}), 422, "payload_invalid")
    put(api, "always.happens", {"schema": True})
    expect.ok(api.post("/v1/events", {"type": "always.happens", "data": {}}), 202)


def test_what_is_no_schema(api):
    schemas: list[Any] = [
        *(5, 1.5, "object", '{"type": "object"}', [], [{}]),
        *({"type": "nothing"}, {"properties": []}, {"pattern": "("}, {"required": "id"}, {"minimum": "1"}),
        *({"$ref": "#/$defs/missing"}, {"description": "x" * 65 * 1024}),
        # Would make requests of a customer's choosing.
        *(
            {"$ref": "https://example.com/schema.json"},
            {"$ref": "http://127.0.0.1:9/x"},
            {"$ref": "file:///etc/passwd"},
        ),
        {"properties": {"a": {"$ref": "other.json#/x"}}},
    ]
    for schema in schemas:
        expect.invalid(put(api, "order.created", {"schema": schema}), "/schema")
    expect.problem(api.get("/v1/event-types/order.created"), 404, "not_found")


def test_a_schema_asks_nobody_and_reads_no_file(api, tmp_path):
    asked: list[str] = []

    class Schemas(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, *_args: Any) -> None: ...

    (tmp_path / "schema.json").write_text("{}")
    with HTTPServer(("127.0.0.1", 0), Schemas) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        for reference in (
            f"http://127.0.0.1:{server.server_port}/schema.json",
            (tmp_path / "schema.json").as_uri(),
        ):
            for schema in ({"$ref": reference}, {"$schema": reference}, {"$dynamicRef": reference}):
                answer = put(api, "order.created", {"schema": {**schema, "type": "object"}})
                if answer.status_code == 200:
                    answer = api.post("/v1/events", {"type": "order.created", "data": {}})
                assert answer.status_code in (202, 422)
                assert ("$ref" in schema) <= (answer.status_code == 422)
        server.shutdown()
        thread.join()
    assert asked == []


def test_schemas_that_would_never_end(api):
    doubling = {f"d{level}": {"allOf": [{"$ref": f"#/$defs/d{level + 1}"}] * 2} for level in range(40)}
    for schema in (
        {"$ref": "#"},
        {"properties": {"a": {"$ref": "#"}}},
        {"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"},
        {"$defs": {**doubling, "d40": {"type": "object"}}, "$ref": "#/$defs/d0"},
    ):
        expect.invalid(put(api, "order.created", {"schema": schema}), "/schema")
    for pattern in ("^(a+)+$", "^(?=(a+)+b)(a|aa)+\\1$"):
        expect.ok(put(api, "order.created", {"schema": {"properties": {"a": {"pattern": pattern}}}}))
        answer = api.post("/v1/events", {"type": "order.created", "data": {"a": "a" * 60 + "!"}})
        expect.problem(answer, 422, "payload_invalid")


def test_a_schema_may_refer_to_its_own_parts(api):
    line = {"type": "object", "properties": {"sku": {"$ref": "#/$defs/a~1b"}}}
    schema = {"$defs": {"line": line, "a/b": {"type": "string"}}, "properties": {}}
    schema["properties"] = {"first": {"$ref": "#/$defs/line"}, "rest": {"items": {"$ref": "#/$defs/line"}}}
    expect.ok(put(api, "order.created", {"schema": schema}))
    data = {"first": {"sku": 1}, "rest": [{"sku": "1"}, {"sku": 2}]}
    answer = api.post("/v1/events", {"type": "order.created", "data": data})
    expect.invalid(answer, "/data/first/sku", "/data/rest/1/sku", code="payload_invalid")


def test_the_example_matches_the_schema(api):
    answer = put(api, "order.created", {**ORDER, "example": {"id": 5}})
    expect.invalid(answer, "/example/id", code="payload_invalid")
    example: Any
    for example in ([], "x", 5):
        expect.invalid(put(api, "order.created", {"example": example}), "/example")
    expect.problem(api.get("/v1/event-types/order.created"), 404, "not_found")


def test_long_integers_stay_exact_in_schema_and_example(api):
    long = 12345678901234567890123
    body = {"schema": {"properties": {"a": {"maximum": long}}}, "example": {"a": long}}
    for answer in (put(api, "order.created", body), api.get("/v1/event-types/order.created")):
        expect.ok(answer)
        shown = json.loads(answer.data)  # the test client's own parser ends at 64 bits
        assert (shown["schema"], shown["example"]) == (body["schema"], body["example"])
    expect.ok(api.post("/v1/events", {"type": "order.created", "data": {"a": long}}), 202)
    answer = api.post("/v1/events", {"type": "order.created", "data": {"a": long + 1}})
    expect.invalid(answer, "/data/a", code="payload_invalid")


def test_names(api):
    for name in ("order.created", "a.b", "a1.b_2.c", "x." + "y" * 98):
        expect.ok(put(api, name))
        assert expect.ok(api.get(f"/v1/event-types/{name}"))["name"] == name
    for name in (
        *(
            "order",
            "Order.created",
            "order.Created",
            "order..created",
            ".created",
            "order.",
            "1.a",
            "a.1",
            "_a.b",
        ),
        *("order-created.x", "order.*", "*", "a.b%20", "%20a.b", "a.b%0A", "a.%C3%BC", "%D0%B0.b", "a.%ff"),
        *("x." + "y" * 99, "a.b.", "a.b%25", "'", "a.b;"),
    ):
        expect.invalid(put(api, name, {}), "/name")
        expect.problem(api.get(f"/v1/event-types/{name}"), 404, "not_found")
        expect.problem(api.call("DELETE", f"/v1/event-types/{name}"), 404, "not_found")
    for name in ("a.b%00", "%00", "a%2Fb.c", "a.b/c"):
        expect.problem(put(api, name, {}), 404, "not_found")
    assert len(api.get("/v1/event-types").json["data"]) == len(BUILT_IN) + 4


def test_built_in_types_cannot_be_changed(api):
    for name in BUILT_IN:
        expect.problem(put(api, name, {"description": "Mine"}), 409, "built_in_event_type")
        expect.problem(api.call("DELETE", f"/v1/event-types/{name}"), 409, "built_in_event_type")
    assert len(api.get("/v1/event-types").json["data"]) == len(BUILT_IN)


def test_a_type_that_is_deleted_is_unknown_and_its_events_stay(api):
    put(api, "order.created")
    event = api.post("/v1/events", {"type": "order.created", "data": {}}).json
    answer = api.call("DELETE", "/v1/event-types/order.created")
    assert (answer.status_code, answer.data) == (204, b"")

    expect.problem(api.get("/v1/event-types/order.created"), 404, "not_found")
    expect.problem(api.call("DELETE", "/v1/event-types/order.created"), 404, "not_found")
    answer = api.post("/v1/events", {"type": "order.created", "data": {}})
    expect.invalid(answer, "/type", code="unknown_event_type")
    assert expect.ok(api.get(f"/v1/events/{event['id']}"))["type"] == "order.created"


def test_fields(api):
    expect.ok(put(api, "order.created", {"description": "x" * 1000}))
    expect.invalid(put(api, "order.created", {"description": "x" * 1001}), "/description")
    description: Any
    for description in (None, 5, []):
        expect.invalid(put(api, "order.created", {"description": description}), "/description")
    expect.invalid(
        put(api, "order.created", {"name": "order.updated", "built_in": True}), "/name", "/built_in"
    )
    expect.invalid(api.call("DELETE", "/v1/event-types/order.created", {"force": True}), "/force")
    expect.ok(api.get("/v1/event-types/order.created"))


def test_a_workspace_has_up_to_500_types_of_its_own(api, resources):
    rows = [
        {"workspace_id": api.workspace_id, "name": f"own.type_{number}", "description": ""}
        for number in range(499)
    ]
    with resources.transaction() as uow:
        uow.session.execute(insert(CustomEventType), rows)
    expect.ok(put(api, "own.last"))
    expect.invalid(put(api, "own.one_too_many"), "/name")
    expect.ok(put(api, "own.last", {"description": "Replaced"}))


def test_the_same_type_put_at_once_by_many(api):
    barrier = threading.Barrier(6)
    answers: list[Any] = []

    def run() -> None:
        mine = Api(api.client.application.test_client(), api.key, api.workspace_id, api.key_id)
        barrier.wait()
        answers.extend(put(mine, f"order.created_{number}", ORDER) for number in range(5))

    threads = [threading.Thread(target=run) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [answer.status_code for answer in answers] == [200] * 30


def test_a_schema_whose_references_multiply_is_refused(api):
    doubling = {f"a{level}": {"allOf": [{"$ref": f"#/$defs/a{level + 1}"}] * 2} for level in range(60)} | {
        "a60": {"type": "object"}
    }
    for schema in (
        {"$defs": doubling, "$ref": "#/$defs/a0"},
        {"properties": {"a": {"allOf": [{"$ref": "#"}, {"$ref": "#"}]}}},
        {"$dynamicRef": "#"},
    ):
        answer = put(api, "order.created", {"schema": schema, "example": {"a": {"a": {}}}})
        expect.invalid(answer, "/schema")
    shared = {"$defs": {"id": {"type": "string"}}, "properties": {"a": {"$ref": "#/$defs/id"}}}
    expect.ok(put(api, "order.created", {"schema": shared}))
    answer = api.post("/v1/events", {"type": "order.created", "data": {"a": 5}})
    expect.invalid(answer, "/data/a", code="payload_invalid")
