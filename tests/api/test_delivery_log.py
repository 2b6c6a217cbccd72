"""The delivery log is found by what one looks for, in bounded time, and comes whole as lines of JSON."""

import json
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import insert

from app.core.clock import format_time, now
from app.core.ids import first_id_at, new_id
from app.core.unit_of_work import Resources
from app.deliveries import engine, repository
from app.deliveries.models import Attempt, Delivery, PendingDelivery
from tests import receivers
from tests.api import expect
from tests.api.steps import a_delivery, an_attempt, record_statements
from tests.conftest import Api
from tests.flows.steps import deliveries_of, log_of, make_endpoint, pass_time, publish, publish_many

MINUTE = timedelta(minutes=1)


@pytest.fixture
def made(api) -> dict[str, Any]:
    """Give an endpoint."""
    return make_endpoint(api, "https://hooks.example.com")


@pytest.fixture
def few(monkeypatch) -> int:
    """Give how many rows a request looks at, which is few."""
    monkeypatch.setattr(repository, "MAX_SEARCHED", 20)
    return 20


def log(resources: Resources, api: Api, made: dict[str, Any], *codes: int | None, **fields: Any) -> list[str]:
    """Add attempts with these codes to an endpoint's log; gives their ids, oldest first."""
    rows = []
    for code in codes:
        row = an_attempt(api, new_id("att"), new_id("dlv"), new_id("evt"), made["id"])
        good = code is not None and 200 <= code < 300
        rows.append({**row, "status_code": code, "status": "success" if good else "failed", **fields})
    with resources.transaction() as uow:
        uow.connection.execute(insert(Attempt), rows)
    return [row["id"] for row in rows]


def found(api: Api, made: dict[str, Any], query: str) -> list[str]:
    """Give the ids of a page of the log, oldest first."""
    page = expect.ok(api.get(f"/v1/endpoints/{made['id']}/attempts?{query}"))
    return [attempt["id"] for attempt in page["data"]][::-1]


def walk(api: Api, path: str) -> tuple[list[str], int]:
    """Give the ids of all pages, newest first, and how many pages there were."""
    ids, cursor, pages = [], "", 0
    while True:
        page = expect.ok(api.get(path + cursor))
        ids += [each["id"] for each in page["data"]]
        pages += 1
        if page["next_cursor"] is None:
            return ids, pages
        cursor = f"&cursor={page['next_cursor']}"


def export(api: Api, made: dict[str, Any], query: str = "") -> list[Any]:
    """Give the lines of an exported log."""
    answer = api.get(f"/v1/endpoints/{made['id']}/attempts.ndjson{query}")
    assert answer.status_code == 200, answer.json
    assert answer.content_type == "application/x-ndjson"
    assert answer.headers["Cache-Control"] == "no-store"
    body = answer.get_data(as_text=True)
    assert not body or body.endswith("\n")
    return [json.loads(line) for line in body.splitlines()]


def test_a_log_is_filtered_by_codes_and_classes_of_them(api, resources, made):
    ok, created, moved, missing, broken, silent = log(resources, api, made, 200, 201, 301, 404, 500, None)
    for asked, wanted in {
        "2xx": [ok, created],
        "200": [ok],
        "3xx": [moved],
        "404": [missing],
        "4xx,5xx": [missing, broken],
        "none": [silent],
        "201,none": [created, silent],
        "1xx": [],
        "1xx,2xx,3xx,4xx,5xx,none": [ok, created, moved, missing, broken, silent],
    }.items():
        assert found(api, made, f"status_code={asked}") == wanted, asked


def test_filters_are_combined(api, resources, made):
    log(resources, api, made, 404)
    old, wanted = log(resources, api, made, 404, 404, event_type="contact.updated")
    log(resources, api, made, 500, 200, event_type="contact.updated")
    query = "status=failed&status_code=4xx&event_type=contact.updated"
    assert found(api, made, query) == [old, wanted]
    assert found(api, made, f"{query}&limit=1") == [wanted]
    assert found(api, made, "status=success&status_code=4xx") == []


def test_a_log_is_filtered_by_time(api, resources, made):
    moment = now()
    ids = [first_id_at("att", moment + number * MINUTE) for number in range(-3, 1)]
    for each in ids:
        log(resources, api, made, 200, id=each)
    since, until = format_time(moment - 2 * MINUTE), format_time(moment)
    assert found(api, made, f"since={since}&until={until}") == ids[1:3]
    assert found(api, made, f"since={since}&until={until}&status_code=2xx") == ids[1:3]


