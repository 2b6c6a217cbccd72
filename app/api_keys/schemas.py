"""The shapes of API keys."""

import ipaddress
from typing import Any

from marshmallow import Schema, ValidationError, fields
from marshmallow.validate import Length, OneOf, Range

from app.api_keys.models import KeyStatus
from app.api_keys.service import SCOPES
from app.rest.schemas import CommaSeparated, PageQuery, RequestSchema, Timestamp, list_of

MAX_EXPIRY_DAYS = 3650
# Invisible, and yet part of how names are written: Persian and Hindi words, many emoji, French punctuation.
_JOINERS = "\u200c\u200d\u00a0"
_IPV4_MAPPED = ipaddress.IPv6Network("::ffff:0:0/96")


def check_name(name: str) -> None:
    """Refuse names that cannot be told apart on a page."""
    visible = any(character.isprintable() and character != " " for character in name)
    if not visible or any(not character.isprintable() and character not in _JOINERS for character in name):
        raise ValidationError("A name has visible characters and no control characters.")
    try:
        name.encode()
    except UnicodeEncodeError:
        raise ValidationError("Not valid Unicode.") from None


class Cidr(fields.String):
    """A network, such as 203.0.113.0/24; a single address stands for itself."""

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> str:
        text = super()._deserialize(value, attr, data, **kwargs)
        try:
            network = ipaddress.ip_network(text)
        except ValueError:
            raise ValidationError("Not a network such as 203.0.113.0/24 or 2001:db8::/32.") from None
        if isinstance(network, ipaddress.IPv6Network):
            # Either would never match: clients' addresses have no scope here, and mapped ones are judged as IPv4.
            if "%" in text:
                raise ValidationError("A network has no scope id.")
            if network.subnet_of(_IPV4_MAPPED):
                raise ValidationError("Write an IPv4-mapped network in its IPv4 form.")
        return str(network)


class ApiKeyRequest(RequestSchema):
    """A new API key."""

    name = fields.String(required=True, validate=[Length(1, 100), check_name])
    expires_at = Timestamp(load_default=None, allow_none=True)
    expires_in_days = fields.Integer(
        strict=True, load_default=None, allow_none=True, validate=Range(1, MAX_EXPIRY_DAYS)
    )
    scopes = fields.List(
        fields.String(validate=OneOf(SCOPES)), load_default=None, allow_none=True, validate=Length(1, 50)
    )
    allowed_cidrs = fields.List(Cidr(), load_default=list, validate=Length(max=50))


class ApiKeyQuery(PageQuery):
    """Filters of the list of API keys."""

    status = CommaSeparated(
        [status.value for status in KeyStatus],
        load_default=lambda: [KeyStatus.ACTIVE.value, KeyStatus.EXPIRED.value],
    )


class ApiKeyObject(Schema):
    """An API key; never the key itself."""

    id = fields.String(required=True)
    name = fields.String(required=True)
    prefix = fields.String(required=True)
    scopes = fields.List(fields.String(), required=True)
    allowed_cidrs = fields.List(fields.String(), required=True)
    status = fields.String(required=True, validate=OneOf([status.value for status in KeyStatus]))
    created_at = Timestamp(required=True)
    last_used_at = Timestamp(required=True, allow_none=True)
    expires_at = Timestamp(required=True, allow_none=True)
    revoked_at = Timestamp(required=True, allow_none=True)
    rotated_from = fields.String(required=True, allow_none=True)


class CreatedApiKey(ApiKeyObject):
    """An API key as it is shown once: with the full key."""

    key = fields.String(metadata={"description": "The full key. A replay of this answer is without it."})


ApiKeyList = list_of(ApiKeyObject)
