"""The document describes the API as it is: valid, complete, and of use to generators; the page shows it."""

import re
from html.parser import HTMLParser
from typing import Any

import jsonschema_rs
import pytest
from schemathesis.specs.openapi.definitions import (
    OPENAPI_31,
)  # the schema of spec.openapis.org, version 2022-10-07

from app.events.catalogue import BUILT_IN
from app.events.models import Event
from tests.api import expect
from tests.api.routes import ANY_KEY, SCOPES

METHODS = {"get", "post", "put", "patch", "delete"}


@pytest.fixture
def document(api) -> Any:
    return expect.ok(api.client.get("/openapi.json"))


def operations(document: Any) -> dict[tuple[str, str], Any]:
    return {
        (method.upper(), path): operation
        for path, item in document["paths"].items()
        for method, operation in item.items()
        if method in METHODS
    }


def references(node: Any) -> list[str]:
    if isinstance(node, dict):
        own = [node["$ref"]] if isinstance(node.get("$ref"), str) else []
        return own + [found for value in node.values() for found in references(value)]
    return [found for value in node for found in references(value)] if isinstance(node, list) else []


def resolve(document: Any, reference: str) -> Any:
    found = document
    for step in reference.removeprefix("#/").split("/"):
        found = found[step]
    return found


def test_it_is_openapi_3_1(document):
    assert document["openapi"] == "3.1.0"
    assert document["info"]["title"]
    validator = jsonschema_rs.Draft202012Validator(OPENAPI_31, offline=True)
    assert [error.message for error in validator.iter_errors(document)] == []


def test_its_schemas_are_json_schema_2020_12(document):
    def schemas(node: Any) -> list[Any]:
        if isinstance(node, dict):
            own = [node["schema"]] if isinstance(node.get("schema"), dict) else []
            return own + [found for value in node.values() for found in schemas(value)]
        return [found for value in node for found in schemas(value)] if isinstance(node, list) else []

    found = [
        *document["components"]["schemas"].values(),
        *schemas(document["paths"]),
        *schemas(document["webhooks"]),
    ]
    assert len(found) > 50
    dialect = {"$schema": "https://json-schema.org/draft/2020-12/schema"}
    for schema in found:
        jsonschema_rs.meta.validate(schema | dialect)
        # Patterns are ECMA-262: Python's \Z would be the letter.
        assert not [
            pattern for pattern in re.findall(r"'pattern': '([^']*)'", str(schema)) if "\\Z" in pattern
        ]


def test_its_references_lead_somewhere_within_it(document):
    found = references(document)
    assert len(found) > 50
    for reference in found:
        assert reference.startswith("#/")
        assert resolve(document, reference)


def test_every_route_is_in_it_with_the_scope_that_it_needs(document):
    documented = {
        (method, re.sub(r"{(\w+)}", r"<\1>", path)): operation["x-required-scope"]
        for (method, path), operation in operations(document).items()
    }
    assert documented == SCOPES | dict.fromkeys(ANY_KEY)


def test_operations_have_names_of_their_own_and_say_what_they_do(document):
    found = list(operations(document).values())
    names = [operation["operationId"] for operation in found]
    names += [item["post"]["operationId"] for item in document["webhooks"].values()]
    assert len(set(names)) == len(names)
    tags = {tag["name"]: tag["description"] for tag in document["tags"]}
    for operation in found:
        assert operation["summary"]
        assert all(tags[tag] for tag in operation["tags"])


def test_a_bearer_key_is_needed_everywhere(document):
    assert document["components"]["securitySchemes"] == {"api_key": {"type": "http", "scheme": "bearer"}}
    assert document["security"] == [{"api_key": []}]
    assert not [operation for operation in operations(document).values() if "security" in operation]


def test_every_operation_documents_its_errors(document):
    for (method, path), operation in operations(document).items():
        responses = operation["responses"]
        expected = {"400", "401", "403", "422", "429", "503"}
        expected |= {"404"} if "{" in path else set()
        expected |= {"409", "413", "415"} if method != "GET" else set()
        errors = {status for status in responses if status >= "400"}
        assert errors == expected, (method, path)
        assert {status for status in responses if status < "400"} <= {"200", "201", "202", "204"}
        assert errors < set(responses)
        for status in errors:
            content = resolve(document, responses[status]["$ref"])["content"]
            assert content == {
                "application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}
            }


