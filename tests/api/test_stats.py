"""Statistics count what the log has, by the hour or by the day, and never read it."""

from datetime import datetime, timedelta
from typing import Any

import pytest

from app.core.clock import format_time, now
from app.core.ids import new_id
from app.core.partitions import day_of
from app.core.unit_of_work import Resources
from app.deliveries import statistics
from app.deliveries.work import NewAttempt
from tests import receivers
from tests.api import expect
from tests.api.steps import record_statements
from tests.conftest import Api
from tests.flows.steps import log_of, make_endpoint, pass_time, publish_many

HOUR = timedelta(hours=1)
DAY = timedelta(days=1)
EMPTY = {"success": 0, "failed": 0, "success_rate": None, "p50_ms": None, "p95_ms": None}


@pytest.fixture
def made(api) -> dict[str, Any]:
    """Give an endpoint."""
    return make_endpoint(api, "https://hooks.example.com")


def count(
    resources: Resources,
    made: dict[str, Any],
    moment: datetime,
    *durations: int,
    status: str = "success",
    trigger: str = "auto",
) -> None:
    """Count attempts as recording them does."""
    attempts = [
        NewAttempt(
            id=new_id("att"),
            workspace_id="ws_any",
            delivery_id="dlv_any",
            event_id="evt_any",
            event_type="message.received",
            endpoint_id=made["id"],
            number=1,
            trigger=trigger,
            status=status,
            status_code=200,
            duration_ms=duration,
            error_code=None,
            error_detail=None,
            started_at=moment,
            url="https://hooks.example.com/hook",
            request_headers="[]",
            response_headers="[]",
            response_body=b"",
            response_truncated=False,
        )
        for duration in durations
    ]
    with resources.transaction() as uow:
        statistics.count(uow, attempts)


def stats(api: Api, made: dict[str, Any], query: str = "") -> Any:
    """Ask for statistics."""
    return expect.ok(api.get(f"/v1/endpoints/{made['id']}/stats{query}"))


def start_of_hour(moment: datetime) -> datetime:
    return moment.replace(minute=0, second=0, microsecond=0)


def test_what_is_delivered_is_counted_and_every_failure_with_it(api, drain, resources):
    with receivers.ok() as receiver:
        receiver.script("/hook", [503, 503])
        made = make_endpoint(api, receiver)
        publish_many(api, 4)
        drain()
        pass_time(resources, 3600)
        drain()
    log = log_of(api, made)
    assert len(log) == 6
    total = stats(api, made)["total"]
    assert (total["success"], total["failed"]) == (4, 2)
    assert total["success_rate"] == pytest.approx(2 / 3)
    slowest = max(attempt["duration_ms"] for attempt in log)
    assert abs(total["p95_ms"] - slowest) <= 0.05 * slowest + 0.5


def test_attempts_count_in_the_hour_in_which_they_started(api, resources, made):
    hour = start_of_hour(now())
    count(resources, made, hour - HOUR, 100, 100, 100)
    count(resources, made, hour - HOUR, 10_000, status="failed")
    count(resources, made, hour - HOUR + timedelta(minutes=59, seconds=59), 200)
    count(resources, made, hour - 2 * HOUR, 40)
    answer = stats(api, made)
    found = {bucket["start"]: bucket for bucket in answer["data"]}
    before = found[format_time(hour - HOUR)]
    assert (before["success"], before["failed"], before["success_rate"]) == (4, 1, 0.8)
    assert before["p50_ms"] == pytest.approx(100, rel=0.05)
    assert before["p95_ms"] == pytest.approx(10_000, rel=0.05)
    assert found[format_time(hour - 2 * HOUR)]["p95_ms"] == pytest.approx(40, rel=0.05)
    assert (answer["total"]["success"], answer["total"]["failed"]) == (5, 1)
    assert answer["total"]["p50_ms"] == pytest.approx(100, rel=0.05)


def test_the_same_again_adds_to_what_was_counted(api, resources, made):
    moment = now()
    for _ in range(3):
        count(resources, made, moment, 50, 50, 70)
    assert stats(api, made)["total"]["success"] == 9


