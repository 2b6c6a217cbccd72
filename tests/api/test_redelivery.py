"""Retry, replay and recover as the API has them: who may, what is refused, and what is told afterwards."""

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import insert, update

from app.core.clock import format_time, now
from app.core.ids import is_id, new_id
from app.core.unit_of_work import Resources
from app.deliveries import engine
from app.deliveries.models import Delivery, DeliveryStatus
from app.deliveries.recoveries import MAX_AGE, STEP_DELIVERIES
from config.wire import TaskName
from tests.api import expect
from tests.api.routes import MISSING
from tests.api.steps import a_delivery
from tests.conftest import Api

HOUR = timedelta(hours=1)


def an_endpoint(api: Api, **fields: Any) -> Any:
    fields = {"url": "https://hooks.example.com/", "events": ["*"], **fields}
    return expect.ok(api.post("/v1/endpoints", fields), 201)


def publish(api: Api) -> Any:
    return expect.ok(api.post("/v1/events", {"type": "contact.created", "data": {}}), 202)


def deliver(resources: Resources, status: DeliveryStatus = DeliveryStatus.PENDING) -> None:
    """Make the deliveries, and let them have ended so, but for their pending rows."""
    with resources.transaction() as uow:
        engine.fan_out(uow)
        uow.session.execute(update(Delivery).values(status=status.value))


def the_delivery(api: Api) -> Any:
    (delivery,) = expect.ok(api.get("/v1/deliveries"))["data"]
    return delivery


def recover(api: Api, made: Any, since: datetime | str, **body: Any) -> Any:
    since = since if isinstance(since, str) else since.isoformat()
    return api.post(f"/v1/endpoints/{made['id']}/recover", {"since": since, **body})


def audited(api: Api) -> list[tuple[str, str]]:
    entries = expect.ok(api.get("/v1/audit-log?limit=100"))["data"]
    return [(entry["action"], entry["resource"]["id"]) for entry in reversed(entries)]


def test_only_its_own_workspace_can_ask_for_anything(
    api: Api, new_api: Callable[[], Api], resources: Resources
) -> None:
    made, event = an_endpoint(api), publish(api)
    deliver(resources, DeliveryStatus.FAILED)
    delivery = the_delivery(api)
    recovery = expect.ok(recover(api, made, now() - HOUR), 202)
    stranger = new_api()
    job = f"/v1/endpoints/{made['id']}/recoveries/{recovery['id']}"
    for method, path in (
        ("POST", f"/v1/deliveries/{delivery['id']}/retry"),
        ("POST", f"/v1/events/{event['id']}/replay"),
        ("POST", f"/v1/endpoints/{made['id']}/recover"),
        ("GET", f"/v1/endpoints/{made['id']}/recoveries"),
        ("GET", job),
        ("POST", f"{job}/cancel"),
    ):
        body = {"since": (now() - HOUR).isoformat()} if path.endswith("/recover") else None
        expect.problem(stranger.call(method, path, body), 404, "not_found")
    other = an_endpoint(stranger)
    for each, endpoint in ((stranger, other), (api, an_endpoint(api))):
        path = f"/v1/endpoints/{endpoint['id']}/recoveries/{recovery['id']}"
        expect.problem(each.get(path), 404, "not_found")
    # And its own endpoints are no place for a stranger's events.
    expect.invalid(
        api.post(f"/v1/events/{event['id']}/replay", {"endpoint_ids": [made["id"], other["id"]]}),
        "/endpoint_ids/1",
    )
    assert the_delivery(api) == delivery


def test_what_is_asked_for_is_in_the_audit_log(api, resources):
    made, event = an_endpoint(api), publish(api)
    deliver(resources)
    delivery = the_delivery(api)
    before = audited(api)
    expect.ok(api.post(f"/v1/deliveries/{delivery['id']}/retry"), 202)
    expect.ok(api.post(f"/v1/events/{event['id']}/replay"), 202)
    deliver(resources, DeliveryStatus.FAILED)
    recovery = expect.ok(recover(api, made, now() - HOUR), 202)
    cancel = f"/v1/endpoints/{made['id']}/recoveries/{recovery['id']}/cancel"
    for _ in range(2):
        expect.ok(api.post(cancel))
    assert audited(api)[len(before) :] == [
        ("delivery.retried", delivery["id"]),
        ("event.replayed", event["id"]),
        ("endpoint.recovery_started", made["id"]),
        ("endpoint.recovery_canceled", made["id"]),
    ]


def test_what_is_refused_changes_nothing(api, resources, doorbell):
    made, event = an_endpoint(api), publish(api)
    deliver(resources, DeliveryStatus.CANCELED)
    before, delivery = audited(api), the_delivery(api)
    doorbell.rings.clear()
    retry = f"/v1/deliveries/{delivery['id']}/retry"
    expect.problem(api.post(retry), 409, "delivery_canceled")
    expect.problem(api.post(f"/v1/deliveries/{MISSING['delivery_id']}/retry"), 404, "not_found")
    expect.problem(api.post(f"/v1/events/{MISSING['event_id']}/replay"), 404, "not_found")
    expect.invalid(api.post(retry, {"now": True}), "/now")
    replay = f"/v1/events/{event['id']}/replay"
    expect.invalid(api.post(replay, {"endpoint_ids": []}), "/endpoint_ids")
    expect.invalid(api.post(replay, {"endpoint_ids": [made["id"]] * 101}), "/endpoint_ids")
    errors = expect.invalid(
        api.post(replay, {"endpoint_ids": ["ep_x", made["id"], MISSING["endpoint_id"]]}),
        "/endpoint_ids/0",
        "/endpoint_ids/2",
    )
    assert {error["code"] for error in errors} == {"unknown_endpoint"}
    assert (audited(api), the_delivery(api), doorbell.rings) == (before, delivery, [])


