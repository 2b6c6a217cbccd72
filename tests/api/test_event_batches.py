"""Many events in one request: each is accepted or refused by itself."""

import json
from typing import Any

from sqlalchemy import func, select

from app.core.unit_of_work import Resources
from app.events.models import Event
from tests.api import expect
from tests.api.steps import record_statements
from tests.conftest import Api

CREATED = {"type": "contact.created", "data": {}}
LIMIT = 256 * 1024


def batch(api: Api, events: list[Any]) -> Any:
    answer = expect.ok(api.post("/v1/events/batch", {"events": events}), 202)
    assert set(answer) == {"data", "accepted", "rejected"}
    assert len(answer["data"]) == len(events)
    return answer


def stored(resources: Resources) -> int:
    with resources.transaction(write=False) as uow:
        return uow.session.scalar(select(func.count()).select_from(Event)) or 0


def test_a_thousand_events_are_taken_in_their_order(api, resources):
    events = [{"type": "contact.created", "data": {"number": number}} for number in range(1000)]
    statements = record_statements(resources)
    answer = batch(api, events)

    assert (answer["accepted"], answer["rejected"]) == (1000, 0)
    assert len(statements) < 10
    ids = [receipt["id"] for receipt in answer["data"]]
    assert ids == sorted(set(ids))
    newest = api.get("/v1/events?limit=3").json["data"]
    assert [event["id"] for event in newest] == ids[:-4:-1]
    assert [event["data"] for event in newest] == [{"number": 999}, {"number": 998}, {"number": 997}]
    assert stored(resources) == 1000


def test_a_thousand_events_with_ids_of_their_own(api, resources):
    events = [{**CREATED, "external_id": f"order-{number}"} for number in range(1000)]
    first = batch(api, events)["data"]
    again = batch(api, events[::-1])["data"]
    assert [receipt | {"duplicate": False} for receipt in again] == first[::-1]
    assert all(receipt["duplicate"] for receipt in again)
    assert stored(resources) == 1000


def test_how_many(api, resources):
    expect.invalid(api.post("/v1/events/batch", {"events": [CREATED] * 1001}), "/events")
    expect.invalid(api.post("/v1/events/batch", {"events": []}), "/events")
    expect.invalid(api.post("/v1/events/batch", {}), "/events")
    expect.invalid(api.post("/v1/events/batch"), "/events")
    events: Any
    for events in (None, {}, "x", 5):
        expect.invalid(api.post("/v1/events/batch", {"events": events}), "/events")
    expect.invalid(api.post("/v1/events/batch", {"events": [CREATED], "atomic": True}), "/atomic")
    assert stored(resources) == 0
    assert batch(api, [CREATED])["accepted"] == 1


def test_a_bad_event_does_not_refuse_the_others(api, resources):
    bad: list[tuple[Any, int, str, set[str]]] = [
        ({"type": "order.created", "data": {}}, 422, "unknown_event_type", {"/type"}),
        ({"type": "message.read", "data": {"message_id": 5}}, 422, "payload_invalid", {"/data/message_id"}),
        ({"type": "message.read", "data": []}, 422, "invalid_request", {"/data"}),
        ({"type": "message.read"}, 422, "invalid_request", {"/data"}),
        ({}, 422, "invalid_request", {"/type", "/data"}),
        ({**CREATED, "extra": 1, "a/b": 2}, 422, "invalid_request", {"/extra", "/a~1b"}),
        ({**CREATED, "external_id": "a b"}, 422, "invalid_request", {"/external_id"}),
        ({**CREATED, "occurred_at": "now"}, 422, "invalid_request", {"/occurred_at"}),
        (None, 422, "invalid_request", {""}),
        (5, 422, "invalid_request", {""}),
        ([], 422, "invalid_request", {""}),
        ("contact.created", 422, "invalid_request", {""}),
        ({"type": "contact.created", "data": {"a": "x" * LIMIT}}, 413, "event_too_large", set()),
    ]
    events = [event for entry in bad for event in (CREATED, entry[0])]
    answer = batch(api, events)

    assert (answer["accepted"], answer["rejected"]) == (len(bad), len(bad))
    assert stored(resources) == len(bad)
    for receipt in answer["data"][::2]:
        assert set(receipt) == {"id", "external_id", "type", "occurred_at", "created_at", "duplicate"}
        assert api.get(f"/v1/events/{receipt['id']}").status_code == 200
    for (event, status, code, pointers), outcome in zip(bad, answer["data"][1::2], strict=True):
        assert set(outcome) == {"error"}, event
        error = outcome["error"]
        assert (error["status"], error["code"], error["type"]) == (status, code, f"/problems/{code}")
        assert {fault["pointer"] for fault in error.get("errors", [])} == pointers
        assert error["title"]
        assert error["detail"]


def test_nothing_but_bad_events(api, resources):
    answer = batch(api, [{}, {}])
    assert (answer["accepted"], answer["rejected"]) == (0, 2)
    assert stored(resources) == 0


def test_an_external_id_twice_in_one_batch(api, resources):
    first, second, other = batch(
        api,
        [
            {"type": "contact.created", "data": {"number": 1}, "external_id": "order-1"},
            {"type": "message.read", "data": {"number": 2}, "external_id": "order-1"},
            {"type": "message.read", "data": {}, "external_id": "order-2"},
        ],
    )["data"]
    assert second == {**first, "duplicate": True}
    assert (first["duplicate"], other["duplicate"]) == (False, False)
    assert stored(resources) == 2
    assert api.get(f"/v1/events/{first['id']}").json["data"] == {"number": 1}


def test_an_external_id_of_an_earlier_event(api, resources):
    first = expect.ok(api.post("/v1/events", {**CREATED, "external_id": "order-1"}), 202)
    answer = batch(
        api, [CREATED, {**CREATED, "external_id": "order-1"}, {**CREATED, "external_id": "order-2"}]
    )
    assert [receipt["duplicate"] for receipt in answer["data"]] == [False, True, False]
    assert answer["data"][1] == {**first, "duplicate": True}
    assert answer["accepted"] == 3
    assert stored(resources) == 3


def test_an_event_of_a_batch_may_be_as_large_as_a_single_one(api, resources):
    event = {"type": "contact.created", "data": {"a": ""}}
    event["data"] = {"a": "x" * (LIMIT - len(json.dumps(event, separators=(",", ":"))))}
    assert batch(api, [event] * 3)["accepted"] == 3
    assert stored(resources) == 3


def test_a_batch_over_32_mebibytes(api, resources):
    answer = api.post("/v1/events/batch", data=b" " * (32 * 1024 * 1024 + 1), content_type="application/json")
    expect.problem(answer, 413, "payload_too_large")
    assert stored(resources) == 0


def test_a_batch_that_is_no_json_stores_nothing(api, resources):
    body = json.dumps({"events": [CREATED, CREATED]})
    for broken in (body[:-1], body + "x", body.replace("{}", "NaN", 1)):
        answer = api.post("/v1/events/batch", data=broken, content_type="application/json")
        expect.problem(answer, 400, "malformed_json")
    assert stored(resources) == 0
