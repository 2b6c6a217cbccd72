"""The main job: a published event arrives, signed, at a subscribed endpoint, and its attempt is in the log."""

import json

import standardwebhooks
import stripe
import svix

from tests import receivers


def endpoint(api, receiver, path="/hook", **fields):
    url = receiver.url.replace("localhost", "127.0.0.1") + path
    answer = api.post("/v1/endpoints", {"url": url, "events": ["message.received"], **fields})
    assert answer.status_code == 201, answer.json
    return answer.json


def publish(api, **fields):
    answer = api.post("/v1/events", {"type": "message.received", "data": {"text": "hi"}, **fields})
    assert answer.status_code == 202, answer.json
    return answer.json


def test_a_published_event_arrives_signed_and_is_in_the_log(api, drain):
    with receivers.ok() as receiver:
        made = endpoint(api, receiver)
        event = publish(api)
        assert drain() == 1
        (request,) = receiver.requests

    body = request.body.decode()
    assert json.loads(body) == {
        "id": event["id"],
        "type": "message.received",
        "timestamp": event["occurred_at"],
        "data": {"text": "hi"},
    }
    headers = {name: value for name, value in request.headers if name.lower().startswith("webhook-")}
    for verifier in (standardwebhooks.Webhook, svix.Webhook):
        verifier(made["signing_secret"]).verify(body, headers)  # raises unless the signature is right
    stripe.WebhookSignature.verify_header(
        body, request.header("X-BotBat-Signature"), made["signing_secret"], tolerance=300
    )

    (attempt,) = api.get(f"/v1/endpoints/{made['id']}/attempts").json["data"]
    assert attempt["status"] == "success"
    assert attempt["status_code"] == 200
    assert attempt["request"]["body"] == body
    assert attempt["request"]["headers"]["webhook-id"] == event["id"]
    (delivery,) = api.get(f"/v1/events/{event['id']}").json["deliveries"]
    assert delivery["status"] == "succeeded"
    assert delivery["attempt_count"] == 1
