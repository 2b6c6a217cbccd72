"""What beat does about keys that expire: tells of it a week and a day before and when it is over, once each."""

from datetime import datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import select

from app.api_keys import authentication, expiry, repository
from app.api_keys.models import ApiKey
from app.audit.models import AuditEntry
from app.core import json_body
from app.core.clock import now
from app.core.unit_of_work import Resources
from app.events import service as events
from app.events.models import Event
from tests import receivers
from tests.api import expect
from tests.api.steps import age_key, another_key, at_once, audited, let_pass, record_statements, with_key
from tests.flows.steps import make_endpoint
from worker import runtime

DAY = timedelta(days=1)
MINUTE = timedelta(minutes=1)
Entry = tuple[str, list[str]]
CREATED: Entry = ("api_key.created", [])
EXPIRING: Entry = ("api_key.expiring", [])
EXPIRED: Entry = ("api_key.expired", [])


@pytest.fixture
def expire(resources, monkeypatch):
    """Run beat's task as a worker does; gives how many notices there were."""
    from worker import maintenance

    monkeypatch.setattr(runtime, "resources", lambda: resources)
    return maintenance.expire_api_keys


@pytest.fixture
def a_key(api, resources):
    """Make a key that expires in some days; gives its id."""

    def make(days: int) -> str:
        return another_key(resources, api, expires_in_days=days)[0]

    return make


def published(resources: Resources) -> list[tuple[str, Any]]:
    with resources.transaction(write=False) as uow:
        rows = uow.session.scalars(select(Event).order_by(Event.id)).all()
    return [(row.type, json_body.read_stored(row.body)["data"]) for row in rows]


def test_a_key_is_told_of_a_week_before_a_day_before_and_when_it_is_over(api, resources, a_key, expire):
    key_id = a_key(30)
    told = []
    for passed in (23 * DAY - MINUTE, MINUTE, 6 * DAY - MINUTE, MINUTE, DAY - MINUTE, MINUTE, 300 * DAY):
        let_pass(resources, key_id, passed)
        told.append((expire(), expire()))
    assert told == [(0, 0), (1, 0), (0, 0), (1, 0), (0, 0), (1, 0), (0, 0)]
    assert audited(resources, key_id) == [CREATED, EXPIRING, EXPIRING, EXPIRED]
    assert [(name, data.get("days_left")) for name, data in published(resources)] == [
        ("api_key.expiring", 7),
        ("api_key.expiring", 1),
        ("api_key.expired", None),
    ]


def test_the_event_says_which_key_and_when(api, resources, a_key, expire):
    key_id = a_key(5)
    age_key(resources, key_id, last_used_at=now())
    let_pass(resources, key_id, 4 * DAY)
    expire()
    key = expect.ok(api.get(f"/v1/api-keys/{key_id}"))
    names = ("name", "prefix", "created_at", "last_used_at", "expires_at")
    told = {"api_key_id": key_id, **{name: key[name] for name in names}}
    let_pass(resources, key_id, DAY)
    expire()
    (_, expiring), (_, expired) = published(resources)
    assert expiring == {**told, "days_left": 1}
    assert expired.keys() == told.keys()
    assert expired["expires_at"] < now().isoformat()


def test_a_key_that_has_expired_is_marked(api, resources, a_key, expire):
    key_id = a_key(1)
    let_pass(resources, key_id, DAY)
    expire()
    with resources.transaction(write=False) as uow:
        row = uow.session.get_one(ApiKey, key_id)
    assert abs(row.expired_at - now()) < timedelta(seconds=5)
    assert row.next_notice_at is None


def test_what_was_missed_is_not_told_afterwards(resources, a_key, expire):
    for passed, told in (
        (timedelta(days=29, hours=12), [("api_key.expiring", 1)]),  # both notices were missed
        (
            timedelta(days=25, hours=12),
            [("api_key.expiring", 5)],
        ),  # the first is late, and says how late it is
        (40 * DAY, [("api_key.expired", None)]),  # all was missed
    ):
        key_id = a_key(30)
        let_pass(resources, key_id, passed)
        expire()
        told_of = [
            (name, data.get("days_left"))
            for name, data in published(resources)
            if data["api_key_id"] == key_id
        ]
        assert told_of == told


def test_after_a_late_notice_the_others_come_in_time(resources, a_key, expire):
    key_id = a_key(30)
    for passed in (timedelta(days=25), 4 * DAY, DAY):
        let_pass(resources, key_id, passed)
        expire()
        expire()
    assert audited(resources, key_id) == [CREATED, EXPIRING, EXPIRING, EXPIRED]


def test_a_key_made_for_a_few_days_gets_no_notice_whose_moment_was_before_it(resources, a_key, expire):
    for days, notices in ((1, []), (2, [EXPIRING]), (7, [EXPIRING]), (8, [EXPIRING, EXPIRING])):
        key_id = a_key(days)
        assert expire() == 0
        for _ in range(days):
            let_pass(resources, key_id, DAY)
            expire()
        assert audited(resources, key_id) == [CREATED, *notices, EXPIRED]


def test_a_key_that_never_expires_and_one_that_is_revoked_get_none(api, resources, a_key, expire):
    key_id = a_key(30)
    let_pass(resources, key_id, 22 * DAY)
    api.post(f"/v1/api-keys/{key_id}/revoke")
    for passed in (DAY, 6 * DAY, DAY, DAY):
        let_pass(resources, key_id, passed)
        let_pass(resources, api.key_id, 1000 * DAY)
        assert expire() == 0
    assert published(resources) == []
    assert audited(resources, key_id) == [CREATED, ("api_key.revoked", [])]


