"""Changing a key, and that none opens a way in from where its maker may not come."""

from typing import Any

import pytest

from tests.api import expect
from tests.api.steps import another_key, at_once, audited, twin, with_key
from tests.conftest import Api

OWN = ["127.0.0.0/8", "203.0.113.0/24"]


def change(api: Api, key_id: str, **fields: Any) -> Any:
    return api.call("PATCH", f"/v1/api-keys/{key_id}", fields)


@pytest.fixture
def bound(api, resources) -> Api:
    """Give the API as a key sees it that is bound to networks."""
    key_id, key = another_key(resources, api, allowed_cidrs=OWN)
    return with_key(api, key, key_id)


def test_what_is_given_changes_and_the_rest_stays(api):
    made = api.post("/v1/api-keys", {"name": "CI", "allowed_cidrs": ["203.0.113.0/24"]}).json
    key = made.pop("key")
    renamed = expect.ok(change(api, made["id"], name="\N{KEY} 2"))
    assert renamed == {**made, "name": "\N{KEY} 2"}
    moved = expect.ok(change(api, made["id"], allowed_cidrs=["198.51.100.7", "2001:DB8::/32"]))
    assert moved == {**renamed, "allowed_cidrs": ["198.51.100.7/32", "2001:db8::/32"]}
    assert expect.ok(change(api, made["id"])) == moved
    assert expect.ok(api.get(f"/v1/api-keys/{made['id']}")) == moved

    expect.problem(with_key(api, key).get("/v1/events"), 403, "ip_not_allowed")
    assert expect.ok(change(api, made["id"], name="CI", allowed_cidrs=[])) == {**made, "allowed_cidrs": []}
    expect.ok(with_key(api, key).get("/v1/events"))


def test_what_cannot_be_changed(api):
    for name in ("", " ", "a\tb", "a\0b", "x" * 101, None, 5):
        expect.invalid(change(api, api.key_id, name=name), "/name")
    for cidrs in (None, "203.0.113.0/24", ["203.0.113.0/24"] * 51):
        expect.invalid(change(api, api.key_id, allowed_cidrs=cidrs), "/allowed_cidrs")
    expect.invalid(change(api, api.key_id, allowed_cidrs=["203.0.113.1/24"]), "/allowed_cidrs/0")
    for field in ("scopes", "expires_at", "expires_in_days", "status", "revoked_at", "key", "id"):
        expect.invalid(change(api, api.key_id, name="CI", **{field: None}), f"/{field}")
    assert api.get(f"/v1/api-keys/{api.key_id}").json["name"] == "test"


def test_only_the_workspace_s_own_keys_change(api, new_api):
    missing = change(api, "key_01kjpx8tcmej9svxw1fyydhpy2", name="mine")
    answer = change(new_api(), api.key_id, name="mine")
    expect.problem(answer, 404, "not_found")
    assert {**answer.json, "request_id": ""} == {**missing.json, "request_id": ""}
    assert api.get(f"/v1/api-keys/{api.key_id}").json["name"] == "test"


def test_a_change_is_recorded_by_the_names_of_what_changed(api, resources):
    key_id, _ = another_key(resources, api)
    change(api, key_id, name="CI", allowed_cidrs=[])
    change(api, key_id, name="CI")
    change(api, key_id, name="CI 2", allowed_cidrs=["203.0.113.0/24"])
    assert audited(resources, key_id) == [
        ("api_key.created", []),
        ("api_key.updated", ["name"]),
        ("api_key.updated", ["allowed_cidrs", "name"]),
    ]


def test_changes_at_once_do_not_undo_each_other(api):
    key_id = api.post("/v1/api-keys", {"name": "CI"}).json["id"]
    at_once(
        lambda: change(twin(api), key_id, name="CI 2"),
        lambda: change(twin(api), key_id, allowed_cidrs=["203.0.113.0/24"]),
    )
    key = api.get(f"/v1/api-keys/{key_id}").json
    assert (key["name"], key["allowed_cidrs"]) == ("CI 2", ["203.0.113.0/24"])


