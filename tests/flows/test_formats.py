"""What endpoints with a format of their own get: rendered once per event, signed, the same bytes on every attempt."""

import hashlib
import json
from typing import Any

import pytest
from sqlalchemy import select, update
from structlog.testing import capture_logs

from app.core.database import utc_now
from app.core.unit_of_work import Resources, UnitOfWork
from app.deliveries import engine, rendering
from app.deliveries.models import PendingDelivery, RenderedBody
from app.deliveries.work import DueDelivery, Quota
from app.endpoints.models import Endpoint
from app.events.models import Event
from tests import receivers
from tests.api.steps import record_statements
from tests.api.test_endpoint_secrets import everything_at_rest
from tests.conftest import Api
from tests.flows.steps import (
    accepted,
    change_endpoint,
    deliveries_of,
    log_of,
    make_endpoint,
    pass_time,
    publish,
    publish_many,
    verify,
    wait_until,
    workers,
)

ROUTING_KEY = "Canary" + "x1" * 13
PAGERDUTY = {"type": "pagerduty", "routing_key": ROUTING_KEY}
STRICT = '{\n  "text": {{ data.subject | json }}\n}'


def template(text: str, content_type: str = "application/json") -> dict[str, str]:
    return {"type": "template", "template": text, "content_type": content_type}


def replay(api: Api, event: dict[str, Any], *made: dict[str, Any]) -> None:
    accepted(
        api.post(f"/v1/events/{event['id']}/replay", {"endpoint_ids": [each["id"] for each in made]}), 202
    )


def retry(api: Api, made: dict[str, Any]) -> None:
    accepted(api.post(f"/v1/deliveries/{deliveries_of(api, made)[0]['id']}/retry"), 202)


def rendered(resources: Resources) -> dict[str, RenderedBody]:
    """Give the rendered bodies by endpoint."""
    with resources.transaction(write=False) as uow:
        return {row.endpoint_id: row for row in uow.session.scalars(select(RenderedBody))}


def lose_key(resources: Resources, made: dict[str, Any], **columns: Any) -> None:
    """Have what an endpoint keeps encrypted be of a key that is not configured."""
    with resources.transaction() as uow:
        uow.session.execute(
            update(Endpoint).where(Endpoint.id == made["id"]).values(**columns, updated_at=utc_now())
        )


def stored_format(resources: Resources, made: dict[str, Any]) -> str | None:
    with resources.transaction(write=False) as uow:
        return uow.session.scalars(select(Endpoint.format_options).where(Endpoint.id == made["id"])).one()


@pytest.fixture
def statements(resources: Resources) -> list[str]:
    return record_statements(resources)


def pending(uow: UnitOfWork) -> list[DueDelivery]:
    """Give all pending deliveries as a pump claims them."""
    endpoint_ids = set(uow.session.scalars(select(PendingDelivery.endpoint_id)))
    return engine.claim(uow, quotas=[Quota(each, 100, 100) for each in endpoint_ids], held=[])


def test_slack_pagerduty_and_templates_get_their_bodies_signed_and_the_default_the_envelope(api, drain):
    formats = {
        "/default": "default",
        "/slack": "slack",
        "/pager": PAGERDUTY,
        "/json": template('{"said": {{ data.text | json }}, "whole": {{ event | json }}}'),
        "/text": template("{{ type }}: {{ data.text }} Grüße", "text/plain"),
        "/form": template("text={{ data.text | url_encode }}", "application/x-www-form-urlencoded"),
    }
    with receivers.ok() as receiver:
        made = {path: make_endpoint(api, receiver, path, format=each) for path, each in formats.items()}
        event = publish(api, text='Is "it" there?')
        assert drain() == len(formats)
        requests = {request.path: request for request in receiver.requests}
    bodies = {path: request.body.decode() for path, request in requests.items()}
    envelope = json.loads(bodies["/default"])
    assert (envelope["id"], envelope["data"]) == (event["id"], {"text": 'Is "it" there?'})
    message = json.loads(bodies["/slack"])
    assert message["text"].endswith('Is "it" there?')
    assert message["blocks"][0]["type"] == "header"
    alert = json.loads(bodies["/pager"])
    assert (alert["routing_key"], alert["dedup_key"]) == (ROUTING_KEY, event["id"])
    assert alert["payload"]["custom_details"] == envelope["data"]
    assert json.loads(bodies["/json"]) == {"said": 'Is "it" there?', "whole": envelope}
    assert bodies["/text"] == 'message.received: Is "it" there? Grüße'
    assert bodies["/form"] == "text=Is+%22it%22+there%3F"
    assert {path: request.header("Content-Type") for path, request in requests.items()} == {
        **dict.fromkeys(formats, "application/json"),
        "/text": "text/plain; charset=utf-8",
        "/form": "application/x-www-form-urlencoded",
    }
    for path, request in requests.items():
        verify(request, made[path]["signing_secret"])
        assert request.header("X-BotBat-Event") == "message.received"
        assert request.header("webhook-id") == event["id"]


