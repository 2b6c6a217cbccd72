"""What `up` makes in an empty database: a workspace, a key, an endpoint to the receiver, deliveries."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from app.api_keys import service as api_keys
from app.core.actor import Actor
from app.core.unit_of_work import open_resources
from app.development.api import Api, ApiRefused
from app.events.catalogue import OPERATIONAL
from app.workspaces import service as workspaces
from config.settings import Settings, write_private

NAME = "Development"
_DELIVERED_WITHIN_SECONDS = 30
_POLL_SECONDS = 0.1
_MAX_PAGE = 100


def make_workspace(settings: Settings) -> tuple[str, str]:
    """Make the workspace and give its id and a key."""
    resources = open_resources(settings)
    try:
        with resources.transaction() as uow:
            uow.actor = Actor("cli")
            workspace = workspaces.create(uow, name=NAME)
            _row, key = api_keys.create(uow, workspace_id=workspace.id, name=NAME)
            return workspace.id, key
    finally:
        resources.close()


def ensure_endpoint(api: Api, endpoint_id: str | None, url: str) -> str:
    """Give the endpoint that delivers to `url`: the known one, or a new one where somebody deleted it."""
    if endpoint_id:
        try:
            if api.get(f"/v1/endpoints/{endpoint_id}")["url"] != url:
                api.patch(f"/v1/endpoints/{endpoint_id}", {"url": url})
        except ApiRefused as refused:
            if refused.status != 404:  # noqa: PLR2004 - HTTP
                raise
        else:
            return endpoint_id
    endpoint = api.post(
        "/v1/endpoints", {"url": url, "events": ["*"], "description": "The built-in receiver"}
    )
    return str(endpoint["id"])


def tell_receiver(
    api: Api, origin: str, secrets_file: Path, told: dict[str, str] | None = None
) -> dict[str, str]:
    """Give the receiver the secrets of the endpoints that deliver to it, the newest hundred.

    `told` is what an earlier call gave: when nothing has changed since, nothing is done.
    """
    endpoints = {
        endpoint["id"]: endpoint["updated_at"]
        for endpoint in api.get(f"/v1/endpoints?limit={_MAX_PAGE}")["data"]
        if endpoint["url"].startswith(f"{origin}/")
    }
    if endpoints != told:
        secrets = {
            endpoint_id: api.get(f"/v1/endpoints/{endpoint_id}/secret")["signing_secret"]
            for endpoint_id in endpoints
        }
        write_private(secrets_file, json.dumps(secrets))
    return endpoints


def publish_examples(api: Api) -> set[str]:
    """Publish the example of each built-in event type of the platform and give the events' ids."""
    types = api.get(f"/v1/event-types?limit={_MAX_PAGE}")["data"]
    return {
        api.post("/v1/events", {"type": entry["name"], "data": entry["example"]})["id"]
        for entry in types
        if entry["built_in"] and entry["name"] not in OPERATIONAL
    }


def follow(
    api: Api,
    endpoint_id: str,
    events: set[str],
    tell: Callable[[dict[str, Any]], None],
    pause: Callable[[float], None],
) -> set[str]:
    """Tell of each event's first attempt as it comes into the delivery log; give those that did not come."""
    deadline = time.monotonic() + _DELIVERED_WITHIN_SECONDS
    waiting = set(events)
    while waiting and time.monotonic() < deadline:
        for attempt in reversed(api.get(f"/v1/endpoints/{endpoint_id}/attempts?limit={_MAX_PAGE}")["data"]):
            if attempt["event_id"] in waiting:
                waiting.discard(attempt["event_id"])
                tell(attempt)
        pause(_POLL_SECONDS)
    return waiting