def test_every_post_takes_an_idempotency_key_and_nothing_else_does(document):
    for (method, _), operation in operations(document).items():
        takes = {"$ref": "#/components/parameters/IdempotencyKey"} in operation.get("parameters", [])
        assert takes == (method == "POST")
    parameter = document["components"]["parameters"]["IdempotencyKey"]
    assert (parameter["in"], parameter["name"], parameter["required"]) == ("header", "Idempotency-Key", False)


def test_a_body_is_required_where_fields_are(document):
    for (method, path), operation in operations(document).items():
        body = operation.get("requestBody")
        if body is None:
            assert method in ("GET", "DELETE"), path
            continue
        schema = resolve(document, body["content"]["application/json"]["schema"]["$ref"])
        assert body.get("required", False) == bool(schema.get("required")), path
        assert schema["additionalProperties"] is False


def test_a_batch_is_made_of_events(document):
    schema = document["components"]["schemas"]["BatchRequest"]["properties"]["events"]
    assert schema["items"] == {"$ref": "#/components/schemas/PublishRequest"}
    assert (schema["minItems"], schema["maxItems"]) == (1, 1000)


def test_there_is_a_webhook_for_every_event_type(document):
    assert set(document["webhooks"]) == set(BUILT_IN)
    for name, item in document["webhooks"].items():
        operation = item["post"]
        assert operation["description"] == BUILT_IN[name].description
        assert operation["security"] == []
        assert {header["name"] for header in operation["parameters"]} == {
            *("X-BotBat-Event", "X-BotBat-Delivery", "X-BotBat-Signature"),
            *("webhook-id", "webhook-timestamp", "webhook-signature"),
        }
        schema = operation["requestBody"]["content"]["application/json"]["schema"]
        validator = jsonschema_rs.Draft202012Validator(schema, validate_formats=True, offline=True)
        for example in schema["examples"]:
            validator.validate(example)
        assert schema["examples"]
        assert not validator.is_valid({**schema["examples"][0], "type": "other.type"})


def test_what_is_delivered_is_what_the_webhook_promises(api, resources, document):
    for name, item in document["webhooks"].items():
        event = expect.ok(api.post("/v1/events", {"type": name, "data": BUILT_IN[name].example}), 202)
        with resources.transaction(write=False) as uow:
            body = uow.session.get_one(Event, event["id"]).body
        schema = item["post"]["requestBody"]["content"]["application/json"]["schema"]
        jsonschema_rs.Draft202012Validator(schema, offline=True).validate(
            api.client.application.json.loads(body)
        )


class Page(HTMLParser):
    """What a page loads, and what stands in it as a script."""

    def __init__(self) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.inline = ""
        self._inside = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._inside = tag
        self.loads += [value or "" for name, value in attrs if name in ("src", "href") and tag != "a"]
        self.inline += "".join(name for name, _ in attrs if name.startswith("on") or name == "style")

    def handle_data(self, data: str) -> None:
        if self._inside in ("script", "style"):
            self.inline += data.strip()


def test_the_page_loads_our_own_files_alone(api):
    with api.client.get("/docs") as answer:
        assert answer.status_code == 200
        assert answer.content_type == "text/html; charset=utf-8"
        page = Page()
        page.feed(answer.get_data(as_text=True))
        policy = dict(
            part.strip().split(" ", 1) for part in answer.headers["Content-Security-Policy"].split(";")
        )
    assert page.inline == ""
    assert len(page.loads) >= 3
    for path in page.loads:
        assert path.startswith("/static/")
        with api.client.get(path) as answer:
            assert answer.status_code == 200, path
            assert answer.headers["X-Content-Type-Options"] == "nosniff"

    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == "'self'"
    assert policy["connect-src"] == "'self'"
    assert policy["frame-ancestors"] == "'none'"
    assert policy["base-uri"] == "'none'"
    assert not [value for value in policy.values() if "http" in value or "*" in value]


def test_the_page_asks_for_our_document_and_nobody_elses(api):
    with api.client.get("/static/docs.js") as answer:
        script = answer.get_data(as_text=True)
    assert 'url: "/openapi.json"' in script
    assert "validatorUrl: null" in script
    assert "http://" not in script
    assert "https://" not in script


def test_the_root_leads_to_the_page(api):
    answer = api.client.get("/")
    assert (answer.status_code, answer.headers["Location"]) == (302, "/docs")


def test_files_beside_the_static_ones_are_not_served(api):
    for path in (
        "../web.py",
        "..%2fweb.py",
        "%2e%2e/web.py",
        "/etc/passwd",
        "//etc/passwd",
        "%00",
        "vendor",
        "",
        ".",
    ):
        expect.problem(api.client.get(f"/static/{path}", follow_redirects=True), 404, "not_found")
