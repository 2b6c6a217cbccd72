"""A POST with an Idempotency-Key acts once, however often it is sent."""

import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy
from sqlalchemy import select, update
from structlog.testing import capture_logs

from app.core import idempotency
from app.core.clock import now
from app.core.idempotency import IdempotencyKey
from app.core.unit_of_work import Resources
from app.events import service as events
from tests.api import expect
from tests.api.steps import age_key, another_key, with_key
from tests.conftest import Api

EVENT = {"type": "contact.created", "data": {}}
ENDPOINT = {"url": "https://hooks.example.com/", "events": ["*"]}


def post(api: Api, path: str, body: Any = None, key: str = "the-key", **kwargs: Any) -> Any:
    return api.post(path, body, headers={"Idempotency-Key": key}, **kwargs)


def published(api: Api) -> int:
    return len(expect.ok(api.get("/v1/events?limit=100"))["data"])


def age(resources: Resources, by: timedelta) -> None:
    """Make every claimed key older."""
    with resources.transaction() as uow:
        uow.session.execute(update(IdempotencyKey).values(created_at=now() - by))


def assert_replay(answer: Any, first: Any) -> None:
    assert answer.headers["Idempotent-Replayed"] == "true"
    assert (answer.status_code, answer.data) == (first.status_code, first.data)
    assert answer.content_type == first.content_type
    assert answer.headers["Cache-Control"] == "no-store"
    assert answer.headers["X-Request-Id"] != first.headers["X-Request-Id"]


def test_the_same_request_again_gets_the_same_answer(api, doorbell):
    first = post(api, "/v1/events", EVENT)
    expect.ok(first, 202)
    assert "Idempotent-Replayed" not in first.headers
    doorbell.rings.clear()
    for _ in range(3):
        assert_replay(post(api, "/v1/events", EVENT), first)
    assert published(api) == 1
    assert doorbell.rings == []


def test_every_post_can_be_repeated(api):
    endpoint_id = api.post("/v1/endpoints", ENDPOINT).json["id"]
    key_id = api.post("/v1/api-keys", {"name": "CI"}).json["id"]
    for number, (path, body) in enumerate(
        {
            "/v1/events": {**EVENT, "external_id": "order-1"},
            "/v1/events/batch": {"events": [EVENT, {}]},
            "/v1/endpoints": ENDPOINT,
            f"/v1/endpoints/{endpoint_id}/pause": None,
            f"/v1/endpoints/{endpoint_id}/resume": {},
            f"/v1/api-keys/{key_id}/revoke": None,
        }.items()
    ):
        first = post(api, path, body, key=f"key-{number}")
        assert first.status_code < 300
        assert_replay(post(api, path, body, key=f"key-{number}"), first)
    assert published(api) == 2
    assert len(api.get("/v1/endpoints").json["data"]) == 2


def test_an_answer_is_replayed_as_it_was_although_things_have_changed(api):
    endpoint_id = api.post("/v1/endpoints", ENDPOINT).json["id"]
    first = post(api, f"/v1/endpoints/{endpoint_id}/pause")
    api.post(f"/v1/endpoints/{endpoint_id}/resume")
    assert_replay(post(api, f"/v1/endpoints/{endpoint_id}/pause"), first)
    assert api.get(f"/v1/endpoints/{endpoint_id}").json["status"] == "active"


def test_the_key_of_another_request_is_refused(api):
    first = post(api, "/v1/events", EVENT)
    for path, body in (
        ("/v1/events", {**EVENT, "data": {"a": 1}}),
        ("/v1/events", {"data": {}, "type": "contact.created"}),  # the same fields, but other bytes
        ("/v1/events", {}),
        ("/v1/events?dry_run=1", EVENT),
        ("/v1/events/batch", EVENT),
        ("/v1/endpoints", ENDPOINT),
    ):
        expect.problem(post(api, path, body), 422, "idempotency_key_reused")
    assert_replay(post(api, "/v1/events", EVENT), first)
    assert published(api) == 1


def test_two_keys_are_two_requests(api):
    ids = {post(api, "/v1/events", EVENT, key=key).json["id"] for key in ("a", "b", "A", "x" * 255, "!~")}
    assert len(ids) == published(api) == 5


def test_a_key_belongs_to_the_api_key_that_sent_it(api, resources, new_api):
    other = with_key(api, another_key(resources, api)[1])
    stranger = new_api()
    ids = set()
    for each in (api, other, stranger):
        answer = post(each, "/v1/events", EVENT)
        assert "Idempotent-Replayed" not in answer.headers
        ids.add(expect.ok(answer, 202)["id"])
    assert len(ids) == 3


