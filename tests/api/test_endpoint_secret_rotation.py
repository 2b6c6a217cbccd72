"""Rotating a signing secret: what is shown, what goes on signing and until when, and what stays in the database."""

import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import select, text, update
from structlog.testing import capture_logs

from app.core.unit_of_work import Resources
from app.endpoints import service
from app.endpoints.models import Endpoint
from tests.api import expect
from tests.conftest import Api

OWN = "a secret of our own"
ANOTHER = "another one of our own"
DAY = 86_400


@pytest.fixture
def made(api) -> Any:
    return expect.ok(api.post("/v1/endpoints", {"url": "https://hooks.example.com/", "events": ["*"]}), 201)


@pytest.fixture
def run_beats_task(resources, monkeypatch) -> Callable[[], None]:
    from worker import maintenance, runtime  # which read the settings

    monkeypatch.setattr(runtime, "resources", lambda: resources)
    task: Callable[[], None] = maintenance.forget_ended_secrets
    return task


def rotate(api: Api, made: Any, body: Any = None, **kwargs: Any) -> Any:
    return api.post(f"/v1/endpoints/{made['id']}/rotate-secret", body, **kwargs)


def rotated(api: Api, made: Any, **fields: Any) -> Any:
    return expect.ok(rotate(api, made, fields))


def secrets_of(api: Api, made: Any) -> tuple[str, list[str]]:
    shown = expect.ok(api.get(f"/v1/endpoints/{made['id']}/secret"))
    return shown["signing_secret"], [entry["signing_secret"] for entry in shown["previous"]]


def pass_time(resources: Resources, made: Any, by: timedelta) -> None:
    with resources.transaction() as uow:
        row = uow.session.get_one(Endpoint, made["id"])
        assert row.previous_secret_expires_at is not None
        row.previous_secret_expires_at -= by


def at_rest(resources: Resources, made: Any) -> tuple[str | None, datetime | None]:
    with resources.transaction(write=False) as uow:
        row = uow.session.get_one(Endpoint, made["id"])
        return row.previous_signing_secret, row.previous_secret_expires_at


def test_the_secret_before_goes_on_signing_for_a_day(api, made):
    for body in (None, {}, {"signing_secret": None}):
        before, _ = secrets_of(api, made)
        asked_at = datetime.now(UTC)
        answer = expect.ok(rotate(api, made, body))
        assert set(answer) == {"signing_secret", "previous_expires_at"}
        assert answer["signing_secret"].startswith("whsec_")
        assert answer["signing_secret"] != before
        assert expect.ok(api.get(f"/v1/endpoints/{made['id']}/secret")) == {
            "signing_secret": answer["signing_secret"],
            "previous": [{"signing_secret": before, "expires_at": answer["previous_expires_at"]}],
        }
        lasts = datetime.fromisoformat(answer["previous_expires_at"]) - asked_at
        assert abs(lasts.total_seconds() - DAY) < 10


def test_an_own_secret_and_an_own_overlap(api, made):
    asked_at = datetime.now(UTC)
    answer = rotated(api, made, signing_secret=OWN, overlap_seconds=7 * DAY)
    assert answer["signing_secret"] == OWN
    lasts = datetime.fromisoformat(answer["previous_expires_at"]) - asked_at
    assert abs(lasts.total_seconds() - 7 * DAY) < 10
    assert secrets_of(api, made) == (OWN, [made["signing_secret"]])


def test_without_an_overlap_the_old_one_is_gone_at_once(api, resources, made):
    rotated(api, made, signing_secret=OWN)
    answer = rotated(api, made, signing_secret=ANOTHER, overlap_seconds=0)
    assert answer == {"signing_secret": ANOTHER, "previous_expires_at": None}
    assert secrets_of(api, made) == (ANOTHER, [])
    assert at_rest(resources, made) == (None, None)


def test_a_second_rotation_drops_the_oldest(api, made):
    rotated(api, made, signing_secret=OWN, overlap_seconds=7 * DAY)
    rotated(api, made, signing_secret=ANOTHER, overlap_seconds=60)
    assert secrets_of(api, made) == (ANOTHER, [OWN])
    # Back to one that was there before is a rotation like any other.
    rotated(api, made, signing_secret=OWN)
    assert secrets_of(api, made) == (OWN, [ANOTHER])


def test_what_is_no_rotation_changes_nothing(api, made):
    rotated(api, made, signing_secret=OWN)
    before = (expect.ok(api.get(f"/v1/endpoints/{made['id']}")), secrets_of(api, made))
    overlaps: list[Any] = [-1, 7 * DAY + 1, 1.5, "60", True, None, [], 10**30]
    for overlap in overlaps:
        expect.invalid(rotate(api, made, {"overlap_seconds": overlap}), "/overlap_seconds")
    for secret in ("", "x" * 15, "x" * 257, "\u00e9" * 16, "x" * 16 + "\n", 5, True, ["x" * 16]):
        expect.invalid(rotate(api, made, {"signing_secret": secret}), "/signing_secret")
    expect.invalid(rotate(api, made, {"overlap": 60}), "/overlap")
    expect.problem(rotate(api, {"id": "ep_01kjpx8tcmej9svxw1fyydhpy2"}), 404, "not_found")
    assert (expect.ok(api.get(f"/v1/endpoints/{made['id']}")), secrets_of(api, made)) == before


