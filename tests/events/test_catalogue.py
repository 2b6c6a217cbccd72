import re
from collections.abc import Iterator
from typing import Any

import jsonschema_rs
import pytest

from app.events.catalogue import BUILT_IN, EventType

PROMISED = [
    "message.received",
    "message.delivered",
    "message.read",
    "conversation.created",
    "conversation.waiting",
    "conversation.closed",
    "contact.created",
    "contact.updated",
    "campaign.completed",
    "api_key.expiring",
    "api_key.expired",
    "endpoint.failing",
    "endpoint.recovered",
    "endpoint.disabled",
]

DIALECT = "https://json-schema.org/draft/2020-12/schema"

every_type = pytest.mark.parametrize("event_type", BUILT_IN.values(), ids=BUILT_IN)


def accepts(event_type: EventType, data: object, *, formats: bool = True) -> bool:
    validator = jsonschema_rs.Draft202012Validator(event_type.schema, validate_formats=formats, offline=True)
    return validator.is_valid(data)


def keywords(schema: object) -> Iterator[tuple[str, Any]]:
    """Every key of every object inside a schema, with its value."""
    if isinstance(schema, dict):
        for key, value in schema.items():
            yield key, value
            yield from keywords(value)
    elif isinstance(schema, list):
        for item in schema:
            yield from keywords(item)


def fields(schema: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every field that a schema declares, by its path."""
    for name, field in schema.get("properties", {}).items():
        yield f"{path}/{name}", field
        yield from fields(field, f"{path}/{name}")


def test_the_catalogue_has_the_promised_types_in_order():
    assert list(BUILT_IN) == PROMISED
    assert [event_type.name for event_type in BUILT_IN.values()] == PROMISED


@every_type
def test_a_name_is_noun_dot_verbed(event_type):
    assert re.fullmatch(r"[a-z_]+\.[a-z]+", event_type.name)


@every_type
def test_a_description_is_one_or_two_sentences(event_type):
    assert 1 <= len(re.findall(r"[a-z]\.(?= |$)", event_type.description)) <= 2


@every_type
def test_a_schema_is_json_schema_2020_12(event_type):
    jsonschema_rs.meta.validate({"$schema": DIALECT, **event_type.schema})
    jsonschema_rs.Draft202012Validator(event_type.schema, offline=True)


@every_type
def test_a_schema_refers_to_nothing_and_requires_nothing(event_type):
    used = {key for key, _ in keywords(event_type.schema)}
    assert used.isdisjoint({"$ref", "$dynamicRef", "$id", "$schema", "required", "enum", "pattern"})
    assert ("additionalProperties", False) not in list(keywords(event_type.schema))


@every_type
def test_every_field_says_what_it_is(event_type):
    silent = [path for path, field in fields(event_type.schema) if not field.get("description")]
    assert silent == []


@every_type
def test_the_example_of_a_field_is_valid_for_it(event_type):
    for path, field in fields(event_type.schema):
        validator = jsonschema_rs.Draft202012Validator(field, validate_formats=True, offline=True)
        for example in field.get("examples", []):
            assert validator.is_valid(example), path


@every_type
@pytest.mark.parametrize("formats", [True, False])
def test_the_example_is_valid(event_type, formats):
    assert accepts(event_type, event_type.example, formats=formats)


@every_type
def test_the_example_shows_declared_fields_only(event_type):
    assert event_type.example.keys() <= event_type.schema["properties"].keys()


@every_type
def test_a_subset_of_the_example_is_valid(event_type):
    for name, value in event_type.example.items():
        assert accepts(event_type, {name: value})
        assert accepts(
            event_type, {other: event_type.example[other] for other in event_type.example if other != name}
        )


@every_type
@pytest.mark.parametrize(
    "data",
    [
        {},
        {"text": "hi"},
        {"id": "c_1"},
        {"id": 1},
        {"message_id": "m1", "text": "hello"},
        {"message_id": "m1", "text": {"body": "hello"}, "from": "+15550001111"},
        {"from": {"phone": "+15550001111"}, "to": "acme"},
        {"contact": {"name": "Ada", "phone": "+15550001111", "plan": "gold"}},
        {"contact": "c_1", "assignee": "jonas", "closed_by": "system"},
        {"channel": "carrier pigeon", "status": "sleeping", "type": "poll"},
        {"amount": 120, "currency": "EUR", "items": [{"sku": "a"}], "nested": {"deep": [1, None, {}]}},
        {"media": None, "contact": None, "tags": None, "closed_at": None, "counts": None},
        {"media": [{"url": "https://example.com/a.jpg"}]},
        {"sent": 10, "counts": {"sent": 10, "clicked": 3}},
        {"\N{SNOWMAN}": True},
    ],
    ids=str,
)
def test_what_a_newcomer_publishes_is_accepted(event_type, data):
    assert accepts(event_type, data)


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("message.received", {"message_id": 5}),
        ("message.received", {"message_id": None}),
        ("message.received", {"channel": ["whatsapp"]}),
        ("message.received", {"text": 5}),
        ("message.received", {"text": {"body": 5}}),
        ("message.received", {"from": 447700900123}),
        ("message.received", {"contact": {"phone": 447700900123}}),
        ("message.received", {"contact": {"email": "not an address"}}),
        ("message.received", {"contact": {"tags": [1]}}),
        ("message.received", {"media": {"size_bytes": -1}}),
        ("message.received", {"location": {"latitude": 91}}),
        ("message.received", {"received_at": "yesterday"}),
        ("message.delivered", {"delivered_at": 1767225600}),
        ("message.read", {"read_at": "2026-03-02"}),
        ("conversation.created", {"conversation_id": {}}),
        ("conversation.closed", {"duration_seconds": "an hour"}),
        ("conversation.closed", {"message_count": 1.5}),
        ("contact.created", {"contact_id": []}),
        ("contact.updated", {"changed_fields": "email"}),
        ("contact.updated", {"previous": ["a@example.com"]}),
        ("campaign.completed", {"counts": {"sent": -1}}),
        ("campaign.completed", {"counts": {"read": "many"}}),
        ("campaign.completed", {"counts": 12}),
        ("api_key.expiring", {"days_left": -1}),
        ("api_key.expiring", {"api_key_id": 5}),
        ("api_key.expired", {"expires_at": "tomorrow"}),
        ("conversation.waiting", {"waiting_seconds": "ten minutes"}),
        ("conversation.waiting", {"waiting_since": 1767225600}),
        ("endpoint.failing", {"failures_in_row": -1}),
        ("endpoint.recovered", {"status": None}),
        ("endpoint.disabled", {"since": "last week"}),
    ],
)
def test_nonsense_is_refused(name, data):
    assert not accepts(BUILT_IN[name], data)


@every_type
@pytest.mark.parametrize("data", [None, "hi", 5, [], True])
def test_what_is_not_an_object_is_refused(event_type, data):
    assert not accepts(event_type, data)