def test_a_replay_needs_a_good_key_like_any_request(api, resources):
    key_id, key = another_key(resources, api)
    other = with_key(api, key)
    expect.ok(post(other, "/v1/events", EVENT), 202)
    age_key(resources, key_id, revoked_at=now())
    expect.problem(post(other, "/v1/events", EVENT), 401, "api_key_revoked")


def test_a_request_that_fails_frees_its_key(api, monkeypatch):
    expect.invalid(post(api, "/v1/events", {**EVENT, "extra": 1}), "/extra")
    expect.problem(post(api, "/v1/events", data=b"{", content_type="application/json"), 400, "malformed_json")
    expect.problem(post(api, "/v1/endpoints/ep_missing/pause"), 404, "not_found")
    with monkeypatch.context() as patch, capture_logs():
        patch.setattr(events, "publish", None)
        expect.problem(post(api, "/v1/events", EVENT), 500, "internal_error")
    answer = post(api, "/v1/events", EVENT)
    expect.ok(answer, 202)
    assert "Idempotent-Replayed" not in answer.headers
    assert published(api) == 1


def test_a_request_that_is_turned_away_claims_nothing(api, resources):
    headers = {"Idempotency-Key": "the-key"}
    expect.problem(api.client.post("/v1/events", json=EVENT, headers=headers), 401, "missing_api_key")
    reader = with_key(api, another_key(resources, api, scopes=["events:read"])[1])
    expect.problem(post(reader, "/v1/events", EVENT), 403, "insufficient_scope")
    expect.problem(post(api, "/v1/events", {"a": "x" * 300_000}), 413, "payload_too_large")
    expect.problem(post(api, "/v1/nope", EVENT), 404, "not_found")
    with resources.transaction(write=False) as uow:
        assert uow.session.scalars(select(IdempotencyKey)).all() == []


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Hold up the first publish: gives what tells that it has begun, and what lets it go on."""
    begun, go_on = threading.Event(), threading.Event()
    publish = events.publish

    def hold(*args: Any, **kwargs: Any) -> Any:
        if not begun.is_set():
            begun.set()
            assert go_on.wait(20)
        return publish(*args, **kwargs)

    monkeypatch.setattr(events, "publish", hold)
    return begun, go_on


def in_background(api: Api, work: Callable[[Api], Any]) -> tuple[threading.Thread, list[Any]]:
    answers: list[Any] = []
    mine = Api(api.client.application.test_client(), api.key, api.workspace_id, api.key_id)
    thread = threading.Thread(target=lambda: answers.append(work(mine)))
    thread.start()
    return thread, answers


def test_while_the_first_is_being_answered_a_twin_is_told_to_wait(api, held):
    begun, go_on = held
    thread, answers = in_background(api, lambda mine: post(mine, "/v1/events", EVENT))
    assert begun.wait(20)
    expect.problem(post(api, "/v1/events", EVENT), 409, "idempotency_key_in_flight")
    expect.problem(post(api, "/v1/events", {**EVENT, "data": {"a": 1}}), 422, "idempotency_key_reused")
    expect.ok(post(api, "/v1/events", EVENT, key="another"), 202)
    go_on.set()
    thread.join()

    (first,) = answers
    expect.ok(first, 202)
    assert_replay(post(api, "/v1/events", EVENT), first)
    assert published(api) == 2


def test_one_that_took_so_long_that_its_key_was_taken_over_undoes_its_work(api, resources, held):
    begun, go_on = held
    thread, answers = in_background(api, lambda mine: post(mine, "/v1/events", EVENT))
    assert begun.wait(20)
    age(resources, timedelta(seconds=100))
    second = post(api, "/v1/events", EVENT)
    expect.ok(second, 202)
    go_on.set()
    thread.join()

    (first,) = answers
    expect.problem(first, 409, "idempotency_key_in_flight")
    assert_replay(post(api, "/v1/events", EVENT), second)
    assert published(api) == 1


def test_of_many_twins_at_once_one_acts(api):
    barrier = threading.Barrier(6)

    def work(mine: Api) -> Any:
        barrier.wait()
        return post(mine, "/v1/events", EVENT)

    running = [in_background(api, work) for _ in range(6)]
    for thread, _ in running:
        thread.join()
    answers = [answer for _, (answer,) in running]
    assert {answer.status_code for answer in answers} <= {202, 409}
    assert [answer.status_code for answer in answers if "Idempotent-Replayed" not in answer.headers].count(
        202
    ) == 1
    assert published(api) == 1


def test_a_twin_that_fails_at_this_very_moment_does_no_harm(api, resources):
    if resources.database.is_sqlite:
        pytest.skip("SQLite has one writer at a time")
    key = {"api_key_id": api.key_id, "key": "the-key"}
    with resources.transaction() as uow:
        claimed_at: Any = idempotency.claim(uow, resources.secret_box, fingerprints=[b""], **key)

    failed: list[bool] = []

    def fail(_connection: Any, _cursor: Any, statement: str, *_rest: Any) -> None:
        if statement.startswith("INSERT INTO idempotency_keys") and not failed:
            failed.append(True)
            with resources.transaction() as uow:
                idempotency.release(uow, claimed_at=claimed_at, **key)

    sqlalchemy.event.listen(resources.database.engine, "after_cursor_execute", fail)
    with capture_logs() as logs:
        answer = post(api, "/v1/events", EVENT)
    assert answer.status_code in (202, 409), logs


def test_a_claim_whose_process_died_does_not_last(api, resources):
    body = api.client.application.json.dumps(EVENT).encode()
    first = post(api, "/v1/events", data=body, content_type="application/json")
    with resources.transaction() as uow:  # as if the process had died before its answer
        uow.session.execute(update(IdempotencyKey).values(status_code=None, response=None))
    again = {"data": body, "content_type": "application/json"}
    age(resources, timedelta(seconds=80))
    expect.problem(post(api, "/v1/events", **again), 409, "idempotency_key_in_flight")
    age(resources, timedelta(seconds=100))
    answer = post(api, "/v1/events", **again)
    assert expect.ok(answer, 202)["id"] != first.json["id"]


def test_a_key_is_kept_for_24_hours(api, resources):
    first = post(api, "/v1/events", EVENT)
    age(resources, timedelta(hours=23, minutes=59))
    assert_replay(post(api, "/v1/events", EVENT), first)
    age(resources, timedelta(hours=24, seconds=1))
    answer = post(api, "/v1/events", {**EVENT, "data": {"a": 1}})
    assert expect.ok(answer, 202)["id"] != first.json["id"]
    assert "Idempotent-Replayed" not in answer.headers


def test_what_is_older_is_pruned(api, resources):
    post(api, "/v1/events", EVENT, key="old")
    age(resources, timedelta(hours=24, seconds=1))
    post(api, "/v1/events", EVENT, key="new")
    with resources.transaction() as uow:
        idempotency.prune_all_workspaces(uow)
    with resources.transaction(write=False) as uow:
        assert uow.session.scalars(select(IdempotencyKey.key)).all() == ["new"]


def test_a_replay_shows_a_signing_secret_but_no_api_key(api):
    """An endpoint's secret can be asked for anyway; an API key is shown once."""
    first = post(api, "/v1/endpoints", ENDPOINT, key="endpoint")
    assert_replay(post(api, "/v1/endpoints", ENDPOINT, key="endpoint"), first)

    first = post(api, "/v1/api-keys", {"name": "CI"}, key="api-key")
    again = post(api, "/v1/api-keys", {"name": "CI"}, key="api-key")
    assert again.headers["Idempotent-Replayed"] == "true"
    assert again.status_code == 201
    assert again.json == {name: value for name, value in first.json.items() if name != "key"}
    assert "key" in first.json


