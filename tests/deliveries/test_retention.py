"""What is older than it is kept goes, by beat: but never what is still to be delivered, and nobody waits for it."""

import threading
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import delete, func, insert, select, text

from app.core.clock import now
from app.core.ids import first_id_at
from app.core.partitions import create, day_of
from app.core.unit_of_work import Resources
from app.deliveries import retention
from app.deliveries.models import (
    PARTITIONED_TABLES,
    Attempt,
    AttemptCount,
    Delivery,
    PendingDelivery,
    RenderedBody,
)
from app.deliveries.statistics import hour_of
from app.events.models import Event, EventExternalId, FanOut
from app.events.service import envelope
from tests.api import expect
from tests.api.steps import an_attempt, at_once
from tests.conftest import Api
from tests.flows.steps import make_endpoint, publish
from worker import runtime

pytestmark = pytest.mark.own_database

DAY = timedelta(days=1)
SECOND = timedelta(seconds=1)
DATED = (Event, EventExternalId, Delivery, RenderedBody, Attempt, AttemptCount)


@pytest.fixture
def apply(resources, monkeypatch) -> Callable[[], None]:
    """Run beat's task as a worker does."""
    from worker import maintenance

    monkeypatch.setattr(runtime, "resources", lambda: resources)
    monkeypatch.setattr(maintenance, "_PAUSE_SECONDS", 0)
    return maintenance.apply_retention


@pytest.fixture
def made(api) -> dict[str, Any]:
    """Give an endpoint."""
    return make_endpoint(api, "https://hooks.example.com")


def first_kept() -> datetime:
    """Give the start of the oldest day that is kept."""
    return day_of(now() - 30 * DAY)


def past(resources: Resources, *moments: datetime) -> None:
    """Have the partitions that days of the past would have, where there are partitions."""
    if not resources.database.is_sqlite:
        with resources.transaction() as uow:
            for table in PARTITIONED_TABLES:
                for moment in moments:
                    create(uow.connection, table, day_of(moment))


def old(resources: Resources, api: Api, made: dict[str, Any], moment: datetime, **fields: Any) -> str:
    """Make an event with all that belongs to it, as it was made then; gives its id."""
    event_id, delivery_id, attempt_id = (first_id_at(prefix, moment) for prefix in ("evt", "dlv", "att"))
    external_id = f"external-{event_id}"
    event = {
        "id": event_id,
        "workspace_id": api.workspace_id,
        "type": "contact.created",
        "external_id": external_id,
        "occurred_at": moment,
        "created_at": moment,
        "body": envelope(event_id, "contact.created", moment, b"{}"),
    }
    own = {"workspace_id": api.workspace_id, "external_id": external_id, "event_id": event_id}
    delivery = {
        "event_id": event_id,
        "endpoint_id": made["id"],
        "id": delivery_id,
        "workspace_id": api.workspace_id,
        "event_type": "contact.created",
        "status": "succeeded",
        **fields,
    }
    rendered = {"event_id": event_id, "endpoint_id": made["id"], "format": "slack"}
    attempt = an_attempt(api, attempt_id, delivery_id, event_id, made["id"])
    counted = {
        "hour": hour_of(moment),
        "endpoint_id": made["id"],
        "status": "success",
        "duration_bin": moment.second,
        "count": 1,
    }
    with resources.transaction() as uow:
        rows: tuple[dict[str, Any], ...] = (event, own, delivery, rendered, attempt, counted)
        for table, row in zip(DATED, rows, strict=True):
            uow.connection.execute(insert(table), row)
    return event_id


def wait_for(resources: Resources, made: dict[str, Any], event_id: str) -> None:
    """Have a delivery of an event be pending."""
    row = {"event_id": event_id, "endpoint_id": made["id"], "delivery_id": f"dlv{event_id[3:]}"}
    with resources.transaction() as uow:
        uow.connection.execute(insert(PendingDelivery), row)


def left(resources: Resources) -> dict[str, int]:
    """Count the rows of each table."""
    with resources.transaction(write=False) as uow:
        return {
            table.__tablename__: uow.connection.scalar(select(func.count()).select_from(table)) or 0
            for table in DATED
        }


