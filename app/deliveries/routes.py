"""HTTP routes of deliveries and attempts, and of what endpoints and events have of them."""

from typing import Any

from flask import Response

from app.core.pagination import page_request
from app.deliveries import recoveries, redelivery, service, statistics, trial
from app.deliveries.filters import AttemptFilter
from app.deliveries.models import ATTEMPT_PREFIX, DELIVERY_PREFIX, RECOVERY_PREFIX
from app.deliveries.schemas import (
    AttemptList,
    AttemptObject,
    AttemptPageQuery,
    AttemptQuery,
    DeliveryList,
    DeliveryObject,
    DeliveryQuery,
    DeliveryWithAttempts,
    EventWithDeliveries,
    RecoverRequest,
    RecoveryList,
    RecoveryObject,
    ReplayedDeliveries,
    ReplayRequest,
    SendTestRequest,
    StatisticsObject,
    StatisticsQuery,
    ndjson_of,
)
from app.endpoints.schemas import EndpointObject
from app.events.service import MAX_EVENT_BYTES
from app.rest import context
from app.rest.blueprint import ApiBlueprint
from app.rest.schemas import EmptyBody, PageQuery

deliveries = ApiBlueprint("deliveries", "/v1", "What is delivered, and the log of every attempt.")


@deliveries.api("/deliveries", scope="deliveries:read")
@deliveries.arguments(DeliveryQuery, location="query")
@deliveries.response(200, DeliveryList)
def list_deliveries(query: dict[str, Any]) -> Any:
    """List deliveries, newest first.

    Of a rare status a page can be short, even empty, and still have a `next_cursor`: follow it until it is null.
    """
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
@deliveries.arguments(AttemptPageQuery, location="query")
@deliveries.response(200, AttemptList)
def list_endpoint_attempts(query: dict[str, Any], endpoint_id: str) -> Any:
    """Read an endpoint's delivery log, newest first.

    Of a rare kind a page can be short, even empty, and still have a `next_cursor`: follow it until it is null.
    """
    page = page_request(query.pop("limit"), query.pop("cursor"), ATTEMPT_PREFIX)
    return service.list_attempts(
        context.uow(),
        workspace_id=context.workspace_id(),
        endpoint_id=endpoint_id,
        page=page,
        filters=AttemptFilter(**query),
    )


@deliveries.api("/endpoints/<endpoint_id>/attempts.ndjson", scope="deliveries:read")
@deliveries.arguments(AttemptQuery, location="query")
@deliveries.response(
    200,
    {"type": "string"},
    content_type="application/x-ndjson",
    description="One attempt object per line; what headers may have for secrets is masked.",
)
def export_endpoint_attempts(query: dict[str, Any], endpoint_id: str) -> Response:
    """Read the whole of an endpoint's delivery log, newest first, one attempt per line."""
    attempts = service.export_attempts(
        context.uow(),
        workspace_id=context.workspace_id(),
        endpoint_id=endpoint_id,
        filters=AttemptFilter(**query),
    )
    return Response(ndjson_of(attempts), mimetype="application/x-ndjson")


@deliveries.api("/endpoints/<endpoint_id>/stats", scope="deliveries:read")
@deliveries.arguments(StatisticsQuery, location="query")
@deliveries.response(200, StatisticsObject)
def get_endpoint_statistics(query: dict[str, Any], endpoint_id: str) -> Any:
    """Get how an endpoint's attempts went, by the hour or by the day."""
    return statistics.get(
        context.uow(), workspace_id=context.workspace_id(), endpoint_id=endpoint_id, **query
    )


@deliveries.api("/events/<event_id>", scope="events:read")
@deliveries.response(200, EventWithDeliveries)
def get_event(event_id: str) -> Any:
    """Get an event with its deliveries."""
    return service.get_event(context.uow(), workspace_id=context.workspace_id(), event_id=event_id)