def test_answers_are_kept_encrypted(api, resources):
    event_id = post(api, "/v1/events", {**EVENT, "external_id": "order-1"}).json["id"]
    with resources.transaction(write=False) as uow:
        (row,) = uow.session.scalars(select(IdempotencyKey))
    assert row.response.startswith("v1:k1:")
    assert event_id not in row.response


def test_what_is_no_key(api):
    for key in ("", " ", "a b", "x" * 256, "a\tb", "\xe9", "\x7f"):
        expect.problem(post(api, "/v1/events", EVENT, key=key), 400, "bad_request")
    assert published(api) == 0


def test_other_methods_take_no_notice_of_it(api):
    headers = {"Idempotency-Key": "the-key"}
    endpoint = f"/v1/endpoints/{api.post('/v1/endpoints', ENDPOINT).json['id']}"
    for description in ("a", "b"):
        answer = api.call("PATCH", endpoint, {"description": description}, headers=headers)
        assert expect.ok(answer)["description"] == description
        answer = api.call(
            "PUT", "/v1/event-types/order.created", {"description": description}, headers=headers
        )
        assert expect.ok(answer)["description"] == description
        assert "Idempotent-Replayed" not in api.get("/v1/events", headers=headers).headers
    assert api.call("DELETE", endpoint, headers=headers).status_code == 204
    expect.problem(api.call("DELETE", endpoint, headers=headers), 404, "not_found")
