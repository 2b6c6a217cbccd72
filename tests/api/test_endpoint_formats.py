"""Formats of endpoints: configured, shown without their secrets, changed whole, and seen before anything is sent."""

import json
import re
from typing import Any

import jsonschema_rs
import pytest
from structlog.testing import capture_logs

from app.events.catalogue import BUILT_IN
from app.events.service import MAX_EVENT_BYTES
from app.processes import ROOT
from tests.api import expect
from tests.api.steps import audited
from tests.api.test_endpoint_secrets import everything_at_rest
from tests.conftest import Api

PREVIEW = "/v1/endpoints/preview"
MINIMAL = {"url": "https://hooks.example.com/botbat", "events": ["*"]}
ROUTING_KEY = "Canary" + "x1" * 13
PAGERDUTY = {"type": "pagerduty", "routing_key": ROUTING_KEY}
TEMPLATE = {"type": "template", "template": '{"text": {{ data.text | json }}}'}
FORMATS: list[tuple[Any, Any]] = [
    ("default", "default"),
    ({"type": "default"}, "default"),
    ("slack", "slack"),
    ({"type": "slack"}, "slack"),
    (PAGERDUTY, {"type": "pagerduty", "routing_key": "***", "severity": "error"}),
    ({**PAGERDUTY, "severity": "info"}, {"type": "pagerduty", "routing_key": "***", "severity": "info"}),
    (TEMPLATE, {**TEMPLATE, "content_type": "application/json"}),
    (
        {"type": "template", "template": "{{ id }}", "content_type": "text/plain"},
        {"type": "template", "template": "{{ id }}", "content_type": "text/plain"},
    ),
]
REFUSED: list[tuple[Any, list[str]]] = [
    (None, ["/format"]),
    (5, ["/format"]),
    (["slack"], ["/format"]),
    ("teams", ["/format"]),
    ("pagerduty", ["/format/routing_key"]),
    ({}, ["/format/type"]),
    ({"type": "teams"}, ["/format/type"]),
    ({"type": "slack", "channel": "#alerts"}, ["/format/channel"]),
    ({"type": "pagerduty", "routing_key": "***"}, ["/format/routing_key"]),
    ({**PAGERDUTY, "severity": "high", "x": 1}, ["/format/x"]),
    ({**PAGERDUTY, "severity": "high"}, ["/format/severity"]),
    ({"type": "template", "template": "{{ data.text"}, ["/format/template"]),
    ({**TEMPLATE, "content_type": "text/html"}, ["/format/content_type"]),
]


def create(api: Api, **fields: Any) -> Any:
    return expect.ok(api.post("/v1/endpoints", MINIMAL | fields), 201)


def patch(api: Api, made: Any, **fields: Any) -> Any:
    return expect.ok(api.call("PATCH", f"/v1/endpoints/{made['id']}", fields))


def preview(api: Api, fmt: Any, event_type: str = "message.received", **fields: Any) -> Any:
    return expect.ok(api.post(PREVIEW, {"format": fmt, "type": event_type, **fields}))


@pytest.mark.parametrize(("given", "shown"), FORMATS, ids=str)
def test_a_format_is_shown_as_it_was_given_with_its_defaults_and_without_its_secret(api, given, shown):
    made = create(api, format=given)
    assert made["format"] == shown
    assert expect.ok(api.get(f"/v1/endpoints/{made['id']}"))["format"] == shown
    assert expect.ok(api.get("/v1/endpoints"))["data"][0]["format"] == shown
    other = create(api)
    assert other["format"] == "default"
    assert patch(api, other, format=given)["format"] == shown
    assert patch(api, other, format="default")["format"] == "default"


@pytest.mark.parametrize(("given", "pointers"), REFUSED, ids=str)
def test_what_is_no_format_is_refused_by_its_field_and_changes_nothing(api, given, pointers):
    made = create(api, format=PAGERDUTY)
    expect.invalid(api.post("/v1/endpoints", MINIMAL | {"format": given}), *pointers)
    expect.invalid(api.call("PATCH", f"/v1/endpoints/{made['id']}", {"format": given}), *pointers)
    expect.invalid(api.post(PREVIEW, {"format": given, "type": "message.received"}), *pointers)
    (listed,) = expect.ok(api.get("/v1/endpoints"))["data"]
    assert listed["format"] == made["format"]
    assert listed["updated_at"] == made["updated_at"]


def test_a_change_without_a_format_keeps_it_and_one_with_it_replaces_it_whole(api):
    made = create(api, format={**PAGERDUTY, "severity": "info"})
    assert patch(api, made, description="Alerts")["format"]["severity"] == "info"
    assert patch(api, made, format=PAGERDUTY)["format"]["severity"] == "error"
    # Its secret cannot be left out either: what is masked is not taken for what it masks.
    for given in ({"type": "pagerduty", "severity": "info"}, {**PAGERDUTY, "routing_key": "***"}):
        answer = api.call("PATCH", f"/v1/endpoints/{made['id']}", {"format": given})
        expect.invalid(answer, "/format/routing_key")


def test_the_audit_log_tells_that_a_format_was_changed_when_any_of_it_was(api, resources):
    made = create(api, format=PAGERDUTY)
    for given in (
        PAGERDUTY,
        {**PAGERDUTY, "severity": "error"},
        {**PAGERDUTY, "routing_key": "a" * 32},
        TEMPLATE,
        {**TEMPLATE, "template": "{}"},
        "default",
        "default",
    ):
        patch(api, made, format=given)
    assert audited(resources, made["id"]) == [
        ("endpoint.created", []),
        *[("endpoint.updated", ["format"])] * 4,
    ]


