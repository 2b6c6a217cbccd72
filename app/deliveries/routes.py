"""HTTP routes of deliveries and attempts, and of what endpoints and events have of them."""

from typing import Any

from app.core.pagination import page_request
from app.deliveries import service
from app.deliveries.models import ATTEMPT_PREFIX, DELIVERY_PREFIX
from app.deliveries.schemas import (
    AttemptList,
    AttemptObject,
    AttemptQuery,
    DeliveryList,
    DeliveryQuery,
    DeliveryWithAttempts,
    EventWithDeliveries,
)
from app.endpoints.schemas import EndpointObject
from app.rest import context
from app.rest.blueprint import ApiBlueprint
from app.rest.schemas import EmptyBody

deliveries = ApiBlueprint("deliveries", "/v1", "What is delivered, and the log of every attempt.")


@deliveries.api("/deliveries", scope="deliveries:read")
@deliveries.arguments(DeliveryQuery, location="query")
@deliveries.response(200, DeliveryList)
def list_deliveries(query: dict[str, Any]) -> Any:
    """List deliveries, newest first."""
    return service.list_deliveries(
        context.uow(),
        workspace_id=context.workspace_id(),
        page=page_request(query["limit"], query["cursor"], DELIVERY_PREFIX),
        endpoint_id=query["endpoint_id"],
        event_id=query["event_id"],
        statuses=query["status"],
    )


@deliveries.api("/deliveries/<delivery_id>", scope="deliveries:read")
@deliveries.response(200, DeliveryWithAttempts)
def get_delivery(delivery_id: str) -> Any:
    """Get a delivery with its attempts."""
    return service.get(context.uow(), workspace_id=context.workspace_id(), delivery_id=delivery_id)


@deliveries.api("/attempts/<attempt_id>", scope="deliveries:read")
@deliveries.response(200, AttemptObject)
def get_attempt(attempt_id: str) -> Any:
    """Get an attempt: the whole request and response."""
    return service.get_attempt(context.uow(), workspace_id=context.workspace_id(), attempt_id=attempt_id)


@deliveries.api("/endpoints/<endpoint_id>/attempts", scope="deliveries:read")
@deliveries.arguments(AttemptQuery, location="query")
@deliveries.response(200, AttemptList)
def list_endpoint_attempts(query: dict[str, Any], endpoint_id: str) -> Any:
    """Read an endpoint's delivery log, newest first."""
    page = page_request(query.pop("limit"), query.pop("cursor"), ATTEMPT_PREFIX)
    return service.list_attempts(
        context.uow(), workspace_id=context.workspace_id(), endpoint_id=endpoint_id, page=page, **query
    )


@deliveries.api("/events/<event_id>", scope="events:read")
@deliveries.response(200, EventWithDeliveries)
def get_event(event_id: str) -> Any:
    """Get an event with its deliveries."""
    return service.get_event(context.uow(), workspace_id=context.workspace_id(), event_id=event_id)


@deliveries.api("/endpoints/<endpoint_id>", "DELETE", scope="endpoints:write")
@deliveries.arguments(EmptyBody)
@deliveries.response(204)
def delete_endpoint(_body: dict[str, Any], endpoint_id: str) -> None:
    """Delete an endpoint; what is pending for it is canceled."""
    service.delete_endpoint(context.uow(), workspace_id=context.workspace_id(), endpoint_id=endpoint_id)


@deliveries.api("/endpoints/<endpoint_id>/pause", "POST", scope="endpoints:write")
@deliveries.arguments(EmptyBody)
@deliveries.response(200, EndpointObject)
def pause_endpoint(_body: dict[str, Any], endpoint_id: str) -> Any:
    """Pause an endpoint; its deliveries wait."""
    return service.pause_endpoint(context.uow(), workspace_id=context.workspace_id(), endpoint_id=endpoint_id)


@deliveries.api("/endpoints/<endpoint_id>/resume", "POST", scope="endpoints:write")
@deliveries.arguments(EmptyBody)
@deliveries.response(200, EndpointObject)
def resume_endpoint(_body: dict[str, Any], endpoint_id: str) -> Any:
    """Resume an endpoint; what has waited goes out."""
    return service.resume_endpoint(
        context.uow(), workspace_id=context.workspace_id(), endpoint_id=endpoint_id
    )
