"""A failed delivery is attempted again on the promised schedule, and then never again."""

import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest

from app.core.unit_of_work import Resources
from config.wire import TaskName
from tests import receivers
from tests.conftest import RecordingDoorbell
from tests.flows.steps import (
    deliveries_of,
    log_of,
    make_endpoint,
    pass_time,
    publish,
    the_delivery,
    verify,
)
from tests.receivers import Answer

PROMISED_DELAYS = [10, 30, 120, 600, 1800]  # seconds after the failure before
RECORDED_WITHIN = 1.0  # seconds after the attempt


def wait_of(resources: Resources, attempt: dict[str, Any]) -> float:
    """Give the seconds between the end of an attempt and when the next one is due."""
    ended = datetime.fromisoformat(attempt["started_at"]) + timedelta(milliseconds=attempt["duration_ms"])
    due = the_delivery(resources).next_attempt_at
    assert due is not None
    return (due - ended).total_seconds()


def countdowns(doorbell: RecordingDoorbell) -> list[float]:
    return [countdown for task, countdown in doorbell.rings if task == TaskName.DELIVERIES_PUMP and countdown]


def test_the_default_schedule_is_the_promised_one_and_ends(api, drain, resources, doorbell):
    with receivers.ok(500) as receiver:
        made = make_endpoint(api, receiver)
        publish(api)
        assert drain() == 1

        for number, delay in enumerate(PROMISED_DELAYS, start=1):
            delivery = the_delivery(resources)
            assert (delivery.status, delivery.attempt_count) == ("pending", number)
            assert delivery.finished_at is None
            wait = wait_of(resources, log_of(api, made)[0])
            assert delay <= wait <= delay * 1.1 + RECORDED_WITHIN
            (countdown,) = countdowns(doorbell)
            assert delay <= countdown <= delay * 1.1
            doorbell.rings.clear()

            pass_time(resources, delay - 5)
            assert drain() == 0
            pass_time(resources, wait - (delay - 5))
            assert drain() == 1

        delivery = the_delivery(resources)
        assert (delivery.status, delivery.attempt_count) == ("failed", 6)
        assert delivery.next_attempt_at is None
        assert delivery.finished_at is not None
        assert abs(datetime.now(UTC) - delivery.finished_at) < timedelta(seconds=30)
        assert countdowns(doorbell) == []
        pass_time(resources, 10 * 86_400)
        assert drain() == 0
        assert len(receiver.requests) == 6

    assert [attempt["number"] for attempt in log_of(api, made)] == [6, 5, 4, 3, 2, 1]
    assert {attempt["trigger"] for attempt in log_of(api, made)} == {"auto"}


def test_each_retry_sends_the_same_bytes_signed_anew(api, drain, resources):
    with receivers.ok(503) as receiver:
        made = make_endpoint(api, receiver)
        event = publish(api, text="Grüße", number=12345678901234567890123)
        drain()
        for _ in range(2):
            time.sleep(1.05)  # a timestamp has whole seconds
            pass_time(resources, 1900)
            drain()
        first, second, third = receiver.requests

    assert first.body == second.body == third.body
    assert {request.header("webhook-id") for request in receiver.requests} == {event["id"]}
    assert first.header("X-BotBat-Delivery") == third.header("X-BotBat-Delivery")
    stamps = [int(request.header("webhook-timestamp") or 0) for request in receiver.requests]
    assert stamps[0] < stamps[1] < stamps[2]
    for request, stamp in zip(receiver.requests, stamps, strict=True):
        assert (request.header("X-BotBat-Signature") or "").startswith(f"t={stamp},v1=")
        verify(request, made["signing_secret"])


def test_a_retry_that_succeeds_ends_the_delivery(api, drain, resources):
    with receivers.ok() as receiver:
        receiver.script("/hook", [500, 404])
        made = make_endpoint(api, receiver)
        publish(api)
        drain()
        for _ in range(2):
            pass_time(resources, 1900)
            assert drain() == 1
        pass_time(resources, 1900)
        assert drain() == 0

    (delivery,) = deliveries_of(api, made)
    assert (delivery["status"], delivery["attempt_count"]) == ("succeeded", 3)
    assert delivery["next_attempt_at"] is None
    assert delivery["finished_at"] is not None
    assert [(row["number"], row["status"], row["status_code"]) for row in log_of(api, made)] == [
        (3, "success", 200),
        (2, "failed", 404),
        (1, "failed", 500),
    ]


@pytest.mark.parametrize("schedule", [[], [7], [1, 0, 86_400]])
def test_an_endpoint_can_have_a_schedule_of_its_own(api, drain, resources, schedule):
    with receivers.ok(500) as receiver:
        made = make_endpoint(api, receiver, policy={"retry_schedule": schedule})
        publish(api)
        attempts = drain()
        for number, delay in enumerate(schedule, start=1):
            if number == attempts:  # a delay of nothing has been used up within the same drain
                wait = wait_of(resources, log_of(api, made)[0])
                assert delay <= wait <= delay * 1.1 + RECORDED_WITHIN
                pass_time(resources, wait)
                attempts += drain()
        assert attempts == 1 + len(schedule)
        pass_time(resources, 10 * 86_400)
        assert drain() == 0

    (delivery,) = deliveries_of(api, made)
    assert (delivery["status"], delivery["attempt_count"]) == ("failed", 1 + len(schedule))


def http_date(seconds: float) -> str:
    return format_datetime(datetime.now(UTC) + timedelta(seconds=seconds), usegmt=True)


@pytest.mark.parametrize(
    ("retry_after", "expected"),
    [
        ("100", (100, 100)),  # later than the schedule says
        ("3", (10, 11)),  # never sooner
        ("999999", (3600, 3600)),  # at most an hour
        ("soon", (10, 11)),
        ("-5", (10, 11)),
        ("Sun, 01 Mar 999999999999999999999 12:05:00 GMT", (10, 11)),
        (lambda: http_date(300), (298, 300)),
        (lambda: http_date(-300), (10, 11)),
        (lambda: http_date(86_400), (3600, 3600)),
    ],
)
def test_retry_after_can_only_push_the_next_attempt_later(api, drain, resources, retry_after, expected):
    value = retry_after if isinstance(retry_after, str) else retry_after()
    with receivers.ok() as receiver:
        receiver.script("/hook", [Answer(503, headers=[("Retry-After", value)])])
        made = make_endpoint(api, receiver)
        publish(api)
        drain()

    earliest, latest = expected
    assert earliest <= wait_of(resources, log_of(api, made)[0]) <= latest + RECORDED_WITHIN


def test_many_failures_at_once_are_spread_a_little_and_never_early(api, drain, resources):
    with receivers.ok(500) as receiver:
        made = make_endpoint(api, receiver, policy={"max_in_flight": 100})
        for _ in range(50):
            publish(api)
        assert drain() == 50

    waits = [
        datetime.fromisoformat(delivery["next_attempt_at"]) - datetime.fromisoformat(attempt["started_at"])
        for delivery, attempt in zip(
            sorted(deliveries_of(api, made), key=lambda row: row["id"]),
            sorted(log_of(api, made), key=lambda row: row["delivery_id"]),
            strict=True,
        )
    ]
    assert min(waits) >= timedelta(seconds=10)
    assert max(waits) - min(waits) > timedelta(seconds=0.3)
