"""Rotating a key: a second one in its place, and no moment without one that works."""

import time
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from typing import Any

import pytest

from app.api_keys import service as api_keys
from app.api_keys.models import ApiKey
from app.core.clock import format_time, now
from tests.api import expect
from tests.api.steps import age_key, another_key, at_once, audited, let_pass, twin, with_key
from tests.conftest import Api

DAY = timedelta(days=1)


def rotate(api: Api, key_id: str, **body: Any) -> Any:
    return expect.ok(api.post(f"/v1/api-keys/{key_id}/rotate", body), 201)


def key_object(api: Api, key_id: str) -> Any:
    return expect.ok(api.get(f"/v1/api-keys/{key_id}"))


def works(api: Api, key: str) -> bool:
    return with_key(api, key).get("/v1/events").status_code == 200


def after(key: dict[str, Any], field: str = "expires_at") -> timedelta:
    return datetime.fromisoformat(key[field]) - datetime.fromisoformat(key["created_at"])


def test_the_old_key_and_the_new_one_work(api):
    wanted = {
        "name": "CI \N{KEY}",
        "scopes": ["events:read", "endpoints:read"],
        "allowed_cidrs": ["127.0.0.0/8", "203.0.113.0/24"],
    }
    old = api.post("/v1/api-keys", wanted).json
    new = rotate(api, old["id"])

    assert works(api, old["key"])
    assert works(api, new["key"])
    assert new["key"] != old["key"]
    assert new["key"].startswith(new["prefix"])
    differing = {"id", "key", "prefix", "created_at", "rotated_from"}
    assert new.keys() == old.keys()
    assert {name for name in new if new[name] != old[name]} == differing
    assert new["rotated_from"] == old["id"]
    assert key_object(api, old["id"])["expires_at"] is None


def test_the_new_key_is_shown_once(api):
    new = rotate(api, api.key_id)
    for answer in (api.get("/v1/api-keys"), api.get(f"/v1/api-keys/{new['id']}")):
        assert new["id"] in answer.get_data(as_text=True)
        assert new["key"] not in answer.get_data(as_text=True)
    again = {"headers": {"Idempotency-Key": "once"}}
    first = api.post(f"/v1/api-keys/{api.key_id}/rotate", {}, **again)
    replay = api.post(f"/v1/api-keys/{api.key_id}/rotate", {}, **again)
    assert replay.json == {name: value for name, value in first.json.items() if name != "key"}
    assert replay.headers["Idempotent-Replayed"] == "true"


def test_the_new_key_has_the_rate_limit_of_the_old(api, resources):
    old_id, _ = another_key(resources, api, rate_limit_per_second=7)
    new = rotate(api, old_id)
    with resources.transaction() as uow:
        assert uow.session.get_one(ApiKey, new["id"]).rate_limit_per_second == 7


def test_the_old_key_ends_with_the_overlap(api):
    for overlap in (1, 3600, 2592000):
        old = api.post("/v1/api-keys", {"name": "CI"}).json
        new = rotate(api, old["id"], overlap_seconds=overlap)
        ends_at = datetime.fromisoformat(key_object(api, old["id"])["expires_at"])
        assert ends_at - datetime.fromisoformat(new["created_at"]) == timedelta(seconds=overlap)
        assert works(api, old["key"])
        assert new["expires_at"] is None


def test_without_an_overlap_the_old_key_goes_on(api):
    for overlap in ({}, {"overlap_seconds": None}):
        old = api.post("/v1/api-keys", {"name": "CI", "expires_in_days": 30}).json
        rotate(api, old["id"], **overlap)
        assert key_object(api, old["id"])["expires_at"] == old["expires_at"]


def test_an_overlap_of_nothing_ends_the_old_key_at_once(api):
    old = api.post("/v1/api-keys", {"name": "CI"}).json
    new = rotate(with_key(api, old["key"]), old["id"], overlap_seconds=0)
    expect.problem(with_key(api, old["key"]).get("/v1/events"), 401, "api_key_expired")
    assert key_object(api, old["id"])["status"] == "expired"
    assert works(api, new["key"])


