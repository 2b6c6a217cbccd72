"""The shapes of events and event types."""

from typing import Any

from marshmallow import Schema, ValidationError, fields, post_load
from marshmallow.validate import Length, Regexp

from app.core.clock import format_time
from app.core.errors import AppError, Invalid
from app.events.service import MAX_BATCH, Draft, Receipt, data_of
from app.rest.parser import field_errors, summary
from app.rest.schemas import PageQuery, RequestSchema, Timestamp, list_of


class PublishRequest(RequestSchema):
    """An event to publish."""

    type = fields.String(
        required=True,
        metadata={"description": "A name from the catalogue.", "examples": ["message.received"]},
    )
    data = fields.Dict(
        keys=fields.String(),
        required=True,
        metadata={"description": "The payload, as the type's schema has it.", "additionalProperties": True},
    )
    external_id = fields.String(
        load_default=None,
        allow_none=True,
        validate=Regexp(r"^[A-Za-z0-9_.:-]{1,255}\Z", error="1 to 255 of A-Z a-z 0-9 _ . : -"),
        metadata={
            "description": "Your own id: publishing it again sends nothing new.",
            "pattern": "^[A-Za-z0-9_.:-]{1,255}$",  # as JSON Schema has it: there is no \Z
        },
    )
    occurred_at = Timestamp(
        load_default=None, allow_none=True, metadata={"description": "When it happened; default now."}
    )

    @post_load
    def draft(self, values: dict[str, Any], **_kw: Any) -> Draft:
        """Make the service's input."""
        return Draft(**values)


_PUBLISH = PublishRequest()


class EachEvent(fields.Nested):
    """One event of a batch: read by itself, so that a bad one, null too, does not refuse the others."""

    def deserialize(
        self, value: Any, attr: str | None = None, data: Any = None, **kwargs: Any
    ) -> Draft | AppError:
        """Give the event, or why it is none."""
        del attr, data, kwargs
        try:
            draft: Draft = _PUBLISH.load(value)
        except ValidationError as error:
            errors = list(
                field_errors(error.normalized_messages())  # type: ignore[no-untyped-call]
            )
            return Invalid(summary(errors), errors=errors)
        return draft


class BatchRequest(RequestSchema):
    """Several events to publish."""

    events = fields.List(
        EachEvent(PublishRequest),
        required=True,
        validate=Length(1, MAX_BATCH),
    )


class EventReceipt(Schema):
    """A published event."""

    id = fields.String(required=True)
    external_id = fields.String(required=True, allow_none=True)
    type = fields.String(required=True)
    occurred_at = Timestamp(required=True)
    created_at = Timestamp(required=True)
    duplicate = fields.Boolean(required=True)


def receipt_fields(receipt: Receipt) -> dict[str, Any]:
    """Write a receipt as `EventReceipt` does, at a fraction of its cost: a batch has a thousand."""
    return {
        "id": receipt.id,
        "external_id": receipt.external_id,
        "type": receipt.type,
        "occurred_at": format_time(receipt.occurred_at),
        "created_at": format_time(receipt.created_at),
        "duplicate": receipt.duplicate,
    }


class BatchAnswer(Schema):
    """What became of each event, in the order of the request."""

    data = fields.Raw(
        required=True,
        metadata={
            "type": "array",
            "items": {"type": "object"},
            "description": "Per event its receipt, or `error` with a problem.",
        },
    )
    accepted = fields.Integer(required=True)
    rejected = fields.Integer(required=True)


class EventQuery(PageQuery):
    """Filters of the list of events."""

    type = fields.String(load_default=None)
    since = Timestamp(load_default=None)
    until = Timestamp(load_default=None)


class Payload(fields.Field[Any]):
    """The payload out of an event's stored envelope."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(metadata={"type": ["object", "null"]}, **kwargs)

    def _serialize(self, value: Any, attr: str | None, obj: Any, **kwargs: Any) -> Any:
        del attr, obj, kwargs
        return data_of(value)


class EventObject(Schema):
    """A published event with its payload."""

    id = fields.String(required=True)
    external_id = fields.String(required=True, allow_none=True)
    type = fields.String(required=True)
    occurred_at = Timestamp(required=True)
    created_at = Timestamp(required=True)
    data = Payload(required=True, attribute="body")
    payload_expunged_at = Timestamp(required=True, allow_none=True)


EventList = list_of(EventObject)


class EventTypeRequest(RequestSchema):
    """An event type of the workspace's own."""

    description = fields.String(load_default="", validate=Length(max=1000))
    schema = fields.Raw(
        load_default=None,
        allow_none=True,
        metadata={"description": "JSON Schema 2020-12 of `data`.", "type": ["object", "boolean"]},
    )
    example = fields.Dict(load_default=None, allow_none=True)


class EventTypeObject(Schema):
    """A catalogue entry."""

    name = fields.String(required=True)
    description = fields.String(required=True)
    schema = fields.Raw(required=True, allow_none=True)
    example = fields.Raw(required=True, allow_none=True)
    built_in = fields.Boolean(required=True)


EventTypeList = list_of(EventTypeObject)
