"""Two peppers live at once, so that one can be put in the place of the other with no key made anew."""

import base64
from datetime import timedelta

import pytest
from sqlalchemy import select

from app.api_keys import service as api_keys
from app.api_keys.models import ApiKey
from app.core.unit_of_work import Resources, open_resources
from app.web import create_app
from config.settings import load_settings
from tests.api import expect
from tests.api.steps import another_key, let_pass, with_key
from tests.conftest import ENCRYPTION_KEYS, Api

SECOND = f"k2:{base64.b64encode(b'2' * 32).decode()}"


@pytest.fixture
def under(api, doorbell, monkeypatch):
    """Give the API as another process serves it, which has these encryption keys."""
    opened = []

    def start(keys: str) -> Api:
        monkeypatch.setenv("BOTBAT_ENCRYPTION_KEYS", keys)
        opened.append(open_resources(load_settings(), doorbell=doorbell))
        return Api(create_app(opened[-1]).test_client(), api.key, api.workspace_id, api.key_id)

    yield start
    for resources in opened:
        resources.close()


def pepper(resources: Resources, key_id: str) -> str | None:
    with resources.transaction(write=False) as uow:
        return uow.session.scalar(select(ApiKey.hash_key_id).where(ApiKey.id == key_id))


def test_a_key_of_the_old_pepper_works_under_both(api, resources, under):
    assert pepper(resources, api.key_id) == "k1"
    rotated = under(f"{SECOND},{ENCRYPTION_KEYS}")
    expect.ok(rotated.get("/v1/events"))
    made = expect.ok(rotated.post("/v1/api-keys", {"name": "CI"}), 201)
    assert pepper(resources, made["id"]) == "k2"
    expect.ok(with_key(rotated, made["key"]).get("/v1/events"))


def test_a_key_that_is_used_moves_to_the_current_pepper(api, resources, under):
    idle_id, idle = another_key(resources, api)
    rotated = under(f"{SECOND},{ENCRYPTION_KEYS}")
    expect.ok(rotated.get("/v1/events"))
    assert pepper(resources, api.key_id) == "k2"
    assert pepper(resources, idle_id) == "k1"

    retired = under(SECOND)
    expect.ok(retired.get("/v1/events"))
    expect.problem(with_key(retired, idle).get("/v1/events"), 401, "invalid_api_key")


def test_it_moves_with_the_note_of_its_use_and_no_write_of_its_own(api, resources, under):
    api.get("/v1/events")
    rotated = under(f"{SECOND},{ENCRYPTION_KEYS}")
    expect.ok(rotated.get("/v1/events"))
    assert pepper(resources, api.key_id) == "k1"
    let_pass(resources, api.key_id, timedelta(seconds=61))
    expect.ok(rotated.get("/v1/events"))
    assert pepper(resources, api.key_id) == "k2"


def test_while_the_new_pepper_is_only_known_nothing_moves(api, resources, under):
    """So are processes restarted one by one: all know it before one uses it."""
    both = under(f"{ENCRYPTION_KEYS},{SECOND}")
    expect.ok(both.get("/v1/events"))
    assert pepper(resources, api.key_id) == "k1"
    rotated = under(f"{SECOND},{ENCRYPTION_KEYS}")
    let_pass(resources, api.key_id, timedelta(seconds=61))
    expect.ok(rotated.get("/v1/events"))
    assert pepper(resources, api.key_id) == "k2"
    expect.ok(both.get("/v1/events"))


def test_a_key_that_was_revoked_is_known_as_such_under_both(api, under):
    api.post(f"/v1/api-keys/{api.key_id}/revoke")
    rotated = under(f"{SECOND},{ENCRYPTION_KEYS}")
    expect.problem(rotated.get("/v1/events"), 401, "api_key_revoked")


def test_active_keys_are_counted_by_pepper(api, resources, new_api, under):
    new_api()
    revoked_id, _ = another_key(resources, api)
    api.post(f"/v1/api-keys/{revoked_id}/revoke")
    expired_id, _ = another_key(resources, api, expires_in_days=1)
    let_pass(resources, expired_id, timedelta(days=1))
    client = under(f"{SECOND},{ENCRYPTION_KEYS}").client
    opened = client.application.extensions["botbat"]
    with opened.transaction(write=False) as uow:
        counts = api_keys.count_active_by_pepper_in_all_workspaces(uow)
    assert list(counts.items()) == [("k2", 0), ("k1", 2)]
