"""The shapes of endpoints."""

from typing import Any

from marshmallow import Schema, fields
from marshmallow.validate import Length, OneOf, Range

from app.core.templates import MAX_SOURCE_LENGTH
from app.endpoints import formats, policy
from app.endpoints.headers import MASK
from app.endpoints.matching import Mismatch
from app.endpoints.models import EndpointStatus
from app.endpoints.service import (
    DEFAULT_OVERLAP_SECONDS,
    MAX_DESCRIPTION_LENGTH,
    MAX_OVERLAP_SECONDS,
    MAX_SUBSCRIPTIONS,
)
from app.rest.schemas import CommaSeparated, PageQuery, RequestSchema, Texts, Timestamp, list_of


def _format_of(routing_key: dict[str, Any]) -> dict[str, Any]:
    """Give JSON Schema's form of a format, whose routing key is of this kind."""

    def options(kind: dict[str, Any], *required: str, **properties: Any) -> dict[str, Any]:
        return {
            "type": "object",
            "required": ["type", *required],
            "properties": {"type": kind, **properties},
            "additionalProperties": False,
        }

    template = {
        "type": "string",
        "maxLength": MAX_SOURCE_LENGTH,
        "description": "Liquid, with the envelope's fields; `{{ data.text | json }}` writes one as JSON.",
    }
    content_type = {"type": "string", "enum": list(formats.CONTENT_TYPES), "default": formats.JSON}
    severity = {"type": "string", "enum": list(formats.SEVERITIES), "default": "error"}
    plain = {"type": "string", "enum": [formats.DEFAULT, "slack"]}
    return {
        "oneOf": [
            plain,
            options(plain),
            options({"const": "pagerduty"}, "routing_key", routing_key=routing_key, severity=severity),
            options({"const": "template"}, "template", template=template, content_type=content_type),
        ],
        "description": "What the body is: our envelope, a Slack message, a PagerDuty alert, or what your template makes"
        " of the envelope. A format with options is given whole: those that are left out have their defaults.",
    }


_FORMAT = _format_of({"type": "string", "pattern": "^[A-Za-z0-9]{32}$"})
_SHOWN_FORMAT = _format_of({"type": "string", "const": MASK})


class RateLimit(RequestSchema):
    """Requests in a span of time."""

    count = fields.Integer(required=True, strict=True, validate=Range(1, 100_000))
    seconds = fields.Integer(required=True, strict=True, validate=Range(1, 86_400))


class PolicyRequest(RequestSchema):
    """How often, how long, how much at once."""

    retry_schedule = fields.List(
        fields.Integer(strict=True, validate=Range(0, policy.MAX_RETRY_DELAY_SECONDS)),
        validate=Length(max=policy.MAX_RETRIES),
        metadata={"description": "Seconds between a failure and the next attempt, one entry per retry."},
    )
    timeout_seconds = fields.Integer(
        strict=True, validate=Range(policy.MIN_TIMEOUT_SECONDS, policy.MAX_TIMEOUT_SECONDS)
    )
    rate_limit = fields.Nested(RateLimit, allow_none=True)
    max_in_flight = fields.Integer(strict=True, validate=Range(1, policy.MAX_IN_FLIGHT))
    when_failing = fields.String(validate=OneOf(policy.WHEN_FAILING))


class EndpointFields(RequestSchema):
    """What can be set when an endpoint is made and afterwards."""

    url = fields.String(metadata={"description": "HTTPS, to a public address.", "format": "uri"})
    description = fields.String(validate=Length(max=MAX_DESCRIPTION_LENGTH))
    signing_secret = fields.String(
        metadata={"description": "Your own, 16 to 256 printable ASCII characters; generated if absent."}
    )
    events = fields.List(
        fields.String(),
        validate=Length(1, MAX_SUBSCRIPTIONS),
        metadata={"description": "Event types, a group such as `message.*`, or `*`.", "examples": [["*"]]},
    )
    filter = fields.Dict(
        allow_none=True,
        metadata={"description": "A condition on the envelope; only events that match are delivered."},
    )
    headers = Texts(
        allow_none_values=True,
        metadata={"description": "Custom request headers; their values are never shown again."},
    )
    format = fields.Raw(metadata=_FORMAT)
    policy = fields.Nested(PolicyRequest)


