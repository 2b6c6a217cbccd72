"""The shapes of deliveries and attempts."""

import re
from collections.abc import Iterable, Iterator
from typing import Any

from marshmallow import Schema, ValidationError, fields, validate

from app.core import json_body
from app.deliveries.models import AttemptStatus, DeliveryStatus, RecoveryStatus, Trigger
from app.deliveries.redelivery import MAX_CHOSEN_ENDPOINTS
from app.deliveries.service import AttemptView
from app.deliveries.statistics import BUCKETS
from app.endpoints.headers import MASK
from app.events.schemas import EventObject
from app.rest.schemas import CommaSeparated, PageQuery, RequestSchema, Timestamp, list_of

_DELIVERY_STATUSES = [status.value for status in DeliveryStatus]
_ATTEMPT_STATUSES = [status.value for status in AttemptStatus]


class DeliveryQuery(PageQuery):
    """Filters of the list of deliveries."""

    endpoint_id = fields.String(load_default=None)
    event_id = fields.String(load_default=None)
    status = CommaSeparated(_DELIVERY_STATUSES, load_default=None)


class StatusCodes(fields.Field[list[tuple[int, int] | None]]):
    """A query parameter of codes and classes of them, `?status_code=404,5xx,none`: ranges, and None for no answer."""

    def __init__(self, **kwargs: Any) -> None:
        each = "[1-5][0-9][0-9]|[1-5]xx|none"
        description = (
            "One or several of: a code such as `404`, a class such as `5xx`, `none` for no answer; "
            "separated by commas."
        )
        metadata = {
            "type": "string",
            "pattern": f"^({each})(,({each}))*$",
            "description": description,
            "examples": ["404,5xx,none"],
        }
        super().__init__(metadata=metadata, **kwargs)
        self._each = re.compile(each, re.ASCII)

    def _deserialize(
        self, value: Any, attr: str | None, data: Any, **kwargs: Any
    ) -> list[tuple[int, int] | None]:
        del attr, data, kwargs
        words = str(value).split(",")
        if not all(map(self._each.fullmatch, words)):
            raise ValidationError("Must be codes such as 404, classes such as 5xx, or none.")
        return [
            None if word == "none" else (int(word.replace("x", "0")), int(word.replace("x", "9")))
            for word in words
        ]


class AttemptQuery(Schema):
    """Filters of the delivery log."""

    status = CommaSeparated(_ATTEMPT_STATUSES, load_default=None)
    status_code = StatusCodes(load_default=None)
    event_type = fields.String(load_default=None)
    event_id = fields.String(load_default=None)
    since = Timestamp(load_default=None)
    until = Timestamp(load_default=None)


class AttemptPageQuery(PageQuery, AttemptQuery):
    """A page of the delivery log."""


class StatisticsQuery(Schema):
    """What statistics are asked for."""

    since = Timestamp(
        load_default=None,
        metadata={
            "description": "From the bucket of this time on; default: a day of hours, or 30 days. "
            "Nothing is known of what is older than the log."
        },
    )
    bucket = fields.String(load_default="hour", validate=validate.OneOf(list(BUCKETS)))


class SendTestRequest(RequestSchema):
    """A test to send."""

    type = fields.String(
        load_default=None,
        allow_none=True,
        metadata={
            "description": "Default: the first built-in type that the endpoint subscribes to.",
            "examples": ["message.received"],
        },
    )
    data = fields.Dict(
        keys=fields.String(),
        load_default=None,
        allow_none=True,
        metadata={
            "description": "The payload, as the type's schema has it. Default: the catalogue's example.",
            "additionalProperties": True,
        },
    )


class ReplayRequest(RequestSchema):
    """Where an event is to be delivered again."""

    endpoint_ids = fields.List(
        fields.String(),
        load_default=None,
        allow_none=True,
        validate=validate.Length(1, MAX_CHOSEN_ENDPOINTS),
        metadata={"description": "They need not subscribe to it. Default: all endpoints that do."},
    )


class RecoverRequest(RequestSchema):
    """Which failed deliveries are to be restarted."""

    since = Timestamp(
        required=True,
        metadata={"description": "Deliveries that were made from then on; up to 14 days ago."},
    )
    until = Timestamp(
        load_default=None, allow_none=True, metadata={"description": "And before then; default now."}
    )
    dry_run = fields.Boolean(load_default=False, metadata={"description": "Only count them, as `matched`."})


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
    body = fields.String(
        required=True, allow_none=True, metadata={"description": "null once the payload is expunged."}
    )
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


class StatisticsTotal(Schema):
    """How attempts went. Durations are those of all attempts, and true to 5 %; test sends do not count."""

    success = fields.Integer(required=True)
    failed = fields.Integer(required=True)
    success_rate = fields.Float(
        required=True, allow_none=True, metadata={"description": "0 to 1; null where there was no attempt."}
    )
    p50_ms = fields.Integer(required=True, allow_none=True)
    p95_ms = fields.Integer(required=True, allow_none=True)


class StatisticsBucket(StatisticsTotal):
    """How the attempts of an hour or a day went."""

    start = Timestamp(required=True)


class StatisticsObject(Schema):
    """How an endpoint's attempts went, oldest bucket first; those without an attempt are there too."""

    data = fields.List(fields.Nested(StatisticsBucket), required=True, attribute="buckets")
    total = fields.Nested(StatisticsTotal, required=True)


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


class ReplayedDeliveries(Schema):
    """The deliveries of a replayed event, restarted or made."""

    data = fields.List(fields.Nested(DeliveryObject), required=True)


class RecoveryObject(Schema):
    """A job that restarts failed deliveries of an endpoint."""

    id = fields.String(required=True)
    endpoint_id = fields.String(required=True)
    since = Timestamp(required=True)
    until = Timestamp(required=True)
    dry_run = fields.Boolean(required=True)
    status = fields.String(
        required=True, validate=validate.OneOf([status.value for status in RecoveryStatus])
    )
    matched = fields.Integer(
        required=True, metadata={"description": "How many were found; it grows until all are counted."}
    )
    done = fields.Integer(required=True, metadata={"description": "How many of them are restarted."})
    created_at = Timestamp(required=True)
    finished_at = Timestamp(required=True, allow_none=True)


class EventWithDeliveries(EventObject):
    """An event and its deliveries."""

    deliveries = fields.List(fields.Nested(DeliveryObject), required=True)


AttemptList = list_of(AttemptObject)
DeliveryList = list_of(DeliveryObject)


_CONFIDENTIAL = re.compile(
    r"authori[sz]ation|cookie|token|secret|api-?key|password|credential", re.IGNORECASE
)
_ATTEMPT = AttemptObject()


def ndjson_of(attempts: Iterable[AttemptView]) -> Iterator[bytes]:
    """Write attempts as one line each. What headers may have for secrets is masked: files are passed on."""
    for attempt in attempts:
        written = _ATTEMPT.dump(attempt)
        for part in (written["request"], written["response"]):
            if part is not None:
                part["headers"] = {
                    name: MASK if _CONFIDENTIAL.search(name) else value
                    for name, value in part["headers"].items()
                }
        yield json_body.dumps(written) + b"\n"


RecoveryList = list_of(RecoveryObject)
