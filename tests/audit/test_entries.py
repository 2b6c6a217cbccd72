"""Entries of the audit log: beside each change, never without it, and the database itself keeps them as they are."""

from typing import Any

import pytest
from sqlalchemy import delete, event, insert, select, text, update
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from app.audit import repository, service
from app.audit.models import ID_PREFIX, AuditEntry
from app.core.actor import Actor
from app.core.clock import now
from app.core.ids import is_id, new_id
from app.core.pagination import PageRequest
from app.core.unit_of_work import Resources
from app.workspaces import service as workspaces

WORKSPACE = "ws_01kjpx8tcmej9svxw1fyydhpy2"


def record(resources: Resources, actor: Actor | None = None, **fields: Any) -> None:
    with resources.transaction() as uow:
        if actor:
            uow.actor = actor
        service.record(
            uow,
            **{"workspace_id": WORKSPACE, "action": "endpoint.updated", "resource_id": "ep_1", **fields},
        )


def entries(resources: Resources, workspace_id: str = WORKSPACE) -> list[dict[str, Any]]:
    with resources.transaction() as uow:
        return list(service.list_entries(uow, workspace_id=workspace_id, page=PageRequest(100)).items)


def test_an_entry_says_who_did_what_to_which_when_and_from_where(resources):
    before = now()
    actor = Actor("api_key", "key_1", "203.0.113.7", "the-request")
    record(resources, actor, changed=["url", "headers"])
    (entry,) = entries(resources)
    assert is_id(entry.pop("id"), ID_PREFIX)
    assert before <= entry.pop("created_at") <= now()
    assert entry == {
        "action": "endpoint.updated",
        "actor": {"type": "api_key", "id": "key_1"},
        "resource": {"type": "endpoint", "id": "ep_1"},
        "changed": ["url", "headers"],
        "address": "203.0.113.7",
        "request_id": "the-request",
    }


def test_who_did_not_say_who_they_are_is_the_system(resources):
    record(resources)
    (entry,) = entries(resources)
    assert entry["actor"] == {"type": "system", "id": None}
    assert (entry["address"], entry["request_id"], entry["changed"]) == (None, None, [])


def test_the_resources_type_is_the_actions_noun(resources):
    record(resources, action="event_type.created", resource_id="order.created")
    (entry,) = entries(resources)
    assert entry["resource"] == {"type": "event_type", "id": "order.created"}


def test_a_workspace_is_recorded_from_its_making_on(resources):
    with resources.transaction() as uow:
        uow.actor = Actor("cli")
        workspace = workspaces.create(uow, name="Acme")
    (entry,) = entries(resources, workspace.id)
    assert entry["action"] == "workspace.created"
    assert entry["resource"] == {"type": "workspace", "id": workspace.id}
    assert entry["actor"] == {"type": "cli", "id": None}


def test_what_is_rolled_back_leaves_no_entry(resources):
    with resources.transaction() as uow:
        workspace = workspaces.create(uow, name="Acme")
        uow.rollback()
    assert entries(resources, workspace.id) == []


@pytest.mark.parametrize(
    "statement",
    [
        update(AuditEntry).values(action="nothing.happened"),
        update(AuditEntry).values(created_at=now()).where(AuditEntry.workspace_id == WORKSPACE),
        delete(AuditEntry),
        delete(AuditEntry).where(AuditEntry.workspace_id == WORKSPACE),
        text("TRUNCATE audit_entries"),
        text("TRUNCATE audit_entries, workspaces CASCADE"),
    ],
    ids=lambda statement: " ".join(str(statement).split()[:8]),
)
def test_the_database_refuses_to_change_or_delete_an_entry(resources, statement):
    if resources.database.is_sqlite and str(statement).startswith("TRUNCATE"):
        pytest.skip("SQLite has no TRUNCATE")
    record(resources)
    before = entries(resources)
    with pytest.raises(DBAPIError, match="audit entries are append-only"), resources.transaction() as uow:
        uow.connection.execute(statement)
    assert entries(resources) == before


def test_what_differs_is_told_as_json_sees_it():
    before = {"url": "a", "filter": {"value": 1}, "policy": {"count": 1}, "created_at": now()}
    assert service.changed_fields(before, {"url": "a", "policy": {"count": 1}}) == []
    assert service.changed_fields(before, {"url": "b", "filter": {"value": 1}}) == ["url"]
    assert service.changed_fields(before, {"url": "b", "filter": {"value": True}}) == ["filter", "url"]
    assert service.changed_fields(before, {"policy": {"count": 1.0}}) == ["policy"]
    assert service.changed_fields(before, {"url": None}) == ["url"]
    assert service.changed_fields(before, {}) == []


@pytest.fixture
def many(resources: Resources) -> str:
    """Fill the log of a hundred workspaces; gives an entry with an actor, an action and a resource of its own."""
    rows: list[dict[str, Any]] = [
        {
            "id": new_id(ID_PREFIX),
            "workspace_id": f"ws_{index % 100}",
            "action": "endpoint.updated",
            "actor_type": "api_key",
            "actor_id": f"key_{index % 7}",
            "resource_id": f"ep_{index % 11}",
            "changed": ["url"],
            "created_at": now(),
        }
        for index in range(20_000)
    ]
    rare = {"action": "endpoint.deleted", "actor_type": "user", "actor_id": "usr_1", "resource_id": "ep_rare"}
    with resources.transaction() as uow:
        uow.connection.execute(insert(AuditEntry), [rows[0] | rare, *rows[1:]])
        uow.connection.execute(text("ANALYZE audit_entries"))
    return str(rows[0]["id"])


@pytest.mark.parametrize(
    ("filters", "index"),
    [
        ({}, "ix_audit_entries_workspace_id_id"),
        ({"actor": "user"}, "ix_audit_entries_workspace_id_actor_type_id"),
        ({"actor": "usr_1"}, "ix_audit_entries_workspace_id_actor_id_id"),
        ({"action": "endpoint.deleted"}, "ix_audit_entries_workspace_id_action_id"),
        ({"resource": "ep_rare"}, "ix_audit_entries_workspace_id_resource_id_id"),
    ],
    ids=str,
)
def test_each_filter_has_its_index_and_nothing_is_sorted(resources, many, filters, index):
    """Of thousands of entries a page reads those that it shows, so that millions would make no difference."""
    statements: list[tuple[str, Any]] = []
    event.listen(
        resources.database.engine,
        "before_cursor_execute",
        lambda *call: statements.append((call[2], call[3])),
    )
    asked = dict.fromkeys(("actor", "action", "resource", "since", "until")) | filters
    with resources.transaction(write=False) as uow:
        rows = repository.list_page(uow.session, "ws_0", PageRequest(25), **asked)
        assert len(rows) == (1 if filters else 26)
        assert not filters or rows[0].id == many
        query, values = statements[-1]
        assert "audit_entries" in query
        explain = "EXPLAIN QUERY PLAN " if uow.is_sqlite else "EXPLAIN "
        plan = str(uow.connection.exec_driver_sql(explain + query, values).all())
    assert f"{index} " in plan.replace("'", " ")
    for costly in ("Sort", "TEMP B-TREE", "Seq Scan"):
        assert costly not in plan, plan


def test_entries_are_rows_of_their_own_that_outlive_what_they_tell_of(resources):
    """A foreign key would hold the resource back, or take the entry along."""
    record(resources, workspace_id="ws_gone", resource_id="ep_gone")
    assert not AuditEntry.__table__.foreign_keys
    with Session(resources.database.engine) as session:
        assert session.scalars(select(AuditEntry.workspace_id)).all() == ["ws_gone"]