def test_codes_that_are_none_are_refused(api, made):
    for bad in ("", "6xx", "42", "2XX", "200,", "20x", "600", "none,no", "200 "):
        answer = api.get(f"/v1/endpoints/{made['id']}/attempts", query_string={"status_code": bad})
        expect.invalid(answer, "/status_code")


def test_an_event_s_attempts_are_found(api, drain, resources):
    with receivers.ok() as receiver:
        receiver.script("/hook", [500])
        made, other = make_endpoint(api, receiver), make_endpoint(api, receiver, "/other")
        publish(api)
        drain()
        event = publish(api)
        drain()
        pass_time(resources, 3600)
        drain()
    log_ids = [each["id"] for each in log_of(api, made) if each["event_id"] == event["id"]][::-1]
    assert found(api, made, f"event_id={event['id']}") == log_ids
    assert len(found(api, other, f"event_id={event['id']}")) == 1
    assert found(api, made, f"event_id={event['id']}&status=failed") == []
    assert found(api, made, "event_id=evt_01kjpx8tcmej9svxw1fyydhpy2") == []


def test_no_workspace_finds_another_s_attempts(api, drain, new_api):
    with receivers.ok() as receiver:
        make_endpoint(api, receiver)
        event = publish(api)
        drain()
    other = new_api()
    made = make_endpoint(other, "https://hooks.example.com")
    assert found(other, made, f"event_id={event['id']}") == []


def test_a_rare_kind_is_searched_for_a_part_at_a_time(api, resources, made, few):
    rare = log(resources, api, made, 200, event_type="contact.updated")
    log(resources, api, made, *[200] * (3 * few))
    statements = record_statements(resources)
    first = expect.ok(api.get(f"/v1/endpoints/{made['id']}/attempts?event_type=contact.updated"))
    assert first["data"] == []
    assert first["next_cursor"] is not None
    assert len([each for each in statements if "FROM attempts" in each]) == 2
    ids, pages = walk(api, f"/v1/endpoints/{made['id']}/attempts?event_type=contact.updated")
    assert ids == rare
    assert pages == 3 * few // (few + 1) + 1


def test_no_row_is_lost_or_doubled_where_a_search_ends(api, resources, made, few):
    ids = log(resources, api, made, *[200, 404, 500] * few)
    for query, wanted in {
        "status_code=404": ids[1::3],
        "status_code=2xx": ids[::3],
        "status=success": ids[::3],
        "status=failed": [each for each in ids if each not in ids[::3]],
        "status=success,failed": ids,
    }.items():
        for limit in (1, 7, 100):
            got, _ = walk(api, f"/v1/endpoints/{made['id']}/attempts?{query}&limit={limit}")
            assert got == wanted[::-1], (query, limit)


def test_failures_are_found_by_their_index_however_few(api, resources, made, few):
    failed = log(resources, api, made, 404, 500)
    log(resources, api, made, *[200] * (5 * few))
    for query in ("status=failed", "status_code=4xx,5xx", "status_code=404,none,500"):
        statements = record_statements(resources)
        assert found(api, made, query) == failed, query
        searches = [each for each in statements if "FROM attempts" in each]
        # In the very words of the partial index: for a parameter no planner would take it.
        assert searches
        assert all("attempts.status = 'failed'" in each for each in searches)


def test_a_pending_delivery_is_found_however_many_are_not(api, resources, made, few):
    rows = [a_delivery(api, new_id("dlv"), new_id("evt")) for _ in range(3 * few)]
    rows = [{**row, "endpoint_id": made["id"], "status": "succeeded"} for row in rows]
    rows[0]["status"] = rows[1]["status"] = "pending"
    pending = [
        {"event_id": row["event_id"], "endpoint_id": row["endpoint_id"], "delivery_id": row["id"]}
        for row in rows[:2]
    ]
    with resources.transaction() as uow:
        uow.connection.execute(insert(Delivery), rows)
        uow.connection.execute(insert(PendingDelivery), pending)
    wanted = [row["id"] for row in rows[1::-1]]
    for path in ("/v1/deliveries?status=pending", f"/v1/deliveries?status=pending&endpoint_id={made['id']}"):
        assert walk(api, path) == (wanted, 1)
        assert walk(api, f"{path}&limit=1") == (wanted, 2)
    assert walk(api, "/v1/deliveries?status=pending,failed")[0] == wanted
    other = make_endpoint(api, "https://hooks.example.com")
    assert walk(api, f"/v1/deliveries?status=pending&endpoint_id={other['id']}") == ([], 1)


def test_many_pending_deliveries_are_listed_too(api, resources, made, few):
    publish_many(api, 2 * few)
    with resources.transaction() as uow:
        engine.fan_out(uow)
    ids, _ = walk(api, "/v1/deliveries?status=pending&limit=7")
    assert ids == [each["id"] for each in deliveries_of(api, made)]
    assert len(ids) == 2 * few