def test_a_retry_sends_the_same_bytes_whatever_the_format_is_by_then(api, resources, drain):
    formats = {"/template": template("1"), "/pager": PAGERDUTY, "/slack": "slack", "/default": "default"}
    with receivers.ok() as receiver:
        made = {path: make_endpoint(api, receiver, path, format=each) for path, each in formats.items()}
        for path in formats:
            receiver.script(path, [500, 500])
        publish(api)
        drain()
        change_endpoint(api, made["/template"], format=template("2"))
        change_endpoint(api, made["/pager"], format={**PAGERDUTY, "routing_key": "a" * 32})
        change_endpoint(api, made["/slack"], format="default")
        change_endpoint(api, made["/default"], format="slack")
        pass_time(resources, 60)
        drain()
        pass_time(resources, 3600)
        drain()
        for path in formats:
            first, *retries = [(request.body, request.headers[0]) for request in receiver.requests_to(path)]
            assert retries == [first] * 2
        publish(api)  # what comes then has the new format
        drain()
        last = {path: receiver.requests_to(path)[-1].body for path in formats}
    assert last["/template"] == b"2"
    assert json.loads(last["/pager"])["routing_key"] == "a" * 32
    assert "data" in json.loads(last["/slack"])
    assert "blocks" in json.loads(last["/default"])


def test_an_event_that_comes_just_after_a_change_of_format_is_sent_in_the_new_one(api, resources, drain):
    """Also by a pump that serves the endpoint already, and has its configuration from before."""
    with receivers.ok(delay=0.2) as receiver, workers(resources):
        made = make_endpoint(api, receiver)
        publish(api)
        receiver.wait_for_requests(1)
        change_endpoint(api, made, format="slack")
        publish(api)
        _, request = receiver.wait_for_requests(2)
        wait_until(lambda: len(log_of(api, made)) == 2)
    assert "blocks" in json.loads(request.body)


def test_a_template_that_fails_on_an_event_is_a_failed_attempt_that_names_the_line_and_nothing_is_sent(
    api, drain, doorbell
):
    with receivers.ok() as receiver:
        made = make_endpoint(api, receiver, "/strict", format=template(STRICT))
        make_endpoint(api, receiver, "/other")
        publish(api, text="hi")
        assert drain() == 2
        assert [request.path for request in receiver.requests] == ["/other"]
    (attempt,) = log_of(api, made)
    assert (attempt["status"], attempt["trigger"], attempt["number"]) == ("failed", "auto", 1)
    assert (attempt["status_code"], attempt["response"]) == (None, None)
    assert attempt["error"]["code"] == "template_failed"
    assert attempt["error"]["detail"].startswith(
        "The template cannot be rendered for this event. Line 2: `data.subject` is missing"
    )
    assert attempt["request"] == {"url": made["url"], "headers": {}, "body": None}
    (delivery,) = deliveries_of(api, made)
    # What was rendered once fails again: there is no retry.
    assert (delivery["status"], delivery["attempt_count"], delivery["next_attempt_at"]) == ("failed", 1, None)
    assert all(countdown == 0 for _, countdown in doorbell.rings)