def test_a_rotation_that_is_sent_twice_does_not_end_the_overlap(api, made):
    """Whoever got no answer sends it again; the receivers still have the secret before it."""
    body = {"signing_secret": OWN}
    expect.ok(rotate(api, made, body))
    (error,) = expect.invalid(rotate(api, made, body), "/signing_secret")
    assert error["code"] == "unchanged"
    assert secrets_of(api, made) == (OWN, [made["signing_secret"]])


def test_a_replay_rotates_nothing_and_shows_no_secret(api, made):
    headers = {"Idempotency-Key": "one"}
    first = expect.ok(rotate(api, made, headers=headers))
    again = rotate(api, made, headers=headers)
    assert again.headers["Idempotent-Replayed"] == "true"
    assert expect.ok(again) == {"previous_expires_at": first["previous_expires_at"]}
    assert secrets_of(api, made) == (first["signing_secret"], [made["signing_secret"]])


def test_the_secret_before_is_shown_until_its_end_and_then_deleted(api, resources, made, run_beats_task):
    rotated(api, made, overlap_seconds=3600)
    pass_time(resources, made, timedelta(seconds=3590))
    run_beats_task()
    assert secrets_of(api, made)[1] == [made["signing_secret"]]

    pass_time(resources, made, timedelta(seconds=11))
    assert secrets_of(api, made)[1] == []
    assert None not in at_rest(resources, made)
    run_beats_task()
    assert at_rest(resources, made) == (None, None)


def test_a_secret_given_by_patch_signs_alone(api, resources, made):
    rotated(api, made, signing_secret=OWN)
    expect.ok(api.call("PATCH", f"/v1/endpoints/{made['id']}", {"description": "no secret here"}))
    assert secrets_of(api, made) == (OWN, [made["signing_secret"]])
    expect.ok(api.call("PATCH", f"/v1/endpoints/{made['id']}", {"signing_secret": OWN}))
    assert secrets_of(api, made) == (OWN, [])
    assert at_rest(resources, made) == (None, None)


def test_secrets_are_shown_where_they_are_asked_for_alone(api, made):
    with capture_logs() as logs:
        new = rotated(api, made)["signing_secret"]
        shown = [
            api.get(f"/v1/endpoints/{made['id']}").text,
            api.get("/v1/endpoints").text,
            api.call("PATCH", f"/v1/endpoints/{made['id']}", {"description": "x"}).text,
            str(logs),
        ]
    assert logs
    for place in shown:
        assert new not in place
        assert made["signing_secret"] not in place


def test_the_secret_before_is_sealed_for_its_own_column(api, resources, made):
    rotated(api, made)
    sealed, _ = at_rest(resources, made)
    assert sealed is not None
    assert made["signing_secret"] not in sealed
    with resources.transaction() as uow:
        uow.session.execute(update(Endpoint).values(signing_secret=sealed))
    with capture_logs():
        answer = api.get(f"/v1/endpoints/{made['id']}/secret")
    expect.problem(answer, 500, "internal_error")
    assert made["signing_secret"] not in answer.text


def test_of_two_rotations_at_once_the_second_sees_the_first(api, resources, made):
    """Else each would keep the original as the one before, and the first one's answer would never sign."""
    answers: list[Any] = []
    with resources.transaction() as uow:
        first = service.rotate_secret(uow, workspace_id=api.workspace_id, endpoint_id=made["id"])
        thread = threading.Thread(target=lambda: answers.append(rotate(api, made)))
        thread.start()
        if not resources.database.is_sqlite:  # there the second cannot even begin
            wait_for_a_lock(resources)
    thread.join(20)
    (second,) = answers
    assert secrets_of(api, made) == (expect.ok(second)["signing_secret"], [first["signing_secret"]])


def wait_for_a_lock(resources: Resources) -> None:
    waiting = text(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    )
    deadline = time.monotonic() + 20
    with resources.database.bind(write=False).connect() as connection:
        while not connection.scalar(waiting):
            assert time.monotonic() < deadline, "nobody waits"
            time.sleep(0.01)


def test_a_rotation_is_a_change_that_workers_look_for(api, resources, made):
    def version() -> Any:
        with resources.transaction(write=False) as uow:
            return uow.session.scalar(select(Endpoint.updated_at))

    before = version()
    rotated(api, made)
    assert version() != before
