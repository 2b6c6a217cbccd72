"""The shapes of API keys."""

import ipaddress
import unicodedata
from typing import Any

from marshmallow import Schema, ValidationError, fields
from marshmallow.validate import Length, OneOf, Range

from app.api_keys.models import KeyStatus
from app.api_keys.service import SCOPES
from app.rest.schemas import CommaSeparated, PageQuery, RequestSchema, Timestamp, list_of

MAX_EXPIRY_DAYS = 3650
MAX_OVERLAP_SECONDS = 30 * 24 * 3600
_CONTROL = {"Cc", "Zl", "Zp"}  # categories: control characters, and the separators of lines and paragraphs
# They reorder what stands around them, or make two names look alike. The other invisible characters are part of how
# names are written: Persian, Hindi and Hebrew words, flags and other emoji, French punctuation.
_DECEIVING = frozenset("\u200b\u2060\ufeff\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
_BLANK = {"Zs", "Cf"}  # categories
_BLANK_LETTERS = frozenset("\u115f\u1160\u2800\u3164\uffa0")
_IPV4_MAPPED = ipaddress.IPv6Network("::ffff:0:0/96")


def check_name(name: str) -> None:
    """Refuse names that cannot be told apart on a page."""
    categories = [unicodedata.category(character) for character in name]
    if "Cs" in categories:
        raise ValidationError("Not valid Unicode.")
    if not _CONTROL.isdisjoint(categories) or not _DECEIVING.isdisjoint(name):
        raise ValidationError("A name has no control characters.")
    if all(
        category in _BLANK or character in _BLANK_LETTERS
        for category, character in zip(categories, name, strict=True)
    ):
        raise ValidationError("A name has visible characters.")


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


class ApiKeyFields(RequestSchema):
    """What can be changed of an API key."""

    refuses_nul = True

    name = fields.String(validate=[Length(1, 100), check_name])
    allowed_cidrs = fields.List(
        Cidr(),
        validate=Length(max=50),
        metadata={"description": "Where it can be used from; an empty list: from anywhere."},
    )


class ApiKeyRequest(ApiKeyFields):
    """A new API key. Without `scopes` or `allowed_cidrs` it has those of the key that makes it."""

    name = fields.String(required=True, validate=[Length(1, 100), check_name])
    expires_at = Timestamp(load_default=None, allow_none=True)
    expires_in_days = fields.Integer(
        strict=True, load_default=None, allow_none=True, validate=Range(1, MAX_EXPIRY_DAYS)
    )
    scopes = fields.List(
        fields.String(validate=OneOf(SCOPES)), load_default=None, allow_none=True, validate=Length(1, 50)
    )


class ApiKeyRotation(RequestSchema):
    """How one API key takes another's place."""

    overlap_seconds = fields.Integer(
        strict=True,
        load_default=None,
        allow_none=True,
        validate=Range(0, MAX_OVERLAP_SECONDS),
        metadata={
            "description": "When the old key expires, unless it does so earlier; null: it goes on until it is revoked."
        },
    )
    expires_at = Timestamp(
        load_default=None,
        allow_none=True,
        metadata={
            "description": "When the new key expires; null: it lives as long as the old one was made for, from now on."
        },
    )


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