def test_once_the_template_is_mended_a_retry_or_replay_renders_anew(api, drain):
    with receivers.ok() as receiver:
        made = make_endpoint(api, receiver, format=template(STRICT))
        event = publish(api, text="hi")
        drain()
        retry(api, made)
        drain()
        assert receiver.requests == []
        change_endpoint(api, made, format=template("[{{ data.text | json }}]"))
        retry(api, made)
        drain()
        # And from then on these bytes are the delivery's.
        change_endpoint(api, made, format=template("[2]"))
        replay(api, event, made)
        drain()
        assert [request.body for request in receiver.requests] == [b'["hi"]'] * 2
    shown = [(each["number"], each["status"], each["request"]["body"]) for each in log_of(api, made)]
    assert shown == [
        (4, "success", '["hi"]'),
        (3, "success", '["hi"]'),
        (2, "failed", None),
        (1, "failed", None),
    ]


def test_a_replay_to_an_endpoint_that_has_not_had_the_event_is_in_its_format(api, drain):
    with receivers.ok() as receiver:
        event = publish(api, text="hi")
        drain()
        slack = make_endpoint(api, receiver, "/slack", format="slack")
        failing = make_endpoint(api, receiver, "/failing", format=template(STRICT))
        default = make_endpoint(api, receiver, "/default")
        replay(api, event, slack, failing, default)
        assert drain() == 3
        bodies = {request.path: json.loads(request.body) for request in receiver.requests}
    assert set(bodies) == {"/slack", "/default"}
    assert bodies["/slack"]["text"].endswith("hi")
    assert bodies["/default"]["data"] == {"text": "hi"}
    assert log_of(api, failing)[0]["error"]["code"] == "template_failed"


def test_the_log_shows_what_was_sent_and_a_routing_key_is_nowhere_readable(api, resources, drain):
    with receivers.ok() as receiver, capture_logs() as logs:
        receiver.script("/pager", [500, 200])
        pager = make_endpoint(api, receiver, "/pager", format=PAGERDUTY)
        slack = make_endpoint(api, receiver, "/slack", format="slack")
        publish(api, text="canary-in-a-payload")
        drain()
        pass_time(resources, 60)
        drain()
        sent = {request.path: request.body.decode() for request in receiver.requests}
    assert ROUTING_KEY in sent["/pager"]
    attempts = log_of(api, pager)
    assert [each["request"]["body"] for each in attempts] == [sent["/pager"].replace(ROUTING_KEY, "***")] * 2
    assert log_of(api, slack)[0]["request"]["body"] == sent["/slack"]
    for attempt in attempts:
        path = f"/v1/attempts/{attempt['id']}"
        assert accepted(api.get(path)) == attempt
    assert accepted(api.get(f"/v1/deliveries/{attempts[0]['delivery_id']}"))["attempts"] == attempts[::-1]
    assert ROUTING_KEY not in repr(logs)
    found = everything_at_rest(resources)
    assert b"canary-in-a-payload" in found
    assert ROUTING_KEY.encode() not in found


def test_a_filter_keeps_events_from_a_format(api, resources, drain):
    """The product page's example: an alert in Slack when a conversation has waited for more than 10 minutes."""
    long = {"path": "/data/waiting_seconds", "op": "gt", "value": 600}
    with receivers.ok() as receiver:
        made = make_endpoint(api, receiver, events=["conversation.waiting"], filter=long, format="slack")
        for seconds in (599, 600, 601):
            publish(api, "conversation.waiting", contact={"name": "Amara"}, waiting_seconds=seconds)
        assert drain() == 1
        message = json.loads(receiver.requests[0].body)
    assert message["text"] == "Conversation waiting: Amara"
    assert {"type": "mrkdwn", "text": "*Waiting*\n10 min 1 s"} in message["blocks"][1]["fields"]
    assert set(rendered(resources)) == {made["id"]}