def test_a_delivery_whose_event_is_gone_cannot_be_sent(api, resources):
    made = an_endpoint(api)
    row = a_delivery(api, new_id("dlv"), new_id("evt"))
    with resources.transaction() as uow:
        uow.session.execute(insert(Delivery), {**row, "endpoint_id": made["id"], "status": "failed"})
    expect.problem(api.post(f"/v1/deliveries/{row['id']}/retry"), 409, "payload_expunged")


def test_an_event_that_nobody_wants_is_replayed_to_nobody(api, resources):
    an_endpoint(api, events=["message.*"])
    event = publish(api)
    assert expect.ok(api.post(f"/v1/events/{event['id']}/replay", {"endpoint_ids": None}), 202) == {
        "data": []
    }


def test_a_recovery_as_it_is_shown(api, doorbell):
    made = an_endpoint(api)
    since = now() - HOUR
    doorbell.rings.clear()
    asked_at = now()
    shown = expect.ok(recover(api, made, since), 202)
    assert is_id(shown.pop("id"), "rcv")
    for name in ("until", "created_at", "finished_at"):
        assert abs(datetime.fromisoformat(shown.pop(name)) - asked_at) < timedelta(seconds=10)
    assert shown == {
        "endpoint_id": made["id"],
        "since": format_time(since),
        "dry_run": False,
        "status": "done",  # there was nothing to do
        "matched": 0,
        "done": 0,
    }


def test_the_span_of_a_recovery(api):
    made = an_endpoint(api)
    moment = now()
    errors = expect.invalid(recover(api, made, moment - MAX_AGE - timedelta(seconds=5)), "/since")
    assert errors[0]["code"] == "too_old"
    assert timedelta(days=14) == MAX_AGE
    for since, until in (
        (moment + HOUR, None),
        (moment - HOUR, moment - HOUR),
        (moment - HOUR, moment - 2 * HOUR),
    ):
        body = {"until": until.isoformat()} if until else {}
        assert expect.invalid(recover(api, made, since, **body), "/since")[0]["code"] == "not_before_until"
    expect.invalid(recover(api, made, "yesterday"), "/since")
    expect.invalid(api.post(f"/v1/endpoints/{made['id']}/recover"), "/since")
    expect.invalid(recover(api, made, moment - HOUR, dry_run="perhaps"), "/dry_run")

    accepted = expect.ok(recover(api, made, moment - MAX_AGE + timedelta(minutes=1)), 202)
    assert accepted["status"] == "done"
    # What lies ahead cannot have failed: the span ends now.
    shown = expect.ok(recover(api, made, moment - HOUR, until=(moment + HOUR).isoformat()), 202)
    assert datetime.fromisoformat(shown["until"]) <= now()


def test_recoveries_are_listed_newest_first(api, new_api):
    made = an_endpoint(api)
    ids = [
        expect.ok(recover(api, made, now() - HOUR, dry_run=bool(number % 2)), 202)["id"]
        for number in range(5)
    ]
    path = f"/v1/endpoints/{made['id']}/recoveries?limit=2"
    listed, cursor = [], ""
    while True:
        page = expect.ok(api.get(path + cursor))
        listed += [row["id"] for row in page["data"]]
        if page["next_cursor"] is None:
            break
        cursor = f"&cursor={page['next_cursor']}"
    assert listed == ids[::-1]
    (newest, *_) = expect.ok(api.get(path))["data"]
    assert expect.ok(api.get(f"/v1/endpoints/{made['id']}/recoveries/{newest['id']}")) == newest
    expect.problem(api.get(path + "&cursor=x"), 400, "invalid_cursor")


@pytest.mark.parametrize("count", [STEP_DELIVERIES - 1, STEP_DELIVERIES])
def test_the_request_itself_looks_at_so_many_deliveries_at_most(api, resources, doorbell, count):
    made, event = an_endpoint(api), publish(api)
    row = {**a_delivery(api, "", event["id"]), "endpoint_id": made["id"], "status": "failed"}
    rows = [{**row, "id": new_id("dlv"), "event_id": new_id("evt")} for _ in range(count)]
    rows[0]["event_id"] = event["id"]  # of the others' events nothing is left
    with resources.transaction() as uow:
        uow.session.execute(insert(Delivery), rows)
    doorbell.rings.clear()
    shown = expect.ok(recover(api, made, now() - HOUR, dry_run=True), 202)
    assert (shown["matched"], shown["status"]) == (1, "running" if count == STEP_DELIVERIES else "done")
    assert (TaskName.RECOVERIES_ADVANCE, 0) in doorbell.rings
