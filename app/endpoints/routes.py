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
    MatchedEndpointList,
    Preview,
    PreviewRequest,
    RotatedSecret,
    RotateSecretRequest,
    SigningSecrets,
)
from app.events.schemas import PublishRequest
from app.events.service import MAX_EVENT_BYTES, Draft
from app.rest import context
from app.rest.blueprint import ApiBlueprint
from app.rest.schemas import PageQuery

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


@endpoints.api("/match", "POST", scope="endpoints:read", max_body_bytes=MAX_EVENT_BYTES)
@endpoints.arguments(PageQuery, location="query")
@endpoints.arguments(PublishRequest)
@endpoints.response(200, MatchedEndpointList)
def match_endpoints(query: dict[str, Any], draft: Draft) -> Any:
    """Tell which endpoints would get an event and why the others would not; nothing is published."""
    return service.match(
        context.uow(),
        workspace_id=context.workspace_id(),
        draft=draft,
        page=page_request(query["limit"], query["cursor"], ID_PREFIX),
    )


@endpoints.api("/preview", "POST", scope="endpoints:read", max_body_bytes=MAX_EVENT_BYTES)
@endpoints.arguments(PreviewRequest)
@endpoints.response(200, Preview)
def preview_format(body: dict[str, Any]) -> Any:
    """Show the body that an event would have in a format; nothing is stored or sent."""
    return service.preview(context.uow(), workspace_id=context.workspace_id(), **body)


@endpoints.api("/<endpoint_id>", scope="endpoints:read")
@endpoints.response(200, EndpointObject)
def get_endpoint(endpoint_id: str) -> Any:
    """Get an endpoint."""
    return service.get(context.uow(), workspace_id=context.workspace_id(), endpoint_id=endpoint_id)


@endpoints.api("/<endpoint_id>", "PATCH", scope="endpoints:write")
@endpoints.arguments(EndpointFields)
@endpoints.response(200, EndpointObject)
def update_endpoint(body: dict[str, Any], endpoint_id: str) -> Any:
    """Change an endpoint; `policy` and `headers` are merged, a `format` is given whole.

    A `signing_secret` signs alone from now on.
    """
    return service.update(
        context.uow(), workspace_id=context.workspace_id(), endpoint_id=endpoint_id, changes=body
    )


@endpoints.api("/<endpoint_id>/secret", scope="endpoints:write", writes=True)
@endpoints.response(200, SigningSecrets)
def get_endpoint_secret(endpoint_id: str) -> Any:
    """Get the signing secret; needs the scope to write, for whoever has it can sign."""
    return service.reveal_secret(context.uow(), workspace_id=context.workspace_id(), endpoint_id=endpoint_id)


@endpoints.api("/<endpoint_id>/rotate-secret", "POST", scope="endpoints:write", shown_once="signing_secret")
@endpoints.arguments(RotateSecretRequest)
@endpoints.response(200, RotatedSecret)
def rotate_endpoint_secret(body: dict[str, Any], endpoint_id: str) -> Any:
    """Make a new signing secret; during the overlap every delivery is signed with both, newest first."""
    return service.rotate_secret(
        context.uow(), workspace_id=context.workspace_id(), endpoint_id=endpoint_id, **body
    )