def all_with(count: int) -> dict[str, int]:
    return {table.__tablename__: count for table in DATED}


def old_partitions(resources: Resources) -> list[str]:
    if resources.database.is_sqlite:
        return []
    query = text("SELECT relname FROM pg_class WHERE relispartition AND relkind = 'r' ORDER BY relname")
    today = f"{now():%Y%m%d}"
    with resources.transaction(write=False) as uow:
        return [name for name in uow.connection.scalars(query) if name[-8:] < today and name[-1].isdigit()]


@pytest.mark.parametrize("partitioned", [True, False])
def test_what_is_too_old_goes_and_the_rest_stays(api, resources, made, apply, partitioned):
    """Rows in the default partition too: of days that had no partition of their own."""
    limit = first_kept()
    if partitioned:
        past(resources, limit - DAY, limit)
    for moment in (limit - 5 * SECOND, limit - 3 * SECOND):
        old(resources, api, made, moment)
    kept = [old(resources, api, made, limit + number * SECOND) for number in (0, 5)]
    publish(api, "contact.created")
    before = left(resources)
    assert before == all_with(4) | {"events": 5}
    apply()
    # Counts are kept by the hour.
    assert left(resources) == all_with(2) | {"events": 3}
    assert {event["id"] for event in expect.ok(api.get("/v1/events"))["data"]} > set(kept)
    apply()
    assert left(resources) == all_with(2) | {"events": 3}


def test_whole_partitions_are_dropped(api, resources, made, apply):
    if resources.database.is_sqlite:
        pytest.skip("SQLite has no partitions")
    limit = first_kept()
    past(resources, limit - 2 * DAY, limit - DAY, limit, limit + DAY)
    old(resources, api, made, limit - DAY)
    apply()
    names = {table.partition(day) for table in PARTITIONED_TABLES for day in (limit, limit + DAY)}
    assert set(old_partitions(resources)) == names


def test_days_are_kept_as_the_setting_says(api, resources, made, apply, monkeypatch):
    moment = now() - 10 * DAY
    old(resources, api, made, moment)
    apply()
    assert left(resources) == all_with(1)
    monkeypatch.setattr(retention, "now", lambda: now() + 21 * DAY)
    apply()
    assert left(resources) == all_with(0)


@pytest.mark.parametrize("partitioned", [True, False])
def test_what_is_still_to_be_delivered_stays_with_its_event(api, resources, made, apply, partitioned):
    moment = first_kept() - DAY
    if partitioned:
        past(resources, moment)
    for number in range(5):
        old(resources, api, made, moment + number * SECOND)
    pending = old(resources, api, made, moment + 5 * SECOND, status="pending")
    wait_for(resources, made, pending)
    apply()
    stays = {"events": 1, "event_external_ids": 1, "deliveries": 1, "rendered_bodies": 1}
    assert left(resources) == {**all_with(0), **stays}
    assert expect.ok(api.get(f"/v1/events/{pending}"))["deliveries"][0]["status"] == "pending"
    with resources.transaction() as uow:
        uow.connection.execute(text("DELETE FROM pending_deliveries"))
    apply()
    assert left(resources) == all_with(0)
    assert old_partitions(resources) == []


@pytest.mark.parametrize("partitioned", [True, False])
def test_an_event_that_waits_for_its_fan_out_stays(api, resources, made, apply, partitioned):
    moment = first_kept() - DAY
    if partitioned:
        past(resources, moment)
    event_id = old(resources, api, made, moment)
    row = {"workspace_id": api.workspace_id, "event_id": event_id, "event_type": "contact.created"}
    with resources.transaction() as uow:
        uow.connection.execute(insert(FanOut), row)
    apply()
    assert left(resources)["events"] == 1
    assert api.get(f"/v1/events/{event_id}").status_code == 200