class EndpointRequest(EndpointFields):
    """A new endpoint."""

    url = fields.String(
        required=True, metadata={"description": "HTTPS, to a public address.", "format": "uri"}
    )
    events = fields.List(
        fields.String(),
        required=True,
        validate=Length(1, MAX_SUBSCRIPTIONS),
        metadata={"description": "Event types, a group such as `message.*`, or `*`.", "examples": [["*"]]},
    )
    signing_secret = fields.String(
        allow_none=True,
        metadata={"description": "Your own, 16 to 256 printable ASCII characters; generated if absent."},
    )
    headers = Texts(
        metadata={"description": "Custom request headers; their values are never shown again."},
    )


class EndpointQuery(PageQuery):
    """Filters of the list of endpoints."""

    status = CommaSeparated([status.value for status in EndpointStatus], load_default=None)


class EndpointObject(Schema):
    """An endpoint."""

    id = fields.String(required=True)
    url = fields.String(required=True)
    description = fields.String(required=True)
    status = fields.String(required=True, validate=OneOf([status.value for status in EndpointStatus]))
    status_reason = fields.String(required=True, allow_none=True)
    events = fields.List(fields.String(), required=True)
    event_count = fields.Integer(required=True)
    filter = fields.Raw(required=True, allow_none=True)
    headers = fields.Dict(keys=fields.String(), values=fields.String(), required=True)
    format = fields.Raw(required=True, metadata=_SHOWN_FORMAT)
    policy = fields.Dict(required=True)
    created_at = Timestamp(required=True)
    updated_at = Timestamp(required=True)
    last_attempt_at = Timestamp(required=True, allow_none=True)
    last_success_at = Timestamp(required=True, allow_none=True)


class CreatedEndpoint(EndpointObject):
    """An endpoint as it is shown when it is made: with its signing secret."""

    signing_secret = fields.String(required=True)


class PreviewRequest(RequestSchema):
    """A format, and an event to see it with."""

    format = fields.Raw(required=True, metadata=_FORMAT)
    type = fields.String(
        required=True,
        metadata={"description": "A name from the catalogue.", "examples": ["message.received"]},
    )
    data = fields.Dict(
        keys=fields.String(),
        load_default=None,
        metadata={"description": "Default: the example of the type.", "additionalProperties": True},
    )


class Preview(Schema):
    """What would be sent."""

    body = fields.String(required=True, metadata={"description": "Secrets of the format are masked."})
    content_type = fields.String(required=True)


class PreviousSecret(Schema):
    """A secret that was rotated and still signs."""

    signing_secret = fields.String(required=True)
    expires_at = Timestamp(required=True, metadata={"description": "From then on it signs no longer."})


class SigningSecrets(Schema):
    """The secrets that sign deliveries."""

    signing_secret = fields.String(required=True)
    previous = fields.List(fields.Nested(PreviousSecret), required=True)


class RotateSecretRequest(RequestSchema):
    """A new signing secret, and how long the one before it goes on signing beside it."""

    signing_secret = fields.String(
        load_default=None,
        allow_none=True,
        metadata={"description": "Your own, 16 to 256 printable ASCII characters; generated if absent."},
    )
    overlap_seconds = fields.Integer(
        load_default=DEFAULT_OVERLAP_SECONDS,
        strict=True,
        validate=Range(0, MAX_OVERLAP_SECONDS),
        metadata={
            "description": "How long deliveries are signed with both secrets; 0 ends the old one, within a second."
        },
    )


class RotatedSecret(Schema):
    """The new signing secret."""

    signing_secret = fields.String(
        metadata={"description": "The new secret. A replay of this answer is without it."}
    )
    previous_expires_at = Timestamp(
        required=True,
        allow_none=True,
        metadata={"description": "When the secret before it ceases to sign; null where it has already."},
    )


class MatchedEndpoint(Schema):
    """Whether an endpoint would get an event."""

    endpoint_id = fields.String(required=True)
    url = fields.String(required=True)
    matches = fields.Boolean(required=True)
    reason = fields.String(
        required=True,
        allow_none=True,
        validate=OneOf([reason.value for reason in Mismatch]),
        metadata={"description": "Why it would not get the event; null where it would."},
    )
    detail = fields.String(
        required=True,
        metadata={
            "description": "The same as a sentence, which for a filter names the condition that decided."
        },
    )


EndpointList = list_of(EndpointObject)
MatchedEndpointList = list_of(MatchedEndpoint)
