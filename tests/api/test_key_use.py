"""When a key was used last: written at most once a minute, by nothing that a request waits for or fails with."""

import time
from datetime import timedelta
from typing import Any

from sqlalchemy import select, text

from app.api_keys import repository
from app.api_keys.models import ApiKey
from app.core.clock import now
from app.core.unit_of_work import Resources
from tests.api import expect
from tests.api.steps import age_key, another_key, at_once, let_pass, record_statements, twin, with_key

BUILT_IN_TYPE = "/v1/event-types/message.read"  # costs no query beside the authentication's


def last_use(resources: Resources, key_id: str) -> Any:
    with resources.transaction(write=False) as uow:
        return uow.session.execute(
            select(ApiKey.last_used_at, ApiKey.last_used_ip).where(ApiKey.id == key_id)
        ).one()


def writes(statements: list[str]) -> list[str]:
    return [statement for statement in statements if statement.startswith("UPDATE api_keys")]


def test_the_first_use_shows_at_once_with_its_address(api, resources):
    key_id, key = another_key(resources, api)
    assert last_use(resources, key_id) == (None, None)
    with_key(api, key).get(BUILT_IN_TYPE, environ_overrides={"REMOTE_ADDR": "203.0.113.9"})
    moment, address = last_use(resources, key_id)
    assert abs(moment - now()) < timedelta(seconds=5)
    assert address == "203.0.113.9"


def test_within_a_minute_nothing_more_is_written(api, resources):
    api.get(BUILT_IN_TYPE)
    statements = record_statements(resources)
    for seconds in (0, 30, 29):
        let_pass(resources, api.key_id, timedelta(seconds=seconds))
        statements.clear()
        api.get(BUILT_IN_TYPE, environ_overrides={"REMOTE_ADDR": "203.0.113.9"})
        assert writes(statements) == []
    let_pass(resources, api.key_id, timedelta(seconds=2))
    statements.clear()
    api.get(BUILT_IN_TYPE, environ_overrides={"REMOTE_ADDR": "203.0.113.9"})
    assert len(writes(statements)) == 1
    moment, address = last_use(resources, api.key_id)
    assert abs(moment - now()) < timedelta(seconds=5)
    assert address == "203.0.113.9"


def test_of_uses_at_once_one_is_noted(api, resources):
    """Each of them sees that a note is due; who comes second must not write a second time."""
    with resources.transaction() as uow:
        moment = repository.database_time(uow.session)
    key_id, _ = another_key(resources, api)
    for address in ("203.0.113.1", "203.0.113.2"):
        with resources.transaction() as uow:
            repository.note_use(uow.session, key_id, moment, timedelta(minutes=1), {"last_used_ip": address})
    assert last_use(resources, key_id) == (moment, "203.0.113.1")
    age_key(resources, api.key_id, last_used_at=now() - timedelta(hours=1))
    answers = at_once(*[lambda: twin(api).get(BUILT_IN_TYPE)] * 4)
    assert [answer.status_code for answer in answers] == [200] * 4
    assert abs(last_use(resources, api.key_id)[0] - now()) < timedelta(seconds=5)


def test_a_request_does_not_wait_for_whoever_has_the_key_s_row(api, resources):
    with resources.transaction() as uow:
        uow.session.execute(select(ApiKey).where(ApiKey.id == api.key_id).with_for_update()).all()
        started = time.monotonic()
        expect.ok(api.get(BUILT_IN_TYPE))
        assert time.monotonic() - started < 2
    assert last_use(resources, api.key_id) == (None, None)
    expect.ok(api.get(BUILT_IN_TYPE))
    assert last_use(resources, api.key_id).last_used_at is not None


def test_a_use_that_cannot_be_noted_fails_no_request(api, resources):
    with resources.transaction() as uow:
        uow.connection.execute(text("ALTER TABLE api_keys RENAME COLUMN last_used_ip TO lost"))
    expect.ok(api.get(BUILT_IN_TYPE))
    with resources.transaction() as uow:
        uow.connection.execute(text("ALTER TABLE api_keys RENAME COLUMN lost TO last_used_ip"))
    assert last_use(resources, api.key_id) == (None, None)


def test_the_note_is_no_part_of_the_request(api, resources):
    """What a failed request has done is undone; that its key was used is not."""
    answer = api.post("/v1/api-keys", {"name": ""})
    expect.invalid(answer, "/name")
    assert last_use(resources, api.key_id).last_used_at is not None