def test_a_bound_key_makes_keys_for_its_own_networks(bound):
    for given, kept in (
        ({}, OWN),
        ({"allowed_cidrs": OWN[::-1]}, OWN[::-1]),
        ({"allowed_cidrs": ["203.0.113.7", "127.0.0.1"]}, ["203.0.113.7/32", "127.0.0.1/32"]),
    ):
        made = expect.ok(bound.post("/v1/api-keys", {"name": "heir", **given}), 201)
        assert made["allowed_cidrs"] == kept


def test_a_bound_key_makes_no_key_for_elsewhere(api, bound):
    for cidrs in ([], ["0.0.0.0/0"], ["203.0.112.0/23"], ["127.0.0.1", "198.51.100.7"], ["::/0"]):
        answer = bound.post("/v1/api-keys", {"name": "heir", "allowed_cidrs": cidrs})
        problem = expect.problem(answer, 403, "network_not_allowed")
        assert "127.0.0.0/8, 203.0.113.0/24" in problem["detail"]
        assert "WWW-Authenticate" not in answer.headers
    assert len(api.get("/v1/api-keys").json["data"]) == 2


def test_a_bound_key_lets_no_key_in_from_elsewhere(api, resources, bound):
    other_id, _ = another_key(resources, api, allowed_cidrs=["198.51.100.0/24"])
    for key_id in (bound.key_id, other_id):
        before = api.get(f"/v1/api-keys/{key_id}").json
        for cidrs in ([], ["0.0.0.0/0"], [*OWN, "198.51.100.0/25"]):
            expect.problem(change(bound, key_id, name="x", allowed_cidrs=cidrs), 403, "network_not_allowed")
        after = api.get(f"/v1/api-keys/{key_id}").json
        assert {**after, "last_used_at": ""} == {**before, "last_used_at": ""}
    assert expect.ok(change(bound, bound.key_id, allowed_cidrs=OWN[:1]))["allowed_cidrs"] == OWN[:1]
    assert expect.ok(change(bound, other_id, name="x"))["allowed_cidrs"] == ["198.51.100.0/24"]


def test_a_bound_key_gets_no_key_for_elsewhere_by_rotating(api, resources, bound):
    for cidrs in ([], ["198.51.100.0/24"], ["203.0.112.0/23"]):
        other_id, _ = another_key(resources, api, allowed_cidrs=cidrs)
        answer = bound.post(f"/v1/api-keys/{other_id}/rotate", {"overlap_seconds": 0})
        expect.problem(answer, 403, "network_not_allowed")
        assert api.get(f"/v1/api-keys/{other_id}").json["status"] == "active"
    new = expect.ok(bound.post(f"/v1/api-keys/{bound.key_id}/rotate"), 201)
    assert new["allowed_cidrs"] == OWN
    expect.ok(with_key(api, new["key"]).get("/v1/events"))


def test_a_key_does_not_move_one_that_can_do_more(api, resources):
    _, key = another_key(resources, api, scopes=["api_keys:write"])
    richer_id, _ = another_key(resources, api, allowed_cidrs=["203.0.113.0/24"])
    answer = change(with_key(api, key), richer_id, allowed_cidrs=["127.0.0.0/8"])
    expect.problem(answer, 403, "insufficient_scope")
    assert api.get(f"/v1/api-keys/{richer_id}").json["allowed_cidrs"] == ["203.0.113.0/24"]
    assert expect.ok(change(with_key(api, key), richer_id, name="x"))["name"] == "x"


def test_a_key_of_the_command_line_is_bound_by_nothing(resources, api):
    key_id, _ = another_key(resources, api)
    assert api.get(f"/v1/api-keys/{key_id}").json["allowed_cidrs"] == []
