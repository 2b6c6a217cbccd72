"""An expunged payload is gone from everywhere at once, and is never sent again."""

from typing import Any

from sqlalchemy import select

from app.audit.models import AuditEntry
from app.core.database import Base
from app.core.unit_of_work import Resources
from app.deliveries import engine
from tests import receivers
from tests.api import expect
from tests.conftest import Api
from tests.flows.steps import deliveries_of, log_of, make_endpoint, pass_time, publish

CANARY = "canary-7f3a"


def expunge(api: Api, event: dict[str, Any]) -> None:
    """Expunge an event's payload."""
    answer = api.call("DELETE", f"/v1/events/{event['id']}/payload")
    assert answer.status_code == 204, answer.json
    assert answer.get_data() == b""


def event_of(api: Api, event: dict[str, Any]) -> Any:
    """Give an event as the API shows it."""
    return expect.ok(api.get(f"/v1/events/{event['id']}"))


def rows_with(resources: Resources, word: str) -> list[str]:
    """Give the tables that have a word somewhere, once for each row."""

    def has_it(row: Any) -> bool:
        return any(
            word.encode() in (value if isinstance(value, bytes) else str(value).encode()) for value in row
        )

    with resources.transaction(write=False) as uow:
        return [
            table.name
            for table in Base.metadata.sorted_tables
            for row in uow.connection.execute(select(table))
            if has_it(row)
        ]


def fan_out(resources: Resources) -> None:
    with resources.transaction() as uow:
        engine.fan_out(uow)


def test_an_expunged_payload_is_gone_and_leaves_a_marker(api, resources):
    event = publish(api, text=CANARY)
    assert event_of(api, event)["payload_expunged_at"] is None
    assert event_of(api, event)["data"] == {"text": CANARY}
    expunge(api, event)
    shown = event_of(api, event)
    assert shown["data"] is None
    assert shown["payload_expunged_at"] is not None
    assert {**shown, "data": 0, "payload_expunged_at": 0, "deliveries": 0} == {
        **{name: value for name, value in event.items() if name != "duplicate"},
        "data": 0,
        "payload_expunged_at": 0,
        "deliveries": 0,
    }
    (listed,) = expect.ok(api.get("/v1/events"))["data"]
    assert listed == {name: value for name, value in shown.items() if name != "deliveries"}
    assert rows_with(resources, CANARY) == []


def test_it_is_gone_from_the_log_and_from_what_receivers_echoed(api, drain, resources):
    with receivers.ok(body=f"got {CANARY}".encode()) as receiver:
        made = make_endpoint(api, receiver)
        make_endpoint(api, receiver, "/other", format={"type": "slack"})
        event, other = publish(api, text=CANARY), publish(api, text="another")
        drain()
    assert set(rows_with(resources, CANARY)) >= {"events", "attempts"}
    expunge(api, event)
    with resources.transaction(write=False) as uow:
        bodies = [row.body for row in uow.connection.execute(select(Base.metadata.tables["rendered_bodies"]))]
    assert len(bodies) == 1  # the other event's
    by_event = {attempt["event_id"]: attempt for attempt in log_of(api, made)}
    assert by_event[event["id"]]["request"]["body"] is None
    assert by_event[event["id"]]["response"]["body"] is None
    assert by_event[event["id"]]["response"]["headers"]
    assert by_event[event["id"]]["status_code"] == 200
    assert "another" in by_event[other["id"]]["request"]["body"]
    assert by_event[other["id"]]["response"]["body"] == f"got {CANARY}"
    assert rows_with(resources, CANARY) == ["attempts"] * 2  # what the other event's receivers said


