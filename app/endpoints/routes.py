"""HTTP routes of endpoints' configuration. Those that touch their deliveries are in app/deliveries/routes.py."""

from typing import Any

from app.core.pagination import page_request
from app.endpoints import service
from app.endpoints.models import ID_PREFIX
from app.endpoints.schemas import (
    CreatedEndpoint,
    EndpointFields,
    EndpointList,
    EndpointObject,
    EndpointQuery,
    EndpointRequest,
    SigningSecrets,
)
from app.rest import context
from app.rest.blueprint import ApiBlueprint

endpoints = ApiBlueprint("endpoints", "/v1/endpoints", "HTTPS URLs that events are delivered to.")


@endpoints.api("", "POST", scope="endpoints:write")
@endpoints.arguments(EndpointRequest)
@endpoints.response(201, CreatedEndpoint)
def create_endpoint(body: dict[str, Any]) -> Any:
    """Add an endpoint; it is active at once."""
    return service.create(context.uow(), workspace_id=context.workspace_id(), **body)


@endpoints.api("", scope="endpoints:read")
@endpoints.arguments(EndpointQuery, location="query")
@endpoints.response(200, EndpointList)
def list_endpoints(query: dict[str, Any]) -> Any:
    """List endpoints, newest first."""
    return service.list_endpoints(
        context.uow(),
        workspace_id=context.workspace_id(),
        page=page_request(query["limit"], query["cursor"], ID_PREFIX),
        statuses=query["status"],
    )


@endpoints.api("/<endpoint_id>", scope="endpoints:read")
@endpoints.response(200, EndpointObject)
def get_endpoint(endpoint_id: str) -> Any:
    """Get an endpoint."""
    return service.get(context.uow(), workspace_id=context.workspace_id(), endpoint_id=endpoint_id)


@endpoints.api("/<endpoint_id>", "PATCH", scope="endpoints:write")
@endpoints.arguments(EndpointFields)
@endpoints.response(200, EndpointObject)
def update_endpoint(body: dict[str, Any], endpoint_id: str) -> Any:
    """Change an endpoint; `policy` and `headers` are merged."""
    return service.update(
        context.uow(), workspace_id=context.workspace_id(), endpoint_id=endpoint_id, changes=body
    )


@endpoints.api("/<endpoint_id>/secret", scope="endpoints:write", writes=True)
@endpoints.response(200, SigningSecrets)
def get_endpoint_secret(endpoint_id: str) -> Any:
    """Get the signing secret; needs the scope to write, for whoever has it can sign."""
    return service.reveal_secret(context.uow(), workspace_id=context.workspace_id(), endpoint_id=endpoint_id)
