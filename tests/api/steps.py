"""What several tests of the API do."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import psycopg
from sqlalchemy import event, select, update

from app.api_keys import service as api_keys
from app.api_keys.models import ApiKey
from app.audit.models import AuditEntry
from app.core.clock import now
from app.core.unit_of_work import Resources
from tests.conftest import Api


def another_key(resources: Resources, api: Api, **fields: Any) -> tuple[str, str]:
    """Make a further key of the workspace; gives its id and the key."""
    with resources.transaction() as uow:
        row, key = api_keys.create(uow, workspace_id=api.workspace_id, name="other", **fields)
    return row.id, key


def with_key(api: Api, key: str, key_id: str = "") -> Api:
    """Give the API as another key of the workspace sees it."""
    return Api(api.client, key, api.workspace_id, key_id)


def twin(api: Api) -> Api:
    """Give the same key's API for another thread."""
    return Api(api.client.application.test_client(), api.key, api.workspace_id, api.key_id)


def age_key(resources: Resources, key_id: str, **columns: Any) -> None:
    """Change columns of a key as only time can."""
    with resources.transaction() as uow:
        uow.session.execute(update(ApiKey).where(ApiKey.id == key_id).values(**columns))


def record_statements(resources: Resources) -> list[str]:
    """Give a list to which every further SQL statement of the process is added."""
    statements: list[str] = []
    engine = resources.database.engine
    if resources.database.is_sqlite:

        def note(_connection: Any, _cursor: Any, statement: str, *_rest: Any) -> None:
            if not statement.startswith("BEGIN"):  # which SQLite's driver is told in words
                statements.append(statement)

        event.listen(engine, "before_cursor_execute", note)
        return statements

    class Recording(psycopg.Cursor[Any]):
        """In the driver, since the hot paths go past SQLAlchemy."""

        def execute(self, query: Any, *args: Any, **kwargs: Any) -> Any:
            statements.append(query)
            return super().execute(query, *args, **kwargs)

    engine.dispose()
    event.listen(engine, "connect", lambda driver, _record: setattr(driver, "cursor_factory", Recording))
    with engine.connect():
        statements.clear()  # what was asked for being connected
    return statements


def a_delivery(api: Api, delivery_id: str, event_id: str) -> dict[str, Any]:
    """Give a row of a pending delivery to an endpoint that is gone."""
    return {
        "id": delivery_id,
        "workspace_id": api.workspace_id,
        "event_id": event_id,
        "event_type": "contact.created",
        "endpoint_id": "ep_gone",
    }


def an_attempt(
    api: Api, attempt_id: str, delivery_id: str, event_id: str, endpoint_id: str
) -> dict[str, Any]:
    """Give a row of an attempt that got no answer."""
    return {
        "id": attempt_id,
        "workspace_id": api.workspace_id,
        "delivery_id": delivery_id,
        "event_id": event_id,
        "event_type": "contact.created",
        "endpoint_id": endpoint_id,
        "number": 1,
        "trigger": "auto",
        "status": "failed",
        "duration_ms": 1,
        "error_code": "timeout",
        "started_at": now(),
        "url": "https://hooks.example.com/",
        "request_headers": "[]",
        "response_headers": "[]",
        "response_body": b"",
        "response_truncated": False,
    }


def let_pass(resources: Resources, key_id: str, time: timedelta) -> None:
    """Have a key be older by `time`, and all that is to happen to it nearer."""
    names = ("created_at", "expires_at", "next_notice_at", "last_used_at")
    with resources.transaction() as uow:
        row = uow.session.get_one(ApiKey, key_id)
        moments = {name: getattr(row, name) for name in names}
    age_key(resources, key_id, **{name: moment - time for name, moment in moments.items() if moment})


def at_once(*calls: Callable[[], Any]) -> list[Any]:
    """Make calls at the same time, each in a thread of its own; gives their results in order."""
    start = threading.Barrier(len(calls))

    def run(call: Callable[[], Any]) -> Any:
        start.wait()
        return call()

    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(run, calls))


def audited(resources: Resources, key_id: str) -> list[tuple[str, list[str]]]:
    """Give what the audit log tells of a key, oldest first: actions, and the names of the fields that changed."""
    with resources.transaction(write=False) as uow:
        query = select(AuditEntry.action, AuditEntry.changed).where(AuditEntry.resource_id == key_id)
        return [(action, changed) for action, changed in uow.session.execute(query.order_by(AuditEntry.id))]
