"""HTTP routes of events and event types."""

from typing import Any

from app.core.errors import AppError
from app.core.pagination import page_request
from app.core.problems import problem
from app.events import service
from app.events.models import ID_PREFIX
from app.events.schemas import (
    BatchAnswer,
    BatchRequest,
    EventList,
    EventQuery,
    EventReceipt,
    EventTypeList,
    EventTypeObject,
    EventTypeRequest,
    PublishRequest,
    receipt_fields,
)
from app.events.service import MAX_EVENT_BYTES, Draft, Receipt
from app.rest import context
from app.rest.blueprint import ApiBlueprint
from app.rest.schemas import EmptyBody, PageQuery

events = ApiBlueprint("events", "/v1/events", "Facts that are published once and delivered to endpoints.")
event_types = ApiBlueprint("event_types", "/v1/event-types", "The catalogue of event types.")

BATCH_BYTES = 32 * 1024 * 1024


@events.api("", "POST", scope="events:write", max_body_bytes=MAX_EVENT_BYTES, one_write=True)
@events.arguments(PublishRequest)
@events.response(202, EventReceipt)
@events.alt_response(200, schema=EventReceipt, description="The `external_id` was published before.")
def publish_event(draft: Draft) -> tuple[Receipt, int]:
    """Publish an event."""
    receipt = service.publish(context.uow(), workspace_id=context.workspace_id(), draft=draft)
    return receipt, 200 if receipt.duplicate else 202


@events.api("/batch", "POST", scope="events:write", max_body_bytes=BATCH_BYTES)
@events.arguments(BatchRequest)
@events.response(202, BatchAnswer)
def publish_events(body: dict[str, Any]) -> dict[str, Any]:
    """Publish up to 1000 events; each is accepted or refused by itself."""
    outcomes = service.publish_many(context.uow(), workspace_id=context.workspace_id(), drafts=body["events"])
    refused = sum(isinstance(outcome, AppError) for outcome in outcomes)
    return {
        "data": [
            {"error": problem(outcome)} if isinstance(outcome, AppError) else receipt_fields(outcome)
            for outcome in outcomes
        ],
        "accepted": len(outcomes) - refused,
        "rejected": refused,
    }


@events.api("", scope="events:read")
@events.arguments(EventQuery, location="query")
@events.response(200, EventList)
def list_events(query: dict[str, Any]) -> Any:
    """List published events, newest first."""
    return service.list_events(
        context.uow(),
        workspace_id=context.workspace_id(),
        page=page_request(query["limit"], query["cursor"], ID_PREFIX),
        event_type=query["type"],
        since=query["since"],
        until=query["until"],
    )


@event_types.api("", scope="event_types:read")
@event_types.arguments(PageQuery, location="query")
@event_types.response(200, EventTypeList)
def list_event_types(query: dict[str, Any]) -> Any:
    """List the catalogue: the built-in types, then the workspace's own."""
    return service.list_types(context.uow(), workspace_id=context.workspace_id(), **query)


@event_types.api("/<name>", scope="event_types:read")
@event_types.response(200, EventTypeObject)
def get_event_type(name: str) -> Any:
    """Get an event type."""
    return service.get_type(context.uow(), workspace_id=context.workspace_id(), name=name)


@event_types.api("/<name>", "PUT", scope="event_types:write")
@event_types.arguments(EventTypeRequest)
@event_types.response(200, EventTypeObject)
def put_event_type(body: dict[str, Any], name: str) -> Any:
    """Add or replace an event type of the workspace's own."""
    return service.put_type(context.uow(), workspace_id=context.workspace_id(), name=name, **body)


@event_types.api("/<name>", "DELETE", scope="event_types:write")
@event_types.arguments(EmptyBody)
@event_types.response(204)
def delete_event_type(_body: dict[str, Any], name: str) -> None:
    """Remove an event type of the workspace's own."""
    service.delete_type(context.uow(), workspace_id=context.workspace_id(), name=name)
