"""The shapes of the audit log."""

from typing import get_args

from marshmallow import Schema, fields
from marshmallow.validate import OneOf

from app.core.actor import ActorKind
from app.rest.schemas import PageQuery, Timestamp, list_of


class AuditQuery(PageQuery):
    """Filters of the audit log."""

    actor = fields.String(
        load_default=None, metadata={"description": f"An id, or one of {', '.join(get_args(ActorKind))}."}
    )
    action = fields.String(load_default=None, metadata={"description": "Such as `endpoint.updated`."})
    resource = fields.String(load_default=None, metadata={"description": "The id of what was changed."})
    since = Timestamp(load_default=None)
    until = Timestamp(load_default=None)


class AuditActor(Schema):
    """Who made a change."""

    type = fields.String(required=True, validate=OneOf(get_args(ActorKind)))
    id = fields.String(required=True, allow_none=True)


class AuditResource(Schema):
    """What was changed."""

    type = fields.String(required=True)
    id = fields.String(required=True)


class AuditEntryObject(Schema):
    """One change: names of fields, never their values."""

    id = fields.String(required=True)
    action = fields.String(required=True)
    actor = fields.Nested(AuditActor, required=True)
    resource = fields.Nested(AuditResource, required=True)
    changed = fields.List(fields.String(), required=True)
    address = fields.String(required=True, allow_none=True)
    request_id = fields.String(required=True, allow_none=True)
    created_at = Timestamp(required=True)


AuditEntryList = list_of(AuditEntryObject)