def test_a_day_that_stays_does_not_keep_the_days_after_it(api, resources, made, apply):
    if resources.database.is_sqlite:
        pytest.skip("SQLite has no partitions")
    limit = first_kept()
    past(resources, limit - 2 * DAY, limit - DAY)
    wait_for(resources, made, old(resources, api, made, limit - 2 * DAY))
    old(resources, api, made, limit - DAY)
    apply()
    stay = [table.partition(limit - 2 * DAY) for table in PARTITIONED_TABLES if table.name != "attempts"]
    assert old_partitions(resources) == sorted(stay)


def test_batches_go_on_behind_what_stays(api, resources, made, apply, monkeypatch):
    monkeypatch.setattr(retention, "BATCH_ROWS", 2)
    moment = first_kept() - DAY
    ids = [old(resources, api, made, moment + number * SECOND) for number in range(9)]
    for event_id in ids[:5]:
        wait_for(resources, made, event_id)
    apply()
    with resources.transaction(write=False) as uow:
        assert list(uow.connection.scalars(select(Event.id).order_by(Event.id))) == ids[:5]


def test_each_batch_is_a_transaction_of_its_own(api, resources, made, monkeypatch):
    monkeypatch.setattr(retention, "BATCH_ROWS", 2)
    limit = first_kept()
    for number in range(5):
        old(resources, api, made, limit - DAY + number * SECOND)
    rows = retention.OldRows("attempts", "id", first_id_at("att", limit), of_events=False)
    after, sizes = None, []
    while True:
        with resources.transaction() as uow:
            after = retention.delete_batch(uow, rows=rows, after=after)
        sizes.append(left(resources)["attempts"])
        if after is None:
            break
    assert sizes == [3, 1, 0, 0]


def test_a_callers_own_id_can_be_used_again(api, resources, made, apply):
    event_id = old(resources, api, made, first_kept() - DAY)
    draft = {"type": "contact.created", "data": {}, "external_id": f"external-{event_id}"}
    assert expect.ok(api.post("/v1/events", draft))["id"] == event_id
    apply()
    again = expect.ok(api.post("/v1/events", draft), 202)
    assert again["duplicate"] is False
    assert again["id"] != event_id


def test_a_callers_own_id_whose_event_is_gone_can_be_used_in_a_moment(api, resources, made, apply):
    """Between the two look-ups of a publish that is repeated after a month."""
    event_id = old(resources, api, made, first_kept() - DAY)
    draft = {"type": "contact.created", "data": {}, "external_id": f"external-{event_id}"}
    with resources.transaction() as uow:
        uow.connection.execute(delete(Event))
    answer = api.post("/v1/events", draft)
    expect.problem(answer, 503, "unavailable")
    assert answer.headers["Retry-After"] == "60"
    other = {"type": "contact.created", "data": {}}
    outcomes = expect.ok(api.post("/v1/events/batch", {"events": [draft, other]}), 202)
    assert (outcomes["accepted"], outcomes["rejected"]) == (1, 1)
    apply()
    expect.ok(api.post("/v1/events", draft), 202)


def test_two_at_once_are_harmless(api, resources, made, apply):
    limit = first_kept()
    past(resources, limit - DAY)
    for number in range(20):
        old(resources, api, made, limit - DAY + number * SECOND)
        old(resources, api, made, limit - 3 * DAY + number * SECOND)
    at_once(apply, apply, apply)
    apply()
    assert left(resources) == all_with(0)
    assert old_partitions(resources) == []


def test_publishing_goes_on_while_a_reader_holds_up_a_partition(api, resources, made, apply):
    if resources.database.is_sqlite:
        pytest.skip("SQLite has no partitions")
    moment = first_kept() - DAY
    past(resources, moment)
    event_id = old(resources, api, made, moment)
    took = []
    with resources.database.bind(write=True).connect() as reader:
        reader.execute(text("SELECT count(*) FROM events"))
        reader.execute(text("SELECT count(*) FROM deliveries"))
        # Should publishing have to wait for the reader, it does not wait for ever.
        giving_up = threading.Timer(10, reader.rollback)
        giving_up.start()
        thread = threading.Thread(target=apply)
        thread.start()
        while thread.is_alive():
            started = time.monotonic()
            publish(api, "contact.created")
            took.append(time.monotonic() - started)
        thread.join()
        giving_up.cancel()
        # Statistics and the log, which nobody reads, are gone; what is read stays until the next time.
        assert left(resources) == all_with(0) | {"events": 1 + len(took), "deliveries": 1}
        assert api.get(f"/v1/events/{event_id}").status_code == 200
    assert len(took) > 1
    assert max(took) < 2
    apply()
    assert left(resources) == all_with(0) | {"events": len(took)}