def test_a_routing_key_is_nowhere_readable_at_rest_or_in_logs(api, resources):
    with capture_logs() as logs:
        once = {"Idempotency-Key": "once"}
        made = expect.ok(api.post("/v1/endpoints", MINIMAL | {"format": PAGERDUTY}, headers=once), 201)
        twin = api.post(
            PREVIEW, {"format": PAGERDUTY, "type": "message.read"}, headers={"Idempotency-Key": "2"}
        )
        expect.ok(twin)
        patch(api, made, format={**PAGERDUTY, "severity": "info"})
        api.call("PATCH", f"/v1/endpoints/{made['id']}", {"format": {**PAGERDUTY, ROUTING_KEY: 1}})
    for answer in (twin, api.get("/v1/endpoints"), api.get("/v1/audit-log")):
        assert ROUTING_KEY not in answer.get_data(as_text=True)
    assert ROUTING_KEY not in repr(logs)
    found = everything_at_rest(resources)
    assert made["id"].encode() in found
    assert ROUTING_KEY.encode() not in found


def test_the_document_takes_the_formats_that_are_taken_and_no_others(api):
    document = expect.ok(api.client.get("/openapi.json"))
    schemas = document["components"]["schemas"]
    for name in ("EndpointRequest", "EndpointFields", "PreviewRequest"):
        validator = jsonschema_rs.Draft202012Validator(schemas[name]["properties"]["format"])
        assert all(validator.is_valid(given) for given, _ in FORMATS)
        # A document cannot say whether a template can be read.
        assert not any(validator.is_valid(given) for given, at in REFUSED if at != ["/format/template"])
    shown = jsonschema_rs.Draft202012Validator(schemas["EndpointObject"]["properties"]["format"])
    assert all(shown.is_valid(each) for _, each in FORMATS)
    assert not shown.is_valid(PAGERDUTY)


def test_the_example_of_the_readme_is_taken(api):
    (example,) = re.findall(
        r"^```json\n(.*?)^```$", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL
    )
    made = expect.ok(api.post("/v1/endpoints", json.loads(example)), 201)
    assert (made["format"], made["events"]) == ("slack", ["conversation.waiting"])
    waiting = {"type": "conversation.waiting", "data": {"waiting_seconds": 601}}
    assert expect.ok(api.post("/v1/endpoints/match", waiting))["data"][0]["matches"]


def test_a_preview_shows_the_body_for_the_example_of_the_type_or_for_given_data(api):
    assert preview(api, TEMPLATE) == {
        "body": json.dumps({"text": BUILT_IN["message.received"].example["text"]}),
        "content_type": "application/json",
    }
    assert json.loads(preview(api, TEMPLATE, data={"text": 'a "b"'})["body"]) == {"text": 'a "b"'}
    plain = {"type": "template", "template": "{{ type }} {{ data.n }}", "content_type": "text/plain"}
    assert preview(api, plain, "contact.created", data={"n": 1.50}) == {
        "body": "contact.created 1.5",
        "content_type": "text/plain; charset=utf-8",
    }
    envelope = json.loads(preview(api, "default", data={"text": "hi"})["body"])
    assert list(envelope) == ["id", "type", "timestamp", "data"]
    assert (envelope["type"], envelope["data"]) == ("message.received", {"text": "hi"})
    message = json.loads(preview(api, "slack", "conversation.waiting")["body"])
    assert message["text"].startswith("Conversation waiting: Amara Okafor")
    alert = json.loads(preview(api, PAGERDUTY, "conversation.waiting")["body"])
    assert (alert["routing_key"], alert["payload"]["class"]) == ("***", "conversation.waiting")


def test_a_preview_of_a_template_that_fails_on_the_event_names_the_line(api):
    template = '{\n "text": {{ data.subject | json }}\n}'
    (error,) = expect.invalid(
        api.post(PREVIEW, {"format": {"type": "template", "template": template}, "type": "message.read"}),
        "/format/template",
    )
    assert error["code"] == "template_failed"
    assert error["detail"].startswith("Line 2: `data.subject` is missing")


def test_a_preview_refuses_what_publishing_refuses(api):
    expect.ok(api.call("PUT", "/v1/event-types/order.created", {}))
    body = {"format": "slack", "type": "order.created"}
    expect.ok(api.post(PREVIEW, body))  # though it has no example
    expect.invalid(api.post(PREVIEW, {**body, "type": "order.gone"}), "/type", code="unknown_event_type")
    bad = {**body, "type": "message.read", "data": {"message_id": 5}}
    expect.invalid(api.post(PREVIEW, bad), "/data/message_id", code="payload_invalid")
    expect.invalid(api.post(PREVIEW, {}), "/format", "/type")
    large = {**body, "data": {"text": "a" * MAX_EVENT_BYTES}}
    expect.problem(api.post(PREVIEW, large), 413, "payload_too_large")


def test_a_preview_stores_nothing(api, doorbell):
    preview(api, TEMPLATE, data={"text": "hi"})
    assert expect.ok(api.get("/v1/events"))["data"] == []
    assert expect.ok(api.get("/v1/endpoints"))["data"] == []
    assert doorbell.rings == []