def test_no_overlap_goes_past_the_old_key_s_own_end(api):
    old = api.post("/v1/api-keys", {"name": "CI", "expires_in_days": 1}).json
    rotate(api, old["id"], overlap_seconds=24 * 3600 + 1)
    assert key_object(api, old["id"])["expires_at"] == old["expires_at"]
    rotate(api, old["id"], overlap_seconds=60)
    earlier = key_object(api, old["id"])["expires_at"]
    assert earlier < old["expires_at"]
    rotate(api, old["id"], overlap_seconds=3600)
    rotate(api, old["id"])
    assert key_object(api, old["id"])["expires_at"] == earlier


def test_the_new_key_lives_as_long_as_the_old_one_was_made_for(api, resources):
    old = api.post("/v1/api-keys", {"name": "CI", "expires_in_days": 90}).json
    let_pass(resources, old["id"], 80 * DAY)
    new = rotate(api, old["id"], overlap_seconds=60)
    assert after(new) == 90 * DAY
    # The overlap is no policy: whoever rotates again, for the first answer was lost, gets as much.
    assert after(rotate(api, old["id"], overlap_seconds=60)) == 90 * DAY
    assert after(rotate(api, new["id"])) == 90 * DAY
    assert rotate(api, api.key_id, overlap_seconds=60)["expires_at"] is None
    assert rotate(api, api.key_id)["expires_at"] is None


def test_a_lifetime_beyond_the_end_of_time_ends_there(api, resources):
    old = api.post("/v1/api-keys", {"name": "CI", "expires_at": "9999-12-31T00:00:00Z"}).json
    age_key(resources, old["id"], lifetime_seconds=8000 * 365 * 24 * 3600)
    assert rotate(api, old["id"])["expires_at"] == "9999-12-31T23:59:59.999Z"


def test_the_new_key_s_expiry_can_be_chosen(api):
    old = api.post("/v1/api-keys", {"name": "CI", "expires_in_days": 90}).json
    new = rotate(api, old["id"], expires_at="2099-12-31T23:59:59Z")
    assert new["expires_at"] == "2099-12-31T23:59:59.000Z"
    assert key_object(api, old["id"])["expires_at"] == old["expires_at"]


def test_what_a_rotation_cannot_be(api):
    path = f"/v1/api-keys/{api.key_id}/rotate"
    overlap: Any
    for overlap in (-1, 2592001, 1.5, 60.0, "60", True, [], 10**30):
        expect.invalid(api.post(path, {"overlap_seconds": overlap}), "/overlap_seconds")
    for moment in ("2020-01-01T00:00:00Z", format_time(now() - timedelta(seconds=1)), "tomorrow", 5):
        expect.invalid(api.post(path, {"overlap_seconds": 0, "expires_at": moment}), "/expires_at")
    for name in ("name", "scopes", "allowed_cidrs", "expires_in_days"):
        expect.invalid(api.post(path, {name: "x"}), f"/{name}")
    assert [key["id"] for key in api.get("/v1/api-keys").json["data"]] == [api.key_id]
    assert key_object(api, api.key_id)["expires_at"] is None


def test_a_key_that_is_not_active_cannot_be_rotated(api, resources):
    expired = api.post("/v1/api-keys", {"name": "expired", "expires_in_days": 1}).json
    revoked = api.post("/v1/api-keys", {"name": "revoked"}).json
    age_key(resources, expired["id"], expires_at=now())
    api.post(f"/v1/api-keys/{revoked['id']}/revoke")
    for key in (expired, revoked):
        answer = api.post(f"/v1/api-keys/{key['id']}/rotate", {"expires_at": "2099-12-31T23:59:59Z"})
        problem = expect.problem(answer, 409, "api_key_not_active")
        assert problem["detail"] == f"It is {key['name']}: make a new key instead."
    assert len(api.get("/v1/api-keys").json["data"]) == 2


