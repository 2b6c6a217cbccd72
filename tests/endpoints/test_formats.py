"""Promises about formats: what Slack, PagerDuty and templates get for an event, and what is refused when configured."""

import json
import re
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from app.core.errors import Invalid
from app.core.templates import TemplateFailed
from app.endpoints import formats
from app.endpoints.headlines import MAX_FACTS, headline
from app.events.catalogue import BUILT_IN
from app.events.service import MAX_TYPE_NAME_LENGTH, TYPE_NAME

ROUTING_KEY = "R0" + "a1" * 15
ID = "evt_01kjpx8td8ehbv8yhddhqbm8ae"
TIME = "2026-03-02T09:15:05.000Z"


def envelope(event_type: str = "payment.failed", **data: Any) -> dict[str, Any]:
    return {"id": ID, "type": event_type, "timestamp": TIME, "data": data}


def rendered(value: Any, event: dict[str, Any]) -> formats.Rendered:
    return formats.read(value).render(event, json.dumps(event).encode())


def message(event: dict[str, Any]) -> Any:
    return json.loads(rendered("slack", event).body)


def alert(event: dict[str, Any], **options: Any) -> Any:
    return json.loads(rendered({"type": "pagerduty", "routing_key": ROUTING_KEY, **options}, event).body)


def from_template(template: str, event: dict[str, Any], content_type: str = formats.JSON) -> formats.Rendered:
    return rendered({"type": "template", "template": template, "content_type": content_type}, event)


def refusals(value: Any) -> list[tuple[str, str]]:
    with pytest.raises(Invalid) as caught:
        formats.read(value)
    assert all(error.detail.endswith(".") for error in caught.value.errors)
    return [(error.pointer, error.code) for error in caught.value.errors]


# --- What may be configured, and how it is kept and shown. ---


@pytest.mark.parametrize(
    ("value", "stored"),
    [
        ("default", "default"),
        ({"type": "default"}, "default"),
        ("slack", "slack"),
        ({"type": "slack"}, "slack"),
        (
            {"type": "pagerduty", "routing_key": ROUTING_KEY},
            {"type": "pagerduty", "routing_key": ROUTING_KEY, "severity": "error"},
        ),
        (
            {"type": "template", "template": "{{ id }}"},
            {"type": "template", "template": "{{ id }}", "content_type": "application/json"},
        ),
    ],
)
def test_a_format_is_kept_in_one_form_which_reads_as_the_same_format(value, stored):
    assert formats.read(value).stored() == stored
    assert formats.read(stored) == formats.read(value)


def test_a_format_is_shown_as_it_is_kept_but_for_the_routing_key():
    assert formats.read({"type": "slack"}).shown() == "slack"
    assert formats.read({"type": "template", "template": "x"}).shown()["template"] == "x"
    shown = formats.read({"type": "pagerduty", "routing_key": ROUTING_KEY, "severity": "info"}).shown()
    assert shown == {"type": "pagerduty", "routing_key": "***", "severity": "info"}


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, [("/format", "invalid")]),
        (["slack"], [("/format", "invalid")]),
        ("teams", [("/format", "unknown_format")]),
        ({}, [("/format/type", "unknown_format")]),
        ({"type": "teams"}, [("/format/type", "unknown_format")]),
        ({"type": ["slack"]}, [("/format/type", "unknown_format")]),
        ({"type": "slack", "a/b": 1}, [("/format/a~1b", "unknown_field")]),
        ("pagerduty", [("/format/routing_key", "required")]),
        (
            {"type": "pagerduty", "routing_key": 7, "x": 1},
            [("/format/routing_key", "invalid"), ("/format/x", "unknown_field")],
        ),
        ({"type": "pagerduty", "routing_key": "a" * 31}, [("/format/routing_key", "invalid")]),
        ({"type": "pagerduty", "routing_key": "é" * 32}, [("/format/routing_key", "invalid")]),
        ({"type": "pagerduty", "routing_key": "***"}, [("/format/routing_key", "invalid")]),
        (
            {"type": "pagerduty", "routing_key": ROUTING_KEY, "severity": "high"},
            [("/format/severity", "invalid")],
        ),
        ("template", [("/format/template", "required")]),
        ({"type": "template", "template": None}, [("/format/template", "invalid")]),
        ({"type": "template", "template": "{{ x | shout }}"}, [("/format/template", "invalid_template")]),
        (
            {"type": "template", "template": "x", "content_type": "text/html"},
            [("/format/content_type", "invalid")],
        ),
    ],
)
def test_what_is_no_format_is_refused_by_the_field(value, expected):
    assert refusals(value) == expected