def test_empty_buckets_are_zeros(api, made):
    answer = stats(api, made)
    hour = start_of_hour(now())
    assert answer["data"] == [
        {"start": format_time(hour - number * HOUR), **EMPTY} for number in range(24, -1, -1)
    ]
    assert answer["total"] == EMPTY


def test_a_day_has_what_its_hours_have(api, resources, made):
    today = day_of(now())
    yesterday = today - DAY
    for hours in (0, 7, 23):
        count(resources, made, yesterday + hours * HOUR, 100)
    count(resources, made, today, 300, status="failed")
    answer = stats(api, made, "?bucket=day")
    assert [bucket["start"] for bucket in answer["data"]] == [
        format_time(today - number * DAY) for number in range(30, -1, -1)
    ]
    assert [(bucket["success"], bucket["failed"]) for bucket in answer["data"][-2:]] == [(3, 0), (0, 1)]
    assert answer["data"][-1]["success_rate"] == 0
    assert answer["data"][-2]["success_rate"] == 1


def test_since_names_the_first_bucket(api, resources, made):
    hour = start_of_hour(now())
    for hours in range(5):
        count(resources, made, hour - hours * HOUR, 100)
    moment = format_time(hour - 2 * HOUR + timedelta(minutes=30))
    answer = stats(api, made, f"?since={moment}")
    assert [bucket["start"] for bucket in answer["data"]] == [
        format_time(hour - number * HOUR) for number in (2, 1, 0)
    ]
    assert answer["total"]["success"] == 3
    assert stats(api, made, f"?since={format_time(now() + DAY)}") == {"data": [], "total": EMPTY}


def test_nothing_is_known_of_what_is_older_than_the_log(api, made):
    days = stats(api, made, "?bucket=day&since=0001-01-01T00:00:00Z")["data"]
    assert days[0]["start"] == format_time(day_of(now() - 30 * DAY))


def test_test_sends_are_not_counted(api, resources, made):
    count(resources, made, now(), 100, trigger="test")
    assert stats(api, made)["total"] == EMPTY
    count(resources, made, now(), 100, trigger="manual")
    assert stats(api, made)["total"]["success"] == 1


def test_each_endpoint_has_its_own(api, resources, made):
    other = make_endpoint(api, "https://hooks.example.com")
    count(resources, made, now(), 100)
    assert stats(api, other)["total"] == EMPTY


def test_statistics_do_not_read_the_log(api, resources, made):
    count(resources, made, now(), 100)
    statements = record_statements(resources)
    assert stats(api, made)["total"]["success"] == 1
    assert not [statement for statement in statements if "FROM attempts" in statement]


def test_a_batch_is_counted_in_one_statement(resources, made):
    statements = record_statements(resources)
    count(resources, made, now(), *range(0, 30_000, 97))
    assert len([statement for statement in statements if "attempt_counts" in statement]) == 1


def test_what_is_asked_has_to_make_sense(api, made, new_api):
    expect.invalid(api.get(f"/v1/endpoints/{made['id']}/stats?bucket=minute"), "/bucket")
    expect.invalid(api.get(f"/v1/endpoints/{made['id']}/stats?since=yesterday"), "/since")
    missing = api.get("/v1/endpoints/ep_01kjpx8tcmej9svxw1fyydhpy2/stats")
    expect.problem(missing, 404, "not_found")
    expect.problem(new_api().get(f"/v1/endpoints/{made['id']}/stats"), 404, "not_found")


def test_an_answer_has_no_more_than_a_thousand_buckets(api, resources, made, monkeypatch):
    monkeypatch.setattr(statistics, "MAX_BUCKETS", 30)
    path = f"/v1/endpoints/{made['id']}/stats"
    expect.invalid(api.get(f"{path}?since={format_time(now() - 40 * HOUR)}"), "/since")
    assert len(stats(api, made, f"?since={format_time(now() - 29 * HOUR)}")["data"]) == 30