def test_an_endpoint_whose_format_cannot_be_read_waits_and_the_others_are_served(api, resources, drain):
    with receivers.ok() as receiver:
        broken = make_endpoint(api, receiver, "/broken", format=template("[1]"))
        make_endpoint(api, receiver, "/good", format="slack")
        stored = stored_format(resources, broken)
        lose_key(resources, broken, format_options="v1:gone:AAAA")
        publish(api)
        assert drain() == 1
        assert [request.path for request in receiver.requests] == ["/good"]
        assert deliveries_of(api, broken)[0]["status"] == "pending"
        lose_key(resources, broken, format_options=stored)
        pass_time(resources, 60)
        accepted(api.post(f"/v1/endpoints/{broken['id']}/resume"))
        assert drain() == 1
        assert receiver.requests[-1].body == b"[1]"


def test_a_body_that_cannot_be_read_any_more_is_rendered_again(api, resources, drain):
    with receivers.ok() as receiver:
        receiver.script("/hook", [500])
        made = make_endpoint(api, receiver, format=template('["{{ id }}"]'))
        event = publish(api)
        drain()
        with resources.transaction() as uow:
            uow.session.execute(update(RenderedBody).values(body="v1:gone:AAAA"))
        assert log_of(api, made)[0]["request"]["body"] is None
        pass_time(resources, 60)
        drain()
        assert [request.body for request in receiver.requests] == [f'["{event["id"]}"]'.encode()] * 2
    assert log_of(api, made)[0]["request"]["body"] == f'["{event["id"]}"]'


def test_an_event_that_no_format_can_tell_stops_nobody_elses(api, resources, drain):
    with receivers.ok() as receiver:
        made = make_endpoint(api, receiver, "/slack", format="slack")
        make_endpoint(api, receiver, "/default")
        event = publish(api)
        with resources.transaction() as uow:  # as no publisher can make it
            body = f'{{"id":"{event["id"]}"}}'.encode()
            uow.session.execute(update(Event).where(Event.id == event["id"]).values(body=body))
        publish(api)
        assert drain() == 4
        assert sorted(request.path for request in receiver.requests) == ["/default", "/default", "/slack"]
    failed = log_of(api, made)[-1]
    assert failed["error"] == {
        "code": "template_failed",
        "detail": "The event cannot be put into the format slack.",
    }


def test_templates_that_take_their_time_leave_some_for_others(api, resources, drain, monkeypatch):
    monkeypatch.setattr(rendering, "SECONDS", 0.0)  # enough for one
    old = publish_many(api, 5)
    drain()
    with receivers.ok() as receiver:
        made = make_endpoint(api, receiver, format=template('["{{ id }}"]'))
        new = publish_many(api, 5)
        with resources.transaction() as uow:
            assert engine.fan_out(uow) == 1
        drain()
        for event_id in old:
            replay(api, {"id": event_id}, made)
        with resources.transaction() as uow:
            assert len(rendering.take(uow, due=pending(uow))) == 1
        drain()
        bodies = sorted(request.body.decode() for request in receiver.requests)
    assert bodies == sorted(f'["{event_id}"]' for event_id in old + new)
    assert len(log_of(api, made)) == 10


def test_without_another_format_nothing_of_it_is_read_or_written(api, resources, drain, statements):
    with receivers.ok() as receiver:
        make_endpoint(api, receiver)
        publish_many(api, 20)
        del statements[:]
        assert drain() == 20
    assert not [each for each in statements if "rendered_bodies" in each]
    assert not [each for each in statements if each.startswith("SELECT events.id, events.body")]


def test_a_thousand_rendered_bodies_arrive_once_each(api, drain):
    with receivers.ok() as receiver:
        made = make_endpoint(api, receiver, format=template('["{{ id }}"]'))
        ids = publish_many(api, 1000)
        drain()
        digests = {hashlib.sha256(request.body).hexdigest() for request in receiver.requests}
        assert len(receiver.requests) == 1000
    assert digests == {hashlib.sha256(f'["{event_id}"]'.encode()).hexdigest() for event_id in ids}
    assert made["format"]["type"] == "template"