def test_a_template_that_does_not_parse_names_the_line():
    with pytest.raises(Invalid, match=r"Line 3: `\{\{` is not closed"):
        formats.read({"type": "template", "template": "{\n\n{{ id"})


def test_a_refusal_does_not_repeat_the_routing_key():
    with pytest.raises(Invalid) as caught:
        formats.read({"type": "pagerduty", "routing_key": "canary-routing-key", "severity": "high"})
    assert "canary" not in str(caught.value.errors)


# --- Default. ---


def test_the_default_is_the_very_bytes_that_were_published():
    body = b'{"id": "evt_1",  "n": 1.0}'
    assert formats.read("default").render(envelope(), body) == formats.Rendered(body, "application/json")


# --- Slack and PagerDuty: any event at all. ---

texts = st.text(max_size=400) | st.text("&<>*\n ", min_size=100, max_size=5000)
names = st.sampled_from(
    ["text", "contact", "name", "from", "body", "id", "duration_seconds", "_", "", "a_b_id"]
)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(names | st.text(max_size=80), inner, max_size=15)
    ),
    max_leaves=20,
)
types = st.sampled_from([*BUILT_IN, "order.created"]) | st.from_regex(TYPE_NAME, fullmatch=True).filter(
    lambda name: len(name) <= MAX_TYPE_NAME_LENGTH
)
events = st.builds(
    lambda name, data: envelope(name) | {"data": data},
    types,
    st.dictionaries(names | st.text(max_size=80), values, max_size=15) | values,
)


def bounded(text: dict[str, str], kind: str, limit: int) -> None:
    assert set(text) == {"type", "text"}
    assert text["type"] == kind
    assert 0 < len(text["text"].strip()) <= len(text["text"]) <= limit
    assert not re.search(r"[<>]|&(?!amp;|lt;|gt;)", text["text"])


@settings(deadline=None)
@given(event=events)
@example(event=envelope(text="&" * 1500, contact={"name": "<" * 400}))
@example(event=envelope(text={"body": " \n "}, **{str(n): "x" * 5000 for n in range(99)}))
def test_any_event_is_a_message_within_the_limits_of_slack(event):
    found = message(event)
    assert set(found) == {"text", "blocks"}
    bounded({"type": "", "text": found["text"]}, "", 3000)
    assert 2 <= len(found["blocks"]) <= 50
    for block in found["blocks"]:
        if block["type"] == "header":
            bounded(block["text"], "plain_text", 150)
        elif block["type"] == "context":
            assert len(block["elements"]) == 1
            bounded(block["elements"][0], "mrkdwn", 2000)
        else:
            assert block["type"] == "section"
            assert set(block) in ({"type", "text"}, {"type", "fields"})
            if "text" in block:
                bounded(block["text"], "mrkdwn", 3000)
            assert 1 <= len(block.get("fields", [0])) <= 10
            for field in block.get("fields", []):
                bounded(field, "mrkdwn", 2000)


@settings(deadline=None)
@given(event=events)
@example(event=envelope(text="x" * 5000))
def test_any_event_is_an_alert_within_the_limits_of_pagerduty(event):
    found = alert(event)
    payload = found.pop("payload")
    assert found == {"routing_key": ROUTING_KEY, "event_action": "trigger", "dedup_key": ID}
    assert 0 < len(payload["summary"].strip()) <= 1024
    assert payload["timestamp"] == TIME
    assert payload["severity"] == "error"
    assert payload["source"]
    assert payload["class"] == event["type"]
    assert payload["custom_details"] == event["data"]


@settings(deadline=None)
@given(event=events)
def test_the_same_event_is_the_same_bytes_each_time(event):
    templated = {"type": "template", "template": '{"all": {{ event | json }}, "d": {{ data | json }}}'}
    for value in ("slack", {"type": "pagerduty", "routing_key": ROUTING_KEY}, templated):
        assert rendered(value, event) == rendered(value, json.loads(json.dumps(event)))


@pytest.mark.parametrize("name", BUILT_IN)
def test_every_type_of_the_catalogue_has_a_readable_title(name):
    event = envelope(name, **BUILT_IN[name].example)
    told = headline(event)
    assert re.search(r"Amara Okafor|Spring sale|Warehouse sync|hooks\.example\.com", told.title)
    assert told.text == BUILT_IN[name].example.get("text", "")
    assert 2 <= len(told.facts) <= MAX_FACTS
    assert message(event)["blocks"][0]["text"]["text"] == told.title
    assert alert(event)["payload"]["summary"].startswith(told.title)


