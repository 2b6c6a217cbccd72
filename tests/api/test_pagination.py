"""Lists are walked by cursors: every row once, however the list changes meanwhile."""

import base64
from typing import Any

from sqlalchemy import insert

from app.core.ids import new_id
from app.deliveries.models import Attempt, Delivery
from tests.api import expect
from tests.api.steps import a_delivery, an_attempt, another_key
from tests.conftest import Api

LISTS = ["/v1/api-keys", "/v1/events", "/v1/event-types", "/v1/endpoints", "/v1/deliveries", "/v1/audit-log"]


def walk(api: Api, path: str, limit: int, field: str = "id", meanwhile: Any = None) -> list[str]:
    """Give what a walk over a list finds, page by page; `meanwhile` happens between any two pages."""
    found: list[str] = []
    cursor: str | None = ""
    while cursor is not None:
        query = f"limit={limit}" + (f"&cursor={cursor}" if cursor else "")
        page = expect.ok(api.get(f"{path}{'&' if '?' in path else '?'}{query}"))
        assert set(page) == {"data", "next_cursor"}
        rows = [row[field] for row in page["data"]]
        cursor = page["next_cursor"]
        assert len(rows) <= limit
        assert len(rows) == limit or cursor is None
        found += rows
        if meanwhile is not None:
            meanwhile()
    return found


def publish(api: Api, count: int) -> list[str]:
    events = [{"type": "contact.created", "data": {}}] * count
    return [
        receipt["id"] for receipt in expect.ok(api.post("/v1/events/batch", {"events": events}), 202)["data"]
    ]


def cursor_of(position: str) -> str:
    return base64.urlsafe_b64encode(position.encode()).decode().rstrip("=")


def test_thousands_of_rows_are_each_found_once_while_others_are_added(api):
    ids = [event_id for _ in range(3) for event_id in publish(api, 1000)]
    added: list[str] = []
    found = walk(api, "/v1/events", 100, meanwhile=lambda: added.extend(publish(api, 3)))
    assert found == ids[::-1]
    assert len(added) == 90


def test_rows_that_go_meanwhile_disturb_nothing(api):
    endpoint = {"url": "https://hooks.example.com/", "events": ["*"]}
    ids = [expect.ok(api.post("/v1/endpoints", endpoint), 201)["id"] for _ in range(9)]
    page = expect.ok(api.get("/v1/endpoints?limit=3"))
    for gone in (ids[6], ids[5], ids[0]):  # the one that the cursor stands on, the next, and the last
        api.call("DELETE", f"/v1/endpoints/{gone}")
    page = expect.ok(api.get(f"/v1/endpoints?limit=3&cursor={page['next_cursor']}"))
    assert [row["id"] for row in page["data"]] == [ids[4], ids[3], ids[2]]
    page = expect.ok(api.get(f"/v1/endpoints?limit=3&cursor={page['next_cursor']}"))
    assert [row["id"] for row in page["data"]] == [ids[1]]
    assert page["next_cursor"] is None


def test_every_list_is_walked_alike(api, resources):
    events = publish(api, 7)[::-1]
    endpoint = {"url": "https://hooks.example.com/", "events": ["*"]}
    endpoints = [api.post("/v1/endpoints", endpoint).json["id"] for _ in range(7)][::-1]
    keys = [api.key_id, *(another_key(resources, api)[0] for _ in range(6))][::-1]
    deliveries = [new_id("dlv") for _ in range(7)]
    attempts = [new_id("att") for _ in range(7)]
    with resources.transaction() as uow:
        uow.session.execute(
            insert(Delivery), [a_delivery(api, *row) for row in zip(deliveries, events, strict=True)]
        )
        rows = zip(attempts, deliveries, events, strict=True)
        uow.session.execute(insert(Attempt), [an_attempt(api, *row, endpoints[0]) for row in rows])

    for path, ids in {
        "/v1/events": events,
        "/v1/events?type=contact.created": events,
        "/v1/endpoints": endpoints,
        "/v1/endpoints?status=active": endpoints,
        "/v1/api-keys": keys,
        "/v1/deliveries": deliveries[::-1],
        "/v1/deliveries?status=pending,failed": deliveries[::-1],
        f"/v1/endpoints/{endpoints[0]}/attempts": attempts[::-1],
        f"/v1/endpoints/{endpoints[0]}/attempts?status=failed": attempts[::-1],
    }.items():
        for limit in (1, 3, 6, 7, 8, 100):
            assert walk(api, path, limit) == ids, path


def test_the_catalogue_is_walked_by_name(api):
    built_in = [entry["name"] for entry in api.get("/v1/event-types").json["data"]]
    own = [f"own.type_{letter}" for letter in "abcdefg"]
    for name in own[::-1]:
        api.call("PUT", f"/v1/event-types/{name}", {})
    for limit in (1, 3, 7, 8, 9, 14, 15, 100):
        assert walk(api, "/v1/event-types", limit, "name") == built_in + own
    page = expect.ok(api.get(f"/v1/event-types?limit={len(built_in) + 2}"))
    api.call("DELETE", "/v1/event-types/own.type_b")  # the one that the cursor stands on
    rest = expect.ok(api.get(f"/v1/event-types?cursor={page['next_cursor']}"))
    assert [entry["name"] for entry in rest["data"]] == own[2:]


def test_a_page_has_25_rows_unless_another_number_is_asked_for(api):
    publish(api, 101)
    assert len(api.get("/v1/events").json["data"]) == 25
    for count in (1, 99, 100):
        assert len(api.get(f"/v1/events?limit={count}").json["data"]) == count
    for path in LISTS:
        for limit in ("0", "-1", "101", "", "x", "1.5", "1e1", "0x10", "9" * 5000, "null", "%2B"):
            expect.invalid(api.get(f"{path}?limit={limit}"), "/limit")


def test_an_empty_list(api):
    for path in ("/v1/events", "/v1/endpoints", "/v1/deliveries"):
        assert expect.ok(api.get(path)) == {"data": [], "next_cursor": None}


def test_what_is_no_cursor(api):
    event_id = publish(api, 2)[0]
    own = expect.ok(api.get("/v1/events?limit=1"))["next_cursor"]
    for path in LISTS:
        bad = [
            *("", "x", "=", "====", "null", "0", "1", "%20", "%F0%9F%94%A5", "%ff", "a b", "../..", "'", "*"),
            *(
                event_id,
                "message.read",
                "A" * 10_000,
                cursor_of(""),
                cursor_of("\0"),
                cursor_of("nothing"),
                "_" * 32,
            ),
            *(
                cursor_of("wf_01kjpx8tcmej9svxw1fyydhpy2"),
                cursor_of(event_id + "0"),
                cursor_of(event_id.upper()),
            ),
            *(cursor_of("evt_zzzzzzzzzzzzzzzzzzzzzzzzzz"), cursor_of("evt_!"), cursor_of(f" {event_id}")),
            *(cursor_of("evt_" + "\u0661" * 26), cursor_of("\ud7ff"), "_w", own[:-1], own + "x", own + "%0A"),
        ]
        if path != "/v1/events":
            bad.append(own)
        for cursor in bad:
            expect.problem(api.get(f"{path}?cursor={cursor}"), 400, "invalid_cursor")


def test_a_cursor_opens_no_other_workspace(new_api):
    mine, theirs = new_api(), new_api()
    ids = publish(mine, 2)
    publish(theirs, 2)
    cursor = expect.ok(theirs.get("/v1/events?limit=1"))["next_cursor"]
    assert [row["id"] for row in mine.get(f"/v1/events?cursor={cursor}").json["data"]] == ids[::-1]