def test_only_the_workspace_s_own_keys(api, new_api):
    stranger = new_api()
    missing = api.post("/v1/api-keys/key_01kjpx8tcmej9svxw1fyydhpy2/rotate")
    answer = stranger.post(f"/v1/api-keys/{api.key_id}/rotate", {"overlap_seconds": 0})
    expect.problem(answer, 404, "not_found")
    assert {**answer.json, "request_id": ""} == {**missing.json, "request_id": ""}
    assert key_object(api, api.key_id)["expires_at"] is None


def test_nobody_gets_scopes_by_rotating(api, resources):
    _, key = another_key(resources, api, scopes=["api_keys:write", "events:read"])
    limited = with_key(api, key)
    richer_id, _ = another_key(resources, api, scopes=["events:read", "events:write"])
    poorer_id, _ = another_key(resources, api, scopes=["events:read"])

    answer = limited.post(f"/v1/api-keys/{richer_id}/rotate", {"overlap_seconds": 0})
    expect.problem(answer, 403, "insufficient_scope")
    assert 'error="insufficient_scope", scope="events:write"' in answer.headers["WWW-Authenticate"]
    expect.problem(limited.post(f"/v1/api-keys/{api.key_id}/rotate"), 403, "insufficient_scope")
    assert key_object(api, richer_id)["status"] == "active"
    assert rotate(limited, poorer_id)["scopes"] == ["events:read"]


def test_a_rotation_is_recorded_with_both_keys(api, resources):
    old_id, _ = another_key(resources, api)
    new = rotate(api, old_id)
    rotate(api, old_id, overlap_seconds=60)
    assert audited(resources, new["id"]) == [("api_key.created", [])]
    assert audited(resources, old_id) == [
        ("api_key.created", []),
        ("api_key.rotated", []),
        ("api_key.rotated", ["expires_at"]),
    ]


@pytest.mark.parametrize("round_", range(3))
def test_two_rotations_at_once_give_two_keys_and_the_earlier_end(api, round_):
    old = api.post("/v1/api-keys", {"name": "CI", "expires_in_days": 90}).json
    long, short = at_once(
        lambda: rotate(twin(api), old["id"], overlap_seconds=3600),
        lambda: rotate(twin(api), old["id"], overlap_seconds=60),
    )
    assert works(api, long["key"])
    assert works(api, short["key"])
    assert after(long) == after(short) == 90 * DAY
    ends_at = datetime.fromisoformat(key_object(api, old["id"])["expires_at"])
    assert ends_at - datetime.fromisoformat(short["created_at"]) == timedelta(minutes=1)


@pytest.mark.parametrize("round_", range(3))
def test_a_key_that_is_rotated_and_revoked_at_once_is_revoked(api, resources, round_):
    old = api.post("/v1/api-keys", {"name": "CI"}).json
    rotated, revoked = at_once(
        lambda: twin(api).post(f"/v1/api-keys/{old['id']}/rotate", {"overlap_seconds": 3600}),
        lambda: twin(api).post(f"/v1/api-keys/{old['id']}/revoke"),
    )
    assert expect.ok(revoked)["status"] == "revoked"
    assert key_object(api, old["id"])["status"] == "revoked"
    assert rotated.status_code in (201, 409)
    if rotated.status_code == 201:
        assert works(api, rotated.json["key"])
    assert [action for action, _ in audited(resources, old["id"])].count("api_key.revoked") == 1


def test_a_key_that_is_being_revoked_is_not_rotated_meanwhile(api, resources):
    key_id, _ = another_key(resources, api)
    with ThreadPoolExecutor() as pool:
        with resources.transaction() as uow:
            api_keys.revoke(uow, workspace_id=api.workspace_id, key_id=key_id)
            rotated = pool.submit(twin(api).post, f"/v1/api-keys/{key_id}/rotate")
            time.sleep(0.5)
        expect.problem(rotated.result(), 409, "api_key_not_active")


def test_a_key_that_is_revoked_twice_at_once_was_revoked_once(api, resources):
    key_id, _ = another_key(resources, api)
    answers = at_once(*[lambda: twin(api).post(f"/v1/api-keys/{key_id}/revoke")] * 4)
    assert len({expect.ok(answer)["revoked_at"] for answer in answers}) == 1
    assert audited(resources, key_id) == [("api_key.created", []), ("api_key.revoked", [])]