def test_deliveries_of_another_workspace_are_not_pending_here(api, new_api, resources, made):
    publish_many(api, 3)
    with resources.transaction() as uow:
        engine.fan_out(uow)
    other = new_api()
    assert walk(other, "/v1/deliveries?status=pending") == ([], 1)
    assert walk(other, f"/v1/deliveries?status=pending&endpoint_id={made['id']}") == ([], 1)
    # Nor do they take the place of one's own.
    make_endpoint(other, "https://hooks.example.com")
    publish_many(other, 5)
    with resources.transaction() as uow:
        engine.fan_out(uow)
    assert len(walk(api, "/v1/deliveries?status=pending&limit=1")[0]) == 3


def test_failed_deliveries_are_searched_for_a_part_at_a_time(api, resources, made, few):
    rows = [
        {**a_delivery(api, new_id("dlv"), new_id("evt")), "endpoint_id": made["id"], "status": "succeeded"}
        for _ in range(3 * few)
    ]
    rows[0]["status"] = rows[few]["status"] = "failed"
    with resources.transaction() as uow:
        uow.connection.execute(insert(Delivery), rows)
    wanted = [rows[few]["id"], rows[0]["id"]]
    assert walk(api, "/v1/deliveries?status=failed") == (wanted, 3)
    assert walk(api, f"/v1/deliveries?status=failed&endpoint_id={made['id']}") == (wanted, 3)
    # An event has few deliveries: they are looked through at once.
    assert walk(api, f"/v1/deliveries?status=failed&event_id={rows[0]['event_id']}") == (wanted[1:], 1)


def test_the_log_is_exported_line_by_line_as_it_is_listed(api, drain, resources):
    with receivers.ok() as receiver:
        made = make_endpoint(api, receiver)
        publish_many(api, 250)
        drain()
    lines = export(api, made)
    assert lines == log_of(api, made)
    assert len(lines) == 250
    assert lines[0]["request"]["headers"]["X-BotBat-Signature"].startswith("t=")


def test_an_export_has_what_the_filters_let_through(api, resources, made, few):
    ids = log(resources, api, made, *[200, 404] * 150)
    assert [line["id"] for line in export(api, made, "?status_code=404")] == ids[1::2][::-1]
    assert export(api, made, "?event_type=contact.deleted") == []
    moment = format_time(now() + MINUTE)
    assert export(api, made, f"?since={moment}") == []


def test_what_headers_have_for_secrets_is_masked_in_an_export(api, resources, made):
    headers = [
        ["Authorization", "Basic canary1"],
        ["Proxy-Authorization", "canary2"],
        ["Set-Cookie", "a=canary3"],
        ["X-Api-Key", "canary4"],
        ["X-Auth-Token", "canary5"],
        ["Content-Type", "text/plain"],
    ]
    text = json.dumps(headers)
    log(resources, api, made, 200, request_headers=text, response_headers=text)
    (line,) = export(api, made)
    assert "canary" not in json.dumps(line)
    for part in ("request", "response"):
        assert line[part]["headers"]["Content-Type"] == "text/plain"
        assert line[part]["headers"]["Authorization"] == "***"


def test_what_is_wrong_with_an_export_is_told_before_its_first_byte(api, made, new_api):
    path = f"/v1/endpoints/{made['id']}/attempts.ndjson"
    expect.invalid(api.get(f"{path}?status=good&status_code=9xx"), "/status", "/status_code")
    expect.problem(new_api().get(path), 404, "not_found")


def test_no_transaction_is_open_while_a_client_reads_an_export_slowly(api, resources, made):
    ids = log(resources, api, made, *[200] * 350)
    pool = resources.database.engine.pool
    answer = api.get(f"/v1/endpoints/{made['id']}/attempts.ndjson", buffered=False)
    read = []
    for line in answer.iter_encoded():
        assert pool.checkedout() == 0
        read.append(json.loads(line)["id"])
    assert read == ids[::-1]


def test_an_export_goes_on_when_its_endpoint_is_deleted_meanwhile(api, resources, made):
    ids = log(resources, api, made, *[200] * 350)
    answer = api.get(f"/v1/endpoints/{made['id']}/attempts.ndjson", buffered=False)
    lines = answer.iter_encoded()
    read = [json.loads(next(iter(lines)))["id"]]
    assert api.call("DELETE", f"/v1/endpoints/{made['id']}").status_code == 204
    read += [json.loads(line)["id"] for line in lines]
    assert read == ids[::-1]
