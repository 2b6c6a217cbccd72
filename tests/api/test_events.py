"""Events: published once, listed, read."""

import re
import threading
import time
from datetime import datetime, timedelta
from typing import Any

from app.core.clock import format_time, now
from config.wire import TaskName
from tests.api import expect
from tests.conftest import Api

RECEIPT = {"id", "external_id", "type", "occurred_at", "created_at", "duplicate"}
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")


def publish(api: Api, status: int = 202, **fields: Any) -> Any:
    return expect.ok(api.post("/v1/events", {"type": "contact.created", "data": {}, **fields}), status)


def listed(api: Api, query: str = "") -> Any:
    return expect.ok(api.get(f"/v1/events{query}"))["data"]


def test_a_published_event_can_be_read(api, doorbell):
    receipt = publish(api, data={"contact_id": "cnt_1", "own": [1, None, {"a": "b"}]})

    assert set(receipt) == RECEIPT
    assert receipt["id"].startswith("evt_")
    assert receipt["type"] == "contact.created"
    assert receipt["external_id"] is None
    assert receipt["duplicate"] is False
    for name in ("occurred_at", "created_at"):
        assert TIME.fullmatch(receipt[name])
        assert abs(datetime.fromisoformat(receipt[name]) - now()) < timedelta(seconds=5)
    assert doorbell.rings == [(TaskName.EVENTS_FAN_OUT, 0)]

    event = {name: value for name, value in receipt.items() if name != "duplicate"}
    event["data"] = {"contact_id": "cnt_1", "own": [1, None, {"a": "b"}]}
    event["payload_expunged_at"] = None
    assert listed(api) == [event]
    assert expect.ok(api.get(f"/v1/events/{receipt['id']}")) == {**event, "deliveries": []}


def test_every_type_of_the_catalogue_takes_its_example_and_an_empty_object(api):
    for entry in api.get("/v1/event-types").json["data"]:
        publish(api, type=entry["name"], data=entry["example"])
        publish(api, type=entry["name"], data={})


def test_the_time_of_an_event_is_kept_in_utc(api):
    for given, occurred_at in {
        "2026-01-31T09:30:00Z": "2026-01-31T09:30:00.000Z",
        "2026-01-31t09:30:00.5z": "2026-01-31T09:30:00.500Z",
        "2026-01-31 09:30:00+05:30": "2026-01-31T04:00:00.000Z",
        "2026-01-31T09:30:00-00:00": "2026-01-31T09:30:00.000Z",
        "2026-03-01T00:30:00+01:00": "2026-02-28T23:30:00.000Z",
        "2026-01-31T09:30:00.123999999Z": "2026-01-31T09:30:00.123Z",
        "0001-01-01T00:00:00Z": "0001-01-01T00:00:00.000Z",
        "0999-01-01T00:00:00.001Z": "0999-01-01T00:00:00.001Z",
        "9999-12-31T23:59:59.999999Z": "9999-12-31T23:59:59.999Z",
    }.items():
        receipt = publish(api, occurred_at=given)
        assert receipt["occurred_at"] == occurred_at
        assert api.get(f"/v1/events/{receipt['id']}").json["occurred_at"] == occurred_at
    assert publish(api, occurred_at=None)["occurred_at"] is not None


def test_what_is_no_time(api):
    times: list[Any] = [
        *("2026-01-31", "2026-01-31T09:30:00", "2026-01-31T09:30Z", "31.1.2026", "now", "", "1767225600"),
        *(
            "2026-02-30T00:00:00Z",
            "2026-13-01T00:00:00Z",
            "2026-01-31T25:00:00Z",
            "2026-01-31T09:30:00+24:00",
        ),
        *("0001-01-01T00:00:00+01:00", "9999-12-31T23:59:59-01:00", "0000-01-01T00:00:00Z"),
        *(
            "2026-01-31T09:30:00.Z",
            "2026-01-31T09:30:00Z ",
            "2026-01-31T09:30:00,5Z",
            "\uff12026-01-31T09:30:00Z",
        ),
        *(1767225600, 1.5, True, [], {}),
    ]
    for moment in times:
        answer = api.post("/v1/events", {"type": "contact.created", "data": {}, "occurred_at": moment})
        expect.invalid(answer, "/occurred_at")
    assert listed(api) == []


def test_the_same_external_id_again_gives_the_first_event(api, doorbell):
    first = publish(
        api, external_id="order-1", data={"contact_id": "1"}, occurred_at="2026-01-31T09:30:00.123456Z"
    )
    doorbell.rings.clear()
    again = publish(api, 200, external_id="order-1", type="message.read", data={"message_id": "2"})
    assert again == {**first, "duplicate": True}
    (event,) = listed(api)
    assert event["data"] == {"contact_id": "1"}
    assert doorbell.rings == []


