"""From a due delivery to the request, and from what came back to the rows that are recorded."""

import hashlib
import hmac
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson
import pytest

from app.core.ids import is_id
from app.core.signing import signing_key
from app.deliveries.models import DeliveryStatus
from app.deliveries.work import DueDelivery
from app.endpoints.policy import Policy
from app.endpoints.service import Target
from worker.local_queue import LocalQueue
from worker.request import InFlight, build, conclude, refuse
from worker.sender import Outcome, Outgoing

SECRET = "whsec_" + "QUJD" * 11
MOMENT = datetime(2026, 1, 1, 0, 0, 0, 999_999, tzinfo=UTC)
STARTED_AT = MOMENT.timestamp() + 0.25
BODY = '{"id":"evt_1","data":{"text":"Grüße"}}'.encode()


def request_of(
    *, attempt_count: int = 0, trigger: str = "auto", delivery: dict[str, Any] | None = None, **target: Any
) -> Outgoing:
    fields = {
        "endpoint_id": "ep_1",
        "workspace_id": "ws_1",
        "active": True,
        "url": "https://hooks.example.com/in?a=1",
        "headers": (("X-Tenant", "canary-4711"), ("Authorization", "Bearer canary-4711")),
        "signing_keys": (signing_key(SECRET),),
        "policy": Policy(),
        "version": MOMENT,
        **target,
    }
    due = DueDelivery(
        "dlv_1",
        "ep_1",
        "ws_1",
        "evt_1",
        "message.read",
        attempt_count,
        trigger,
        BODY,
        attempt_count > 0,
        MOMENT,
        **(delivery or {}),
    )
    return build(LocalQueue("ep_1", None), due, Target(**fields), MOMENT)


def outcome_of(outgoing: Outgoing, **changes: Any) -> Outcome:
    fields = {
        "tag": outgoing.tag,
        "started_at": STARTED_AT,
        "duration_ms": 17,
        "status_code": 200,
        "error_code": None,
        "error_detail": None,
        "response_headers": [],
        "response_body": b"ok",
        "response_truncated": False,
        **changes,
    }
    return Outcome(**fields)


def conclude_with(outgoing: Outgoing, **changes: Any) -> Any:
    assert isinstance(outgoing.tag, InFlight)
    return conclude(outcome_of(outgoing, **changes), outgoing.tag)


def test_the_request_has_the_promised_headers_in_order_and_the_events_bytes():
    outgoing = request_of(policy=Policy(timeout_seconds=7))
    stamp = int(MOMENT.timestamp())
    ours = hmac.digest(SECRET.encode(), b"%d." % stamp + BODY, hashlib.sha256).hex()
    assert outgoing.method == "POST"
    assert outgoing.url == "https://hooks.example.com/in?a=1"
    assert outgoing.body is BODY
    assert outgoing.timeout_ms == 7000
    assert outgoing.headers[:7] == [
        "Content-Type: application/json",
        "User-Agent: BotBat-Webhooks/1",
        "X-BotBat-Event: message.read",
        "X-BotBat-Delivery: dlv_1",
        f"X-BotBat-Signature: t={stamp},v1={ours}",
        "webhook-id: evt_1",
        f"webhook-timestamp: {stamp}",
    ]
    assert outgoing.headers[7].startswith("webhook-signature: v1,")
    assert outgoing.headers[8:] == ["X-Tenant: canary-4711", "Authorization: Bearer canary-4711"]


def test_with_two_secrets_both_sign():
    outgoing = request_of(signing_keys=(signing_key(SECRET), signing_key("an older secret, of our own")))
    assert outgoing.headers[4].count("v1=") == 2
    assert outgoing.headers[7].count("v1,") == 2


def test_the_log_has_the_headers_that_were_sent_with_custom_values_masked():
    outgoing = request_of()
    attempt, _ = conclude_with(outgoing)
    logged = [f"{name}: {value}" for name, value in orjson.loads(attempt.request_headers)]
    assert logged[:8] == outgoing.headers[:8]
    assert logged[8:] == ["X-Tenant: ***", "Authorization: ***"]
    assert "canary-4711" not in repr(attempt)
    assert SECRET not in repr(attempt)


def test_a_rendered_body_is_sent_and_logged_with_its_content_type():
    plain = "text/plain; charset=utf-8"
    outgoing = request_of(delivery={"content_type": plain})
    assert outgoing.headers[0] == f"Content-Type: {plain}"
    attempt, _ = conclude_with(outgoing)
    assert orjson.loads(attempt.request_headers)[0] == ["Content-Type", plain]