def test_an_overlap_that_ends_is_told_of_too(api, resources, a_key, expire):
    key_id = a_key(30)
    api.post(f"/v1/api-keys/{key_id}/rotate", {"overlap_seconds": 3 * 24 * 3600})
    assert expire() == 0
    for _ in range(3):
        let_pass(resources, key_id, DAY)
        expire()
    rotated = ("api_key.rotated", ["expires_at"])
    assert audited(resources, key_id) == [CREATED, rotated, EXPIRING, EXPIRED]
    api.post(f"/v1/api-keys/{api.key_id}/rotate", {"overlap_seconds": 0})
    assert expire() == 1


def test_beat_is_who_did_it(resources, a_key, expire):
    key_id = a_key(1)
    let_pass(resources, key_id, DAY)
    expire()
    with resources.transaction(write=False) as uow:
        entry = uow.session.scalars(select(AuditEntry).where(AuditEntry.action == "api_key.expired")).one()
    assert (entry.actor_type, entry.actor_id, entry.address) == ("beat", None, None)
    assert entry.resource_id == key_id


def test_several_at_once_tell_each_key_once(api, resources, a_key, expire, monkeypatch):
    monkeypatch.setattr(expiry, "NOTICES_PER_TRANSACTION", 3)
    key_ids = [a_key(1) for _ in range(20)]
    for key_id in key_ids:
        let_pass(resources, key_id, DAY)
    assert sum(at_once(*[expire] * 4)) == 20
    assert sorted(data["api_key_id"] for _, data in published(resources)) == sorted(key_ids)
    assert all(audited(resources, key_id) == [CREATED, EXPIRED] for key_id in key_ids)


def test_whoever_holds_a_key_holds_nobody_up(api, resources, a_key, expire):
    """A second beat takes what the first has not; on SQLite the first one has everything."""
    first, second = a_key(1), a_key(1)
    for key_id in (first, second):
        let_pass(resources, key_id, DAY)
    if resources.database.is_sqlite:
        return
    with resources.transaction() as uow:
        uow.session.execute(select(ApiKey).where(ApiKey.id == first).with_for_update()).all()
        assert expire() == 1
    assert expire() == 1
    assert [data["api_key_id"] for _, data in published(resources)] == [second, first]


def test_a_run_that_fails_has_told_nothing(resources, a_key, expire, monkeypatch):
    def fail(*_args, **_kwargs):
        raise ZeroDivisionError

    key_id = a_key(1)
    let_pass(resources, key_id, DAY)
    with monkeypatch.context() as patch:
        patch.setattr(events, "publish", fail)
        with pytest.raises(ZeroDivisionError):
            expire()
    assert audited(resources, key_id) == [CREATED]
    assert expire() == 1
    assert audited(resources, key_id) == [CREATED, EXPIRED]


def test_each_workspace_is_told_of_its_own(api, new_api, resources, expire):
    other = new_api()
    for one in (api, other):
        key_id, _ = another_key(resources, one, expires_in_days=1)
        let_pass(resources, key_id, DAY)
    expire()
    for one in (api, other):
        (event,) = expect.ok(one.get("/v1/events"))["data"]
        (key,) = expect.ok(one.get("/v1/api-keys?status=expired"))["data"]
        assert expect.ok(one.get(f"/v1/events/{event['id']}"))["data"]["api_key_id"] == key["id"]


def test_endpoints_that_want_to_know_get_it(api, resources, a_key, expire, drain):
    with receivers.ok() as receiver:
        make_endpoint(api, receiver, events=["api_key.*"])
        let_pass(resources, a_key(1), DAY)
        expire()
        drain()
        (request,) = receiver.requests
    assert json_body.read_stored(request.body)["type"] == "api_key.expired"


def test_with_nothing_due_it_writes_nothing(resources, a_key, expire):
    a_key(30)
    statements = record_statements(resources)
    assert expire() == 0
    assert not [statement for statement in statements if not statement.startswith("SELECT")]


def test_from_the_instant_of_its_end_a_key_is_refused_beat_or_not(api, resources):
    """By the database's clock, asked before and after each request."""
    key_id, key = another_key(resources, api)

    def clock() -> datetime:
        with resources.transaction(write=False) as uow:
            return repository.database_time(uow.session)

    ends_at = clock() + timedelta(seconds=1)
    age_key(resources, key_id, expires_at=ends_at)
    seen = set()
    while 401 not in seen:
        before = clock()
        status = with_key(api, key).get("/v1/event-types/message.read").status_code
        after = clock()
        seen.add(status)
        if after < ends_at:
            assert status == 200
        if before >= ends_at:
            assert status == 401
    assert seen == {200, 401}


def test_the_instant_itself_is_too_late(api, resources):
    key_id, key = another_key(resources, api)
    with resources.transaction() as uow:
        # On PostgreSQL a transaction has one time; on SQLite the clock has gone on.
        moment = repository.database_time(uow.session)
        uow.session.get_one(ApiKey, key_id).expires_at = moment
        uow.session.flush()
        with pytest.raises(authentication.ApiKeyExpired):
            authentication.authenticate(uow, key=key, address="127.0.0.1")