def test_at_once_from_many_threads_one_event_is_published(api):
    barrier = threading.Barrier(8)
    answers: list[Any] = []

    def run() -> None:
        mine = Api(api.client.application.test_client(), api.key, api.workspace_id, api.key_id)
        barrier.wait()
        for number in range(3):
            event = {"type": "contact.created", "data": {}, "external_id": f"order-{number}"}
            answers.append(mine.post("/v1/events", event))

    threads = [threading.Thread(target=run) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sorted(answer.status_code for answer in answers) == [200] * 21 + [202] * 3
    ids = {(receipt["external_id"], receipt["id"]) for receipt in (answer.json for answer in answers)}
    assert sorted(ids) == sorted((event["external_id"], event["id"]) for event in listed(api))


def test_external_ids(api):
    for external_id in ("1", "x" * 255, "A.b_c:-9", "-", "null"):
        assert publish(api, external_id=external_id)["external_id"] == external_id
    assert [publish(api, external_id=None)["duplicate"] for _ in range(2)] == [False, False]
    external_ids: list[Any] = ["", "x" * 256, "a b", "a\n", "\na", "a/b", "\u00e9", "\u0661", 5, True, ["1"]]
    for external_id in external_ids:
        answer = api.post("/v1/events", {"type": "contact.created", "data": {}, "external_id": external_id})
        expect.invalid(answer, "/external_id")
    assert len(listed(api)) == 7


def test_an_unknown_type(api, doorbell):
    for name in (
        "order.created",
        "contact",
        "CONTACT.CREATED",
        "contact.*",
        "*",
        "",
        " ",
        "x" * 5000,
        "a\nb",
    ):
        answer = api.post("/v1/events", {"type": name, "data": {}})
        (error,) = expect.invalid(answer, "/type", code="unknown_event_type")
        assert error["code"] == "unknown_event_type"
        assert len(answer.data) < 1000
    types: list[Any] = [None, 5, True, ["contact.created"], {}]
    for name in types:
        expect.invalid(api.post("/v1/events", {"type": name, "data": {}}), "/type")
    assert listed(api) == []
    assert doorbell.rings == []


def test_data_that_breaks_the_schema_of_its_type(api, doorbell):
    for data, pointers in (
        ({"message_id": 5}, ["/data/message_id"]),
        ({"contacts": [{"phones": ["1", 2]}]}, ["/data/contacts/0/phones/1"]),
        (
            {"location": {"latitude": 90.5, "longitude": 181}},
            ["/data/location/latitude", "/data/location/longitude"],
        ),
        ({"sent_at": "yesterday"}, ["/data/sent_at"]),
    ):
        answer = api.post("/v1/events", {"type": "message.received", "data": data})
        expect.invalid(answer, *pointers, code="payload_invalid")
    assert listed(api) == []
    assert doorbell.rings == []


def test_data_is_an_object(api):
    for data in (None, [], [1], "{}", 5, 1.5, True):
        expect.invalid(api.post("/v1/events", {"type": "contact.created", "data": data}), "/data")
    expect.invalid(api.post("/v1/events", {"type": "contact.created"}), "/data")


def test_unknown_fields_are_named(api):
    for name, pointer in {
        "extra": "/extra",
        "Data": "/Data",
        "a/b~c": "/a~1b~0c",
        "": "/",
        "\u00fc": "/\u00fc",
        "_schema": "/_schema",
        "id": "/id",
    }.items():
        (error,) = expect.invalid(
            api.post("/v1/events", {"type": "contact.created", "data": {}, name: 1}), pointer
        )
        assert error["code"] == "unknown_field"
    assert listed(api) == []


def test_a_body_that_is_no_object(api):
    for body in ("[]", "[{}]", '"x"', "5", "null", "true"):
        answer = api.post("/v1/events", data=body, content_type="application/json")
        expect.invalid(answer, "")


def test_an_absent_body_is_an_empty_object(api):
    expect.invalid(api.post("/v1/events"), "/type", "/data")
    expect.invalid(api.post("/v1/events", data=b"", content_type="text/plain"), "/type", "/data")


def test_the_list_is_newest_first_and_can_be_narrowed_by_type(api):
    types = ["contact.created", "message.read", "contact.created"]
    ids = [publish(api, type=name)["id"] for name in types]
    assert [event["id"] for event in listed(api)] == ids[::-1]
    assert [event["id"] for event in listed(api, "?type=contact.created")] == [ids[2], ids[0]]
    for name in ("nothing.there", "%25", "x" * 3000, "'", "contact.created%20"):
        assert listed(api, f"?type={name}") == []


def test_the_list_can_be_narrowed_by_time(api):
    before = publish(api, occurred_at="2099-01-01T00:00:00Z")["id"]
    time.sleep(0.003)
    moment = format_time(now())
    time.sleep(0.003)
    after = publish(api, occurred_at="2001-01-01T00:00:00Z")["id"]

    def ids(query: str) -> list[str]:
        return [event["id"] for event in listed(api, query)]

    assert ids(f"?since={moment}") == [after]
    assert ids(f"?until={moment}") == [before]
    assert ids(f"?since={moment}&until={moment}") == []
    assert ids("?since=0001-01-01T00:00:00Z&until=9999-12-31T23:59:59Z") == [after, before]
    assert ids("?since=9999-12-31T23:59:59Z") == ids("?until=0001-01-01T00:00:00Z") == []
    for name in ("since", "until"):
        for value in ("", "yesterday", "2026-01-31", "2026-01-31T09:30:00", "%F0%9F%94%A5"):
            expect.invalid(api.get(f"/v1/events?{name}={value}"), f"/{name}")


def test_a_query_with_nul(api):
    for query in ("?type=%00", "?type=contact.created%00", "?cursor=%00", "?limit=1%00", "?a%00b=1"):
        expect.problem(api.get(f"/v1/events{query}"), 400, "bad_request")


def test_ids_that_name_nothing(api):
    event_id = publish(api)["id"]
    for wrong in (
        *(event_id.upper(), event_id[:-1], event_id + "0", event_id[4:], f"{event_id}%00", f"{event_id}%20"),
        *(
            "0",
            "%00",
            "evt_%00",
            "%ff",
            "%F0%9F%94%A5",
            "a%2Fb",
            "..",
            "%2e%2e",
            "a" * 5000,
            "'",
            "%25",
            "null",
        ),
        api.key_id,
    ):
        expect.problem(api.get(f"/v1/events/{wrong}"), 404, "not_found")
