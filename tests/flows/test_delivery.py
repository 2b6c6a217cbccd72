"""The main job: a published event arrives, signed, at a subscribed endpoint, and its attempt is in the log."""

import json
from datetime import UTC, datetime, timedelta

import pytest
import standardwebhooks
import stripe
import svix

from tests import receivers
from tests.flows.steps import log_of, make_endpoint, publish, url_of, verify

OWN_SECRETS = [
    "sixteen letters!",
    "whsec_dGhpcyBpcyBhIHNlY3JldA==",  # base64 of other than 33 bytes
    "whsec_this is not base64",
    "~" * 256,
]


def test_a_published_event_arrives_signed_and_is_in_the_log(api, drain):
    with receivers.ok() as receiver:
        made = make_endpoint(api, receiver)
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


@pytest.mark.parametrize("secret", OWN_SECRETS)
def test_a_secret_of_the_customers_own_signs_whatever_its_form(api, drain, secret):
    with receivers.ok() as receiver:
        made = make_endpoint(api, receiver, signing_secret=secret)
        assert made["signing_secret"] == secret
        publish(api)
        drain()
        (request,) = receiver.requests

    body = request.body.decode()
    stripe.WebhookSignature.verify_header(body, request.header("X-BotBat-Signature"), secret, tolerance=300)
    headers = {name: value for name, value in request.headers if name.startswith("webhook-")}
    if secret == "whsec_dGhpcyBpcyBhIHNlY3JldA==":
        standardwebhooks.Webhook(secret).verify(body, headers)
    else:  # the verifier wants base64: give it that of the secret's bytes
        import base64

        standardwebhooks.Webhook(base64.b64encode(secret.encode()).decode()).verify(body, headers)


def test_custom_headers_are_sent_and_their_values_are_shown_nowhere(api, drain):
    headers = {"X-Tenant": "canary-4711", "Authorization": "Bearer canary-4711"}
    with receivers.ok() as receiver:
        made = make_endpoint(api, receiver, headers=headers)
        publish(api)
        drain()
        (request,) = receiver.requests
    assert {name: request.header(name) for name in headers} == headers

    (attempt,) = log_of(api, made)
    assert {name: attempt["request"]["headers"][name] for name in headers} == dict.fromkeys(headers, "***")
    places = [
        f"/v1/endpoints/{made['id']}",
        f"/v1/endpoints/{made['id']}/attempts",
        f"/v1/attempts/{attempt['id']}",
        f"/v1/deliveries/{attempt['delivery_id']}",
        f"/v1/events/{attempt['event_id']}",
        "/v1/endpoints",
        "/v1/deliveries",
        "/v1/events",
    ]
    for place in places:
        answer = api.get(place)
        assert answer.status_code == 200
        assert "canary-4711" not in answer.text
        assert made["signing_secret"] not in answer.text


def test_the_log_tells_what_was_sent_and_what_came_back(api, drain):
    answer = receivers.ok(201, headers=[("X-Answer", "yes"), ("Set-Cookie", "a=b")], body=b'{"got":"it"}')
    with answer as receiver:
        made = make_endpoint(api, receiver, "/in?a=1&b=%20")
        before = datetime.now(UTC)
        event = publish(api, text="Grüße ✓")
        drain()
        (request,) = receiver.requests

    (attempt,) = log_of(api, made)
    assert api.get(f"/v1/attempts/{attempt['id']}").json == attempt
    assert (attempt["event_id"], attempt["event_type"]) == (event["id"], "message.received")
    assert (attempt["endpoint_id"], attempt["number"], attempt["trigger"]) == (made["id"], 1, "auto")
    started = datetime.fromisoformat(attempt["started_at"])
    assert before - timedelta(milliseconds=2) <= started <= datetime.now(UTC)
    assert 0 <= attempt["duration_ms"] < 5000
    assert attempt["request"]["url"] == url_of(receiver, "/in?a=1&b=%20")
    assert attempt["request"]["body"] == request.body.decode()
    sent = dict(request.headers)
    assert attempt["request"]["headers"] == {
        name: value for name, value in sent.items() if name not in {"Host", "Content-Length"}
    }
    assert sent["X-BotBat-Delivery"] == attempt["delivery_id"]
    assert attempt["response"]["body"] == '{"got":"it"}'
    assert attempt["response"]["headers"] == {"X-Answer": "yes", "Content-Length": "12"}
    assert attempt["response"]["truncated"] is False


def test_an_endpoint_shows_its_last_attempt_and_its_last_success(api, drain):
    with receivers.ok() as receiver:
        receiver.script("/hook", [200, 500])
        made = make_endpoint(api, receiver)
        assert made["last_attempt_at"] is made["last_success_at"] is None
        for _ in range(2):
            publish(api)
            drain()
    second, first = log_of(api, made)
    shown = api.get(f"/v1/endpoints/{made['id']}").json
    assert shown["last_attempt_at"] == second["started_at"]
    assert shown["last_success_at"] == first["started_at"]


def test_what_is_delivered_is_what_was_published_to_the_last_digit(api, drain):
    number = 123456789012345678901234567890
    with receivers.ok() as receiver:
        made = make_endpoint(api, receiver)
        publish(api, number=number, text="\u2028 </script> \U0001f600", nested={"a": [1, None, True, 1.5]})
        drain()
        (request,) = receiver.requests
    assert json.loads(request.body)["data"] == {
        "number": number,
        "text": "\u2028 </script> \U0001f600",
        "nested": {"a": [1, None, True, 1.5]},
    }
    verify(request, made["signing_secret"])


def test_the_largest_event_is_delivered_whole(api, drain):
    with receivers.ok() as receiver:
        made = make_endpoint(api, receiver)
        publish(api, text="a" * 250_000)
        assert drain() == 1
        (request,) = receiver.requests
    assert len(request.body) > 250_000
    assert log_of(api, made)[0]["request"]["body"] == request.body.decode()
