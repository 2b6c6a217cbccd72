"""A rotation loses no delivery: receivers verify with the secret that they have, the old one or the new one."""

import time
from dataclasses import replace
from datetime import datetime
from typing import Any

from sqlalchemy import update

from app.core.unit_of_work import Resources
from app.endpoints.models import Endpoint
from tests import receivers
from tests.conftest import Api
from tests.flows.steps import (
    accepted,
    change_endpoint,
    log_of,
    make_endpoint,
    pass_time,
    publish,
    publish_many,
    verify,
    wait_until,
    workers,
)
from tests.receivers import Received

SEEN_WITHIN = 1.0  # seconds after a rotation, for a pump that is running


def rotate(api: Api, made: dict[str, Any], **fields: Any) -> dict[str, Any]:
    answer: dict[str, Any] = accepted(api.post(f"/v1/endpoints/{made['id']}/rotate-secret", fields))
    return answer


def end_overlap(resources: Resources) -> None:
    """Let the time of the overlap pass; nothing else changes."""
    with resources.transaction() as uow:
        uow.session.execute(update(Endpoint).values(previous_secret_expires_at=Endpoint.updated_at))


def signatures(request: Received) -> tuple[list[str], list[str]]:
    """Give the signatures of both families."""
    ours = (request.header("X-BotBat-Signature") or "").split(",")[1:]
    return ours, (request.header("webhook-signature") or "").split(" ")


def verify_each(request: Received, *secrets: str) -> None:
    """Raise unless a request bears the signatures of these secrets, in this order, and no other."""
    stamp = (request.header("X-BotBat-Signature") or "").split(",")[0]
    ours, standard = signatures(request)
    for secret, *pair in zip(secrets, ours, standard, strict=True):
        alone = {"X-BotBat-Signature": f"{stamp},{pair[0]}", "webhook-signature": pair[1]}
        headers = [(name, alone.get(name, value)) for name, value in request.headers]
        verify(replace(request, headers=headers), secret)
        verify(request, secret)  # a verifier finds its own among several


def test_during_the_overlap_first_attempts_and_retries_bear_both_signatures_newest_first(
    api, drain, resources
):
    with receivers.ok() as receiver:
        receiver.script("/hook", [500, 500, 200, 200])
        made = make_endpoint(api, receiver)
        old = made["signing_secret"]
        publish(api)
        drain()
        new = rotate(api, made)["signing_secret"]
        pass_time(resources, 60)
        drain()
        publish(api)
        drain()
        end_overlap(resources)
        pass_time(resources, 3600)
        drain()
        before, retry, first, after = receiver.requests

    verify_each(before, old)
    verify_each(after, new)
    for request in (retry, first):
        verify_each(request, new, old)
    shown = [attempt["request"]["headers"] for attempt in log_of(api, made)]
    for request, headers in zip((after, first, retry, before), shown, strict=True):
        assert headers["X-BotBat-Signature"] == request.header("X-BotBat-Signature")
        assert headers["webhook-signature"] == request.header("webhook-signature")


def test_two_sign_at_most_and_a_replaced_secret_signs_alone(api, drain):
    with receivers.ok() as receiver:
        made = make_endpoint(api, receiver)
        second = rotate(api, made)["signing_secret"]
        third = rotate(api, made, signing_secret="a third one of our own")["signing_secret"]
        publish(api)
        drain()
        verify_each(receiver.requests[-1], third, second)

        change_endpoint(api, made, signing_secret=second)
        publish(api)
        drain()
        verify_each(receiver.requests[-1], second)

        fourth = rotate(api, made, overlap_seconds=0)["signing_secret"]
        publish(api)
        drain()
        verify_each(receiver.requests[-1], fourth)


def test_a_running_pump_begins_within_a_second_and_ends_at_the_very_moment(api, drain, resources):
    """The overlap ends while the pump runs on, with nothing to tell it."""
    with receivers.ok(delay=0.02) as receiver, workers(resources):
        made = make_endpoint(api, receiver, policy={"max_in_flight": 1})
        old = made["signing_secret"]
        publish_many(api, 300)
        receiver.wait_for_requests(5)
        rotated_at = time.time()
        answer = rotate(api, made, overlap_seconds=3)
        new = answer["signing_secret"]
        wait_until(lambda: len(signatures(receiver.requests[-1])[0]) == 2, SEEN_WITHIN + 0.5)
        wait_until(lambda: len(receiver.requests) == 300, 30)

    ends_at = datetime.fromisoformat(answer["previous_expires_at"]).timestamp()
    counts = []
    for request in receiver.requests:
        stamp = int(request.header("webhook-timestamp") or 0)
        count = len(signatures(request)[0])
        if stamp + 1 <= rotated_at:
            assert count == 1
            verify_each(request, old)
        elif count == 2:
            verify_each(request, new, old)
            assert stamp < ends_at
        elif stamp >= rotated_at + SEEN_WITHIN + 1:
            assert stamp + 1 > ends_at
            verify_each(request, new)
        counts.append(count)
    # One change to two signatures and one back, and the pump has lived through both.
    changes = [count for count, before in zip(counts[1:], counts, strict=False) if count != before]
    assert changes == [2, 1]
    assert counts.count(2) > 10