def test_what_is_pending_of_it_is_canceled(api, drain, resources):
    with receivers.ok() as receiver:
        receiver.script("/hook", [500])
        made = make_endpoint(api, receiver)
        paused = make_endpoint(api, receiver, "/paused")
        api.post(f"/v1/endpoints/{paused['id']}/pause")
        event = publish(api, text=CANARY)
        drain()
        expunge(api, event)
        pass_time(resources, 3600)
        api.post(f"/v1/endpoints/{paused['id']}/resume")
        drain()
        assert len(receiver.requests) == 1
    for endpoint in (made, paused):
        (delivery,) = deliveries_of(api, endpoint)
        assert delivery["status"] == "canceled"
        assert delivery["next_attempt_at"] is None
        assert delivery["finished_at"] is not None


def test_what_was_delivered_before_stays_delivered(api, drain):
    with receivers.ok() as receiver:
        made = make_endpoint(api, receiver)
        event = publish(api)
        drain()
    expunge(api, event)
    assert [delivery["status"] for delivery in deliveries_of(api, made)] == ["succeeded"]


def test_an_event_that_was_not_yet_fanned_out_goes_to_nobody(api, drain):
    with receivers.ok() as receiver:
        made = make_endpoint(api, receiver)
        event = publish(api)
        expunge(api, event)
        other = publish(api)
        drain()
        assert [request.header("webhook-id") for request in receiver.requests] == [other["id"]]
    assert [delivery["event_id"] for delivery in deliveries_of(api, made)] == [other["id"]]


def test_an_answer_to_what_was_under_way_is_not_shown(api, drain, resources):
    """The attempt was sent before: it is in the log, without what it sent and what came back."""
    with receivers.ok(body=CANARY.encode()) as receiver:
        made = make_endpoint(api, receiver)
        event = publish(api, text=CANARY)
        fan_out(resources)
        original = receiver.note

        def note(request: Any) -> None:
            original(request)
            expunge(api, event)

        receiver.note = note  # type: ignore[method-assign]
        drain()
    (attempt,) = log_of(api, made)
    assert (attempt["request"]["body"], attempt["response"]["body"]) == (None, None)
    (delivery,) = deliveries_of(api, made)
    assert delivery["status"] == "canceled"
    # And the next request erases it from the database as well.
    expunge(api, event)
    assert rows_with(resources, CANARY) == []


def test_again_changes_nothing(api, resources):
    event = publish(api)
    expunge(api, event)
    first = event_of(api, event)
    expunge(api, event)
    assert event_of(api, event) == first
    with resources.transaction(write=False) as uow:
        query = select(AuditEntry.action, AuditEntry.actor_id).where(AuditEntry.resource_id == event["id"])
        assert uow.connection.execute(query).all() == [("event.payload_expunged", api.key_id)]


def test_the_caller_s_own_id_stays_taken(api):
    """Publishing again what was expunged would bring it back."""
    draft = {"type": "message.received", "data": {"text": CANARY}, "external_id": "order-1"}
    event = expect.ok(api.post("/v1/events", draft), 202)
    expunge(api, event)
    again = expect.ok(api.post("/v1/events", draft))
    assert (again["id"], again["duplicate"]) == (event["id"], True)
    assert event_of(api, event)["data"] is None


def test_only_one_s_own_events_can_be_expunged(api, new_api):
    event = publish(api)
    expect.problem(new_api().call("DELETE", f"/v1/events/{event['id']}/payload"), 404, "not_found")
    assert event_of(api, event)["data"] == {"text": "hi"}
    missing = api.call("DELETE", "/v1/events/evt_01kjpx8tcmej9svxw1fyydhpy2/payload")
    expect.problem(missing, 404, "not_found")


def test_an_expunged_event_is_not_sent_again(api, drain):
    with receivers.ok() as receiver:
        made = make_endpoint(api, receiver)
        event = publish(api)
        drain()
        expunge(api, event)
        (delivery,) = deliveries_of(api, made)
        for path in (f"/v1/deliveries/{delivery['id']}/retry", f"/v1/events/{event['id']}/replay"):
            answer = api.post(path)
            assert answer.status_code == 409, answer.json
        drain()
        assert len(receiver.requests) == 1