def test_titles_say_what_happened():
    titles = {name: headline(envelope(name, **each.example)).title for name, each in BUILT_IN.items()}
    assert titles["message.received"] == "Message from Amara Okafor"
    assert titles["conversation.closed"] == "Conversation closed with Amara Okafor"
    assert titles["campaign.completed"] == "Campaign completed: Spring sale"
    assert (
        headline(envelope("message.received", **{"from": "+447700900123"})).title
        == "Message from +447700900123"
    )
    assert (
        headline(envelope("endpoint.failing", url="https://a.example/x")).title
        == "Endpoint failing: https://a.example/x"
    )
    assert headline(envelope("contact.created")).title == "Contact created"
    assert headline(envelope("order.line_item_added", a=1)).title == "Order line item added"


def test_facts_are_told_as_people_would_and_ids_come_last():
    told = headline(
        envelope(
            order_id="ord_1",
            amount=12.5,
            wait_seconds=3725,
            refunded=False,
            note=None,
            customer={"id": 7, "name": "Ada"},
            counts={"sent": 3, "failed": 0},
            lines=["a", 1, {}],
        )
    )
    assert told.facts == (
        ("Amount", "12.5"),
        ("Wait", "1 h 2 min 5 s"),
        ("Refunded", "no"),
        ("Customer", "Ada"),
        ("Counts", "sent 3, failed 0"),
        ("Lines", "a, 1"),
        ("Order id", "ord_1"),
    )


def test_what_a_contact_wrote_mentions_nobody_in_slack():
    found = message(envelope("message.received", text="<!channel> a & b <https://evil.example|click>"))
    assert (
        found["blocks"][1]["text"]["text"] == "&lt;!channel&gt; a &amp; b &lt;https://evil.example|click&gt;"
    )
    assert "<" not in json.dumps(found)


def test_a_cut_leaves_no_half_of_an_entity():
    for length in range(2990, 3000):
        text = message(envelope(text="x" * length + "&" * 20))["blocks"][1]["text"]["text"]
        assert re.fullmatch(r"x+(&amp;)*…", text)


def test_an_alert_too_large_for_pagerduty_goes_without_its_details():
    event = envelope("payment.failed", amount=3, log="x" * formats.MAX_PAGERDUTY_BYTES)
    body = rendered({"type": "pagerduty", "routing_key": ROUTING_KEY, "severity": "critical"}, event).body
    assert len(body) <= formats.MAX_PAGERDUTY_BYTES
    assert json.loads(body)["payload"]["custom_details"]["Amount"] == "3"
    assert json.loads(body)["payload"]["severity"] == "critical"


# --- Templates. ---


def test_a_template_sees_the_envelope():
    template = (
        '{"id": {{ id | json }}, "t": "{{ type }}", "at": "{{ timestamp }}",'
        ' "n": {{ data.n }}, "e": {{ event | json }}}'
    )
    event = envelope(n=3)
    found = from_template(template, event)
    assert json.loads(found.body) == {"id": ID, "t": "payment.failed", "at": TIME, "n": 3, "e": event}
    assert found.content_type == "application/json"


@pytest.mark.parametrize(
    ("content_type", "sent"),
    [
        ("application/x-www-form-urlencoded", "application/x-www-form-urlencoded"),
        ("application/xml", "application/xml"),
        ("application/x-ndjson", "application/x-ndjson"),
        ("text/plain", "text/plain; charset=utf-8"),
    ],
)
def test_other_content_types_are_sent_as_they_are_rendered(content_type, sent):
    found = from_template("é {{ data.a | url_encode }} {", envelope(a="x y"), content_type)
    assert found == formats.Rendered("é x+y {".encode(), sent)


@pytest.mark.parametrize("template", ['{"a": "{{ data.a }}"}', "", "{{ data.a }}", "[NaN]"])
def test_a_result_that_is_not_json_fails_and_says_where_and_what_to_do(template):
    with pytest.raises(
        TemplateFailed, match=r"not JSON \(line \d+, column \d+ of the result\)\. The `json` filter"
    ):
        from_template(template, envelope(a='say "hi"'))


def test_a_template_that_fails_on_an_event_names_the_line():
    with pytest.raises(TemplateFailed, match=r"Line 2: `data\.order` is missing"):
        from_template('{"a":\n{{ data.order | json }}}', envelope())