@pytest.mark.parametrize("partitioned", [True, False])
def test_an_event_that_is_being_sent_again_meanwhile_stays(api, resources, made, apply, partitioned):
    """Whoever asked for it first gets it: a pending delivery without its event could never be sent."""
    if resources.database.is_sqlite:
        pytest.skip("SQLite has one writer at a time")
    moment = first_kept() - DAY
    if partitioned:
        past(resources, moment)
    event_id = old(resources, api, made, moment)
    row = {"event_id": event_id, "endpoint_id": made["id"], "delivery_id": f"dlv{event_id[3:]}"}
    with resources.transaction() as uow:
        uow.connection.execute(select(Event.id).where(Event.id == event_id).with_for_update(read=True))
        uow.connection.execute(insert(PendingDelivery), row)
        thread = threading.Thread(target=apply)
        thread.start()
        thread.join(20)
        assert not thread.is_alive()
    assert left(resources)["events"] == 1
    apply()
    assert left(resources)["events"] == 1


def test_a_partition_that_something_came_to_wait_for_is_not_dropped(api, resources, made):
    if resources.database.is_sqlite:
        pytest.skip("SQLite has no partitions")
    moment = first_kept() - DAY
    past(resources, moment)
    event_id = old(resources, api, made, moment)
    with resources.transaction(write=False) as uow:
        found = retention.list_partitions(uow, limit=first_kept())
    assert len(found) == len(PARTITIONED_TABLES)
    wait_for(resources, made, event_id)
    for table, day in found:
        with resources.transaction() as uow:
            assert retention.drop_partition(uow, of=table, day=day) == (table.name == "attempts")
    assert left(resources)["events"] == 1


def test_writers_get_in_between_the_batches_on_sqlite(api, resources, made, monkeypatch):
    if not resources.database.is_sqlite:
        pytest.skip("PostgreSQL's writers do not wait for each other")
    from worker import maintenance

    monkeypatch.setattr(runtime, "resources", lambda: resources)
    monkeypatch.setattr(retention, "BATCH_ROWS", 1)
    for number in range(4):
        old(resources, api, made, first_kept() - DAY + number * SECOND)
    thread = threading.Thread(target=maintenance.apply_retention)
    thread.start()
    took = []
    while thread.is_alive():
        started = time.monotonic()
        publish(api, "contact.created")
        took.append(time.monotonic() - started)
    thread.join()
    assert len(took) > 5
    assert max(took) < 1


def test_beat_makes_the_partitions_of_the_days_to_come(resources, apply, monkeypatch):
    if resources.database.is_sqlite:
        pytest.skip("SQLite has no partitions")
    later = now() + 10 * DAY
    monkeypatch.setattr(retention, "now", lambda: later)
    apply()
    with resources.transaction(write=False) as uow:
        names = set(uow.connection.scalars(text("SELECT relname FROM pg_class WHERE relispartition")))
    for table in PARTITIONED_TABLES:
        assert {table.partition(later + number * DAY) for number in range(4)} <= names


def test_partitions_that_could_not_be_made_are_told_of(api, resources, apply, monkeypatch, capsys):
    if resources.database.is_sqlite:
        pytest.skip("SQLite has no partitions")
    later = now() + 10 * DAY
    old(resources, api, make_endpoint(api, "https://hooks.example.com"), later)
    monkeypatch.setattr(retention, "now", lambda: later)
    apply()
    said = capsys.readouterr().out
    assert "retention.partitions_missing" in said
    assert f"events_{later:%Y%m%d}" in said
