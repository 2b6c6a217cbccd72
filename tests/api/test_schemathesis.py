"""Whatever comes in, by the document's rules or against them: what goes out is what the document says.

On SQLite only: which database it is makes no difference to shapes, and test_events.py and others ask both.
"""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import schemathesis
from hypothesis import strategies
from schemathesis import GenerationMode
from schemathesis.errors import FailureGroup
from schemathesis.specs.openapi import checks
from sqlalchemy import insert

from app.api_keys import service as api_keys
from app.core.clock import now
from app.core.ids import new_id
from app.core.unit_of_work import Resources, open_resources
from app.deliveries import trial
from app.deliveries.models import Attempt, Delivery
from app.events.schemas import EventList
from app.web import create_app
from app.workspaces import service as workspaces
from config.settings import load_settings
from config.wire import TaskName
from tests.api.routes import KEYED
from tests.api.steps import a_delivery, an_attempt
from tests.conftest import Api, RecordingDoorbell
from worker.local_queue import LocalQueue
from worker.request import InFlight, conclude, refuse

EXCLUDED = [
    # A document cannot say which types there are, which URLs are public, and that two fields exclude each other.
    checks.positive_data_acceptance,
    # Unknown query parameters are ignored; a batch tells faults event by event; our key replaces a wrong header.
    checks.negative_data_rejection,
    # test_authentication.py does it for every route.
    checks.ignored_auth,
    # GET /v1/events/batch is GET /v1/events/{event_id}, of which the document knows nothing.
    checks.allow_header_conformance,
    checks.unsupported_method,
]
BOTH = (GenerationMode.POSITIVE, GenerationMode.NEGATIVE)


@dataclass
class Worker(RecordingDoorbell):
    """A doorbell that ends tests as it is rung: without a worker each would wait in vain."""

    resources: Resources | None = None

    def ring(self, task: TaskName, *, countdown: float = 0) -> None:
        """Send nothing; the attempts failed."""
        super().ring(task, countdown=countdown)
        if task is TaskName.DELIVERIES_SEND_TESTS and self.resources:
            with self.resources.transaction() as uow:
                for test in trial.claim(uow, limit=100):
                    outcome = refuse(LocalQueue("", None), test.delivery, test.target, now())
                    assert isinstance(outcome.tag, InFlight)
                    trial.record(uow, attempts=[conclude(outcome, outcome.tag)[0]])


@pytest.fixture
def api(sqlite_template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Api]:
    shutil.copy(sqlite_template, tmp_path / "test.db")
    monkeypatch.setenv("DATABASE_URL", f"sqlite:///{tmp_path / 'test.db'}")
    worker = Worker()
    worker.resources = resources = open_resources(load_settings(), doorbell=worker)
    with resources.transaction() as uow:
        workspace = workspaces.create(uow, name="Test")
        row, key = api_keys.create(uow, workspace_id=workspace.id, name="test")
    yield Api(create_app(resources).test_client(), key, workspace.id, row.id)
    resources.close()


@pytest.fixture
def ids(api: Api) -> dict[str, str]:
    """Give the parameters of paths that lead somewhere."""
    endpoint: Any = api.post("/v1/endpoints", {"url": "https://hooks.example.com/", "events": ["*"]}).json
    event: Any = api.post("/v1/events", {"type": "contact.created", "data": {}}).json
    key: Any = api.post("/v1/api-keys", {"name": "CI"}).json
    api.call("PUT", "/v1/event-types/order.created", {"schema": {"properties": {"a": {"type": "string"}}}})
    found = {
        "endpoint_id": endpoint["id"],
        "event_id": event["id"],
        "key_id": key["id"],
        "name": "order.created",
    }
    delivery_id, attempt_id = new_id("dlv"), new_id("att")
    with api.client.application.extensions["botbat"].transaction() as uow:
        uow.session.execute(insert(Delivery), a_delivery(api, delivery_id, event["id"]))
        attempt = an_attempt(api, attempt_id, delivery_id, event["id"], endpoint["id"])
        uow.session.execute(insert(Attempt), attempt)
    span = {"since": (now() - timedelta(days=1)).isoformat(), "dry_run": True}
    recovery: Any = api.post(f"/v1/endpoints/{endpoint['id']}/recover", span).json
    return {
        **found,
        "delivery_id": delivery_id,
        "attempt_id": attempt_id,
        "recovery_id": recovery["id"],
    }


@pytest.mark.parametrize(("method", "rule"), KEYED, ids=str)
def test_answers_are_as_documented(api, ids, method, rule):
    schema = schemathesis.openapi.from_wsgi("/openapi.json", api.client.application)
    operation = schema[rule.replace("<", "{").replace(">", "}")][method]
    headers = {"Authorization": f"Bearer {api.key}"}

    @hypothesis.given(strategies.one_of([operation.as_strategy(mode) for mode in BOTH]))
    @hypothesis.settings(
        max_examples=40,
        deadline=None,
        derandomize=True,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    def check(case: Any) -> None:
        case.call_and_validate(headers=headers, excluded_checks=EXCLUDED)
        if case.path_parameters:
            # Hardly any id that is made up leads anywhere.
            case.path_parameters = {name: ids[name] for name in case.path_parameters}
            case.call_and_validate(headers=headers, excluded_checks=EXCLUDED)

    check()


def test_an_answer_that_the_document_does_not_know_is_found(api, monkeypatch):
    monkeypatch.setattr(EventList, "dump", lambda *_args, **_kwargs: {"data": [], "next_cursor": 5})
    schema = schemathesis.openapi.from_wsgi("/openapi.json", api.client.application)
    with pytest.raises(FailureGroup, match="Response violates schema"):
        schema["/v1/events"]["GET"].Case().call_and_validate(headers={"Authorization": f"Bearer {api.key}"})
