"""The shapes of deliveries and attempts."""

from marshmallow import Schema, fields, validate

from app.deliveries.models import AttemptStatus, DeliveryStatus, Trigger
from app.events.schemas import EventObject
from app.rest.schemas import CommaSeparated, PageQuery, Timestamp, list_of

_DELIVERY_STATUSES = [status.value for status in DeliveryStatus]
_ATTEMPT_STATUSES = [status.value for status in AttemptStatus]


class DeliveryQuery(PageQuery):
    """Filters of the list of deliveries."""

    endpoint_id = fields.String(load_default=None)
    event_id = fields.String(load_default=None)
    status = CommaSeparated(_DELIVERY_STATUSES, load_default=None)


class AttemptQuery(PageQuery):
    """Filters of the delivery log."""

    status = CommaSeparated(_ATTEMPT_STATUSES, load_default=None)
    event_type = fields.String(load_default=None)
    since = Timestamp(load_default=None)
    until = Timestamp(load_default=None)


class AttemptError(Schema):
    """Why an attempt failed."""

    code = fields.String(required=True)
    detail = fields.String(required=True, allow_none=True)


class SentRequest(Schema):
    """What was sent."""

    url = fields.String(required=True)
    headers = fields.Dict(keys=fields.String(), values=fields.String(), required=True)
    body = fields.String(required=True, allow_none=True)


class ReceivedResponse(Schema):
    """What came back."""

    headers = fields.Dict(keys=fields.String(), values=fields.String(), required=True)
    body = fields.String(required=True)
    truncated = fields.Boolean(required=True)


class AttemptObject(Schema):
    """One POST of a delivery."""

    id = fields.String(required=True)
    delivery_id = fields.String(required=True)
    event_id = fields.String(required=True)
    event_type = fields.String(required=True)
    endpoint_id = fields.String(required=True)
    number = fields.Integer(required=True)
    trigger = fields.String(required=True, validate=validate.OneOf([trigger.value for trigger in Trigger]))
    status = fields.String(required=True, validate=validate.OneOf(_ATTEMPT_STATUSES))
    status_code = fields.Integer(required=True, allow_none=True)
    duration_ms = fields.Integer(required=True)
    error = fields.Nested(AttemptError, required=True, allow_none=True)
    started_at = Timestamp(required=True)
    request = fields.Nested(SentRequest, required=True)
    response = fields.Nested(ReceivedResponse, required=True, allow_none=True)


class DeliveryObject(Schema):
    """The duty to bring one event to one endpoint."""

    id = fields.String(required=True)
    event_id = fields.String(required=True)
    event_type = fields.String(required=True)
    endpoint_id = fields.String(required=True)
    status = fields.String(required=True, validate=validate.OneOf(_DELIVERY_STATUSES))
    attempt_count = fields.Integer(required=True)
    next_attempt_at = Timestamp(required=True, allow_none=True)
    created_at = Timestamp(required=True)
    finished_at = Timestamp(required=True, allow_none=True)


class DeliveryWithAttempts(DeliveryObject):
    """A delivery and its attempts, in their order."""

    attempts = fields.List(fields.Nested(AttemptObject), required=True)


class EventWithDeliveries(EventObject):
    """An event and its deliveries."""

    deliveries = fields.List(fields.Nested(DeliveryObject), required=True)


AttemptList = list_of(AttemptObject)
DeliveryList = list_of(DeliveryObject)
