"""HTTP routes of API keys, and how a request is authenticated by one."""

from typing import Any, cast

from flask import g, request

from app.api_keys import authentication, service
from app.api_keys.authentication import Credential, InsufficientScope, InvalidApiKey, MissingApiKey
from app.api_keys.models import ID_PREFIX, KeyStatus
from app.api_keys.schemas import (
    ApiKeyFields,
    ApiKeyList,
    ApiKeyObject,
    ApiKeyQuery,
    ApiKeyRequest,
    ApiKeyRotation,
    CreatedApiKey,
)
from app.core.pagination import page_request
from app.core.unit_of_work import UnitOfWork
from app.rest import context
from app.rest.blueprint import ANY_KEY, ApiBlueprint
from app.rest.schemas import EmptyBody

api_keys = ApiBlueprint("api_keys", "/v1/api-keys", "Credentials of this API.")


def authenticate(scope: str) -> Credential:
    """Give the credential of the current request.

    Raises the 401 and 403 errors of the service, and `RateLimited` in place of `InvalidApiKey` for an address that
    has sent too many keys which are none. One that was revoked or has expired is always told so.
    """
    presented = request.headers.getlist("Authorization")
    if not presented:
        raise MissingApiKey
    failed_keys, attempt = context.resources().failed_keys, (request.remote_addr or "", ",".join(presented))
    failed_keys.refuse_again(*attempt)
    try:
        credential = _authenticate(presented)
    except InvalidApiKey as error:
        if error.code == InvalidApiKey.code:
            failed_keys.note(*attempt)
        raise
    # Before the scope is looked at: a key that lacks one has been used all the same.
    g.credential = credential
    if scope != ANY_KEY and not credential.allows(scope):
        raise InsufficientScope(scope)
    return credential


def _authenticate(presented: list[str]) -> Credential:
    scheme, _, key = presented[0].partition(" ")
    if len(presented) > 1 or scheme.lower() != "bearer":
        raise InvalidApiKey("Send one `Authorization: Bearer <your API key>` header.")
    return authentication.authenticate(context.uow(), key=key.strip(), address=request.remote_addr or "")


def note_use(uow: UnitOfWork, credential: Any) -> None:
    """Note that the current request's key was used."""
    authentication.note_use(uow, credential=credential, address=request.remote_addr or "")


@api_keys.api("", "POST", scope="api_keys:write", shown_once="key")
@api_keys.arguments(ApiKeyRequest)
@api_keys.response(201, CreatedApiKey)
def create_api_key(body: dict[str, Any]) -> Any:
    """Make an API key; the answer is the only place that ever shows it."""
    row, key = service.create(
        context.uow(),
        workspace_id=context.workspace_id(),
        maker=cast(Credential, g.credential),
        **body,
    )
    return service.view(context.uow(), row) | {"key": key}


@api_keys.api("", scope="api_keys:read")
@api_keys.arguments(ApiKeyQuery, location="query")
@api_keys.response(200, ApiKeyList)
def list_api_keys(query: dict[str, Any]) -> Any:
    """List API keys, newest first."""
    return service.list_keys(
        context.uow(),
        workspace_id=context.workspace_id(),
        page=page_request(query["limit"], query["cursor"], ID_PREFIX),
        statuses=[KeyStatus(status) for status in query["status"]],
    )


@api_keys.api("/<key_id>", scope="api_keys:read")
@api_keys.response(200, ApiKeyObject)
def get_api_key(key_id: str) -> Any:
    """Get an API key."""
    return service.get(context.uow(), workspace_id=context.workspace_id(), key_id=key_id)


@api_keys.api("/<key_id>", "PATCH", scope="api_keys:write")
@api_keys.arguments(ApiKeyFields)
@api_keys.response(200, ApiKeyObject)
def update_api_key(body: dict[str, Any], key_id: str) -> Any:
    """Change an API key's name or networks; what is absent stays as it is."""
    return service.update(
        context.uow(),
        workspace_id=context.workspace_id(),
        key_id=key_id,
        maker=cast(Credential, g.credential),
        changes=body,
    )


@api_keys.api("/<key_id>/rotate", "POST", scope="api_keys:write", shown_once="key")
@api_keys.arguments(ApiKeyRotation)
@api_keys.response(201, CreatedApiKey)
def rotate_api_key(body: dict[str, Any], key_id: str) -> Any:
    """Make a key in an API key's place; the old one goes on until it is revoked or the overlap ends."""
    row, key = service.rotate(
        context.uow(),
        workspace_id=context.workspace_id(),
        key_id=key_id,
        maker=cast(Credential, g.credential),
        **body,
    )
    return service.view(context.uow(), row) | {"key": key}


@api_keys.api("/<key_id>/revoke", "POST", scope="api_keys:write")
@api_keys.arguments(EmptyBody)
@api_keys.response(200, ApiKeyObject)
def revoke_api_key(_body: dict[str, Any], key_id: str) -> Any:
    """Revoke an API key, at once and for good."""
    return service.revoke(context.uow(), workspace_id=context.workspace_id(), key_id=key_id)
