"""The OpenAPI 3.1 document: problems, security, headers that every answer has, and `webhooks:` from the catalogue."""

from typing import Any

from flask import Flask
from flask_smorest import Api
from marshmallow import Schema, fields

from app.core import problems

_DESCRIPTION = """API keys, signed outgoing webhooks and their delivery log.

Authenticate with `Authorization: Bearer <API key>`. Errors are `application/problem+json` (RFC 9457)."""

_PROBLEM_STATUSES = {
    400: "The request cannot be read.",
    401: "No valid API key.",
    403: "The API key may not do this.",
    404: "No such object in this workspace.",
    409: "The object's state forbids it, or a request with this idempotency key is in flight.",
    413: "The body is too large.",
    415: "The body is not JSON.",
    422: "A field is not valid; `errors` names it.",
    429: "Too many requests.",
    503: "The database cannot be reached; send the request again after `Retry-After` seconds.",
}
_RETRY_AFTER: dict[str, Any] = {
    "Retry-After": {"description": "In seconds.", "schema": {"type": "integer", "minimum": 1}}
}
_PROBLEM_HEADERS = {
    429: {"headers": {**_RETRY_AFTER, "RateLimit-Policy": "RateLimitPolicy", "RateLimit": "RateLimit"}},
    503: {"headers": _RETRY_AFTER},
}


class FieldErrorSchema(Schema):
    """One fault of a request."""

    pointer = fields.String(required=True, metadata={"description": "A JSON Pointer into the body."})
    code = fields.String(required=True)
    detail = fields.String(required=True)


class Problem(Schema):
    """An error (RFC 9457)."""

    type = fields.String(required=True)
    title = fields.String(required=True)
    status = fields.Integer(required=True)
    detail = fields.String(required=True)
    code = fields.String(required=True)
    request_id = fields.String()
    errors = fields.List(fields.Nested(FieldErrorSchema))


class BotBatApi(Api):
    """flask-smorest's document with our errors; the edge renders them, so its own handler is not registered."""

    ERROR_SCHEMA = Problem
    # Every error is documented by its status; one for all others would let any answer pass for a documented one.
    DEFAULT_ERROR_RESPONSE_NAME = None

    def _register_error_handlers(self) -> None:
        pass

    def _register_responses(self) -> None:
        for status, description in _PROBLEM_STATUSES.items():
            self.spec.components.response(
                f"Problem{status}",
                {
                    "description": description,
                    "content": {problems.CONTENT_TYPE: {"schema": Problem}},
                    **_PROBLEM_HEADERS.get(status, {}),
                },
            )


def install(app: Flask, webhooks: dict[str, Any], version: str) -> BotBatApi:
    """Set up the document of `app`, served at /openapi.json."""
    app.config.update(
        API_TITLE="BotBat Integrations",
        API_VERSION=version,
        OPENAPI_VERSION="3.1.0",
        OPENAPI_URL_PREFIX="/",
        OPENAPI_JSON_PATH="openapi.json",
        API_SPEC_OPTIONS={
            "info": {"description": _DESCRIPTION},
            "servers": [{"url": "/"}],
            "security": [{"api_key": []}],
            "webhooks": webhooks,
        },
    )
    api = BotBatApi(app)
    api.spec.components.security_scheme("api_key", {"type": "http", "scheme": "bearer"})
    api.spec.components.parameter(
        "IdempotencyKey",
        "header",
        {
            "name": "Idempotency-Key",
            "required": False,
            "description": "Kept 24 hours per API key: the same request again gets the same answer.",
            "schema": {"type": "string", "pattern": "^[\\x21-\\x7e]{1,255}$"},
        },
    )
    # Neither is required: what is left is not known while Redis is away.
    api.spec.components.header(
        "RateLimitPolicy",
        {
            "description": "How many requests (`q`) the API key may make in `w` seconds.",
            "schema": {"type": "string", "examples": ['"default";q=1000;w=1']},
        },
    )
    api.spec.components.header(
        "RateLimit",
        {
            "description": "How many requests are left (`r`), and in how many seconds there are more (`t`).",
            "schema": {"type": "string", "examples": ['"default";r=999;t=1']},
        },
    )
    return api


def webhook(name: str, description: str, schema: Any, example: Any) -> dict[str, Any]:
    """Describe what an endpoint gets for one event type."""
    envelope = {
        "type": "object",
        "required": ["id", "type", "timestamp", "data"],
        "properties": {
            "id": {"type": "string", "description": "The event's id, the same on every attempt."},
            "type": {"const": name},
            "timestamp": {"type": "string", "format": "date-time"},
            "data": schema,
        },
        "examples": [
            {
                "id": "evt_01hzx000000000000000000000",
                "type": name,
                "timestamp": "2026-01-31T09:30:00.000Z",
                "data": example,
            }
        ],
    }
    signed = [
        _header("X-BotBat-Event", "The event type."),
        _header("X-BotBat-Delivery", "The delivery's id."),
        _header("X-BotBat-Signature", "`t=<unix>,v1=<hex HMAC-SHA256>`, once per live secret."),
        _header("webhook-id", "The event's id."),
        _header("webhook-timestamp", "The time of the attempt, in Unix seconds."),
        _header("webhook-signature", "`v1,<base64 HMAC-SHA256>`, as Standard Webhooks has it."),
    ]
    return {
        "post": {
            "operationId": name.replace(".", "_"),
            "summary": name,
            "description": description,
            "tags": ["webhooks"],
            "security": [],
            "parameters": signed,
            "requestBody": {"required": True, "content": {"application/json": {"schema": envelope}}},
            "responses": {"2XX": {"description": "Received. Anything else is retried."}},
        }
    }


def _header(name: str, description: str) -> dict[str, Any]:
    return {
        "name": name,
        "in": "header",
        "required": True,
        "description": description,
        "schema": {"type": "string"},
    }