@pytest.mark.parametrize("attempt_count", [0, 2])
def test_what_cannot_be_rendered_is_a_failed_attempt_that_sent_nothing_and_is_not_retried(attempt_count):
    queue = LocalQueue("ep_1", None)
    sent = request_of(attempt_count=attempt_count, delivery={"error": "Line 2: no."}).tag
    assert isinstance(sent, InFlight)
    refused = refuse(queue, sent.delivery, sent.target, MOMENT)
    assert isinstance(refused.tag, InFlight)
    attempt, outcome = conclude(refused, refused.tag)
    assert refused.tag.queue is queue
    assert (attempt.status, attempt.status_code, attempt.duration_ms) == ("failed", None, 0)
    assert (attempt.error_code, attempt.error_detail) == ("template_failed", "Line 2: no.")
    assert (attempt.started_at, attempt.number) == (MOMENT, attempt_count + 1)
    assert (attempt.request_headers, attempt.response_headers) == ("[]", "[]")
    assert (outcome.status, outcome.retry_in_seconds) == (DeliveryStatus.FAILED, None)


def test_a_success_is_recorded_whole():
    attempt, outcome = conclude_with(
        request_of(attempt_count=2, trigger="manual"),
        status_code=204,
        response_headers=[("Server", "x"), ("Server", "y")],
        response_body=b"\xff",
        response_truncated=True,
    )
    assert is_id(attempt.id, "att")
    assert (attempt.delivery_id, attempt.event_id, attempt.endpoint_id) == ("dlv_1", "evt_1", "ep_1")
    assert (attempt.workspace_id, attempt.event_type) == ("ws_1", "message.read")
    assert (attempt.number, attempt.trigger, attempt.status) == (3, "manual", "success")
    assert (attempt.status_code, attempt.duration_ms, attempt.error_code) == (204, 17, None)
    assert attempt.started_at == datetime.fromtimestamp(STARTED_AT, UTC)
    assert attempt.url == "https://hooks.example.com/in?a=1"
    assert orjson.loads(attempt.response_headers) == [["Server", "x"], ["Server", "y"]]
    assert (attempt.response_body, attempt.response_truncated) == (b"\xff", True)
    assert (outcome.event_id, outcome.endpoint_id) == ("evt_1", "ep_1")
    assert (outcome.trigger, outcome.status, outcome.attempt_count, outcome.retry_in_seconds) == (
        *(attempt.trigger, DeliveryStatus.SUCCEEDED),
        *(3, None),
    )


@pytest.mark.parametrize("number", range(1, 7))
def test_a_failure_is_recorded_and_retried_on_the_schedule(number):
    attempt, outcome = conclude_with(
        request_of(attempt_count=number - 1),
        status_code=None,
        error_code="timeout",
        error_detail="The endpoint did not answer within 15 s.",
    )
    assert (attempt.number, attempt.status, attempt.status_code) == (number, "failed", None)
    assert (attempt.error_code, attempt.error_detail) == (
        "timeout",
        "The endpoint did not answer within 15 s.",
    )
    assert outcome.attempt_count == number
    if number == 6:
        assert (outcome.status, outcome.retry_in_seconds) == (DeliveryStatus.FAILED, None)
    else:
        delay = Policy().retry_schedule[number - 1]
        assert outcome.status == DeliveryStatus.PENDING
        assert delay <= outcome.retry_in_seconds <= delay * 1.1


def test_retry_after_is_read_from_a_failure_whatever_its_case_and_not_from_a_success():
    asked = [("Date", "x"), ("RETRY-after", "200")]
    _, failed = conclude_with(request_of(), status_code=429, error_code="http_status", response_headers=asked)
    assert failed.retry_in_seconds == 200
    _, succeeded = conclude_with(request_of(), response_headers=asked)
    assert succeeded.retry_in_seconds is None


def test_until_the_end_of_an_overlap_both_secrets_sign_newest_first_and_then_the_new_one_alone():
    keys = (signing_key("the new one of sixteen"), signing_key(SECRET))
    alone = {
        key: dict(header.split(": ", 1) for header in request_of(signing_keys=(key,)).headers) for key in keys
    }
    name, standard = "X-BotBat-Signature", "webhook-signature"
    new, old = (alone[key][name].partition(",")[2] for key in keys)

    def signed(overlap_ends_at: datetime) -> dict[str, str]:
        outgoing = request_of(signing_keys=keys, overlap_ends_at=overlap_ends_at)
        return dict(header.split(": ", 1) for header in outgoing.headers)

    both = signed(MOMENT + timedelta(microseconds=1))
    assert both[name] == f"t={int(MOMENT.timestamp())},{new},{old}"
    assert both[standard] == f"{alone[keys[0]][standard]} {alone[keys[1]][standard]}"
    for ended in (MOMENT, MOMENT - timedelta(days=1)):
        assert signed(ended) == alone[keys[0]]