@deliveries.api("/events/<event_id>/payload", "DELETE", scope="events:write")
@deliveries.arguments(EmptyBody)
@deliveries.response(204)
def expunge_payload(_body: dict[str, Any], event_id: str) -> None:
    """Erase an event's payload for good; what is pending of it is canceled, and it cannot be sent again."""
    service.expunge_payload(context.uow(), workspace_id=context.workspace_id(), event_id=event_id)


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


@deliveries.api(
    "/endpoints/<endpoint_id>/test", "POST", scope="endpoints:write", max_body_bytes=MAX_EVENT_BYTES
)
@deliveries.arguments(SendTestRequest)
@deliveries.response(200, AttemptObject)
def send_test(body: dict[str, Any], endpoint_id: str) -> Any:
    """Send a sample event to an endpoint now, and wait for what comes back: the attempt, also when it failed."""
    return trial.send(
        context.uow(),
        workspace_id=context.workspace_id(),
        endpoint_id=endpoint_id,
        event_type=body["type"],
        data=body["data"],
    )


@deliveries.api("/deliveries/<delivery_id>/retry", "POST", scope="deliveries:write")
@deliveries.arguments(EmptyBody)
@deliveries.response(202, DeliveryObject)
def retry_delivery(_body: dict[str, Any], delivery_id: str) -> Any:
    """Attempt a delivery once more, now, whatever became of it; while its endpoint is paused it waits."""
    return redelivery.retry(context.uow(), workspace_id=context.workspace_id(), delivery_id=delivery_id)


@deliveries.api("/events/<event_id>/replay", "POST", scope="events:write")
@deliveries.arguments(ReplayRequest)
@deliveries.response(202, ReplayedDeliveries)
def replay_event(body: dict[str, Any], event_id: str) -> Any:
    """Deliver an event again, to the endpoints that subscribe to it now or to chosen ones."""
    made = redelivery.replay(context.uow(), workspace_id=context.workspace_id(), event_id=event_id, **body)
    return {"data": made}


@deliveries.api("/endpoints/<endpoint_id>/recover", "POST", scope="deliveries:write")
@deliveries.arguments(RecoverRequest)
@deliveries.response(202, RecoveryObject)
def recover_endpoint(body: dict[str, Any], endpoint_id: str) -> Any:
    """Restart all failed deliveries that were made in a span of time, as a job that leaves room for fresh events."""
    return recoveries.start(
        context.uow(), workspace_id=context.workspace_id(), endpoint_id=endpoint_id, **body
    )


@deliveries.api("/endpoints/<endpoint_id>/recoveries", scope="deliveries:read")
@deliveries.arguments(PageQuery, location="query")
@deliveries.response(200, RecoveryList)
def list_recoveries(query: dict[str, Any], endpoint_id: str) -> Any:
    """List an endpoint's recoveries, newest first."""
    page = page_request(query["limit"], query["cursor"], RECOVERY_PREFIX)
    return recoveries.list_recoveries(
        context.uow(), workspace_id=context.workspace_id(), endpoint_id=endpoint_id, page=page
    )


@deliveries.api("/endpoints/<endpoint_id>/recoveries/<recovery_id>", scope="deliveries:read")
@deliveries.response(200, RecoveryObject)
def get_recovery(endpoint_id: str, recovery_id: str) -> Any:
    """Get a recovery and how far it is."""
    return recoveries.get(
        context.uow(),
        workspace_id=context.workspace_id(),
        endpoint_id=endpoint_id,
        recovery_id=recovery_id,
    )


@deliveries.api("/endpoints/<endpoint_id>/recoveries/<recovery_id>/cancel", "POST", scope="deliveries:write")
@deliveries.arguments(EmptyBody)
@deliveries.response(200, RecoveryObject)
def cancel_recovery(_body: dict[str, Any], endpoint_id: str, recovery_id: str) -> Any:
    """Stop a recovery; what it has restarted goes on."""
    return recoveries.cancel(
        context.uow(),
        workspace_id=context.workspace_id(),
        endpoint_id=endpoint_id,
        recovery_id=recovery_id,
    )
