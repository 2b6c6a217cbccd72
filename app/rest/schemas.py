"""Marshmallow building blocks: times, pages, and schemas that name unknown fields."""

import re
from datetime import UTC, datetime
from typing import Any

from marshmallow import RAISE, Schema, ValidationError, fields
from marshmallow.validate import Range

from app.core.clock import format_time
from app.core.pagination import DEFAULT_LIMIT, MAX_LIMIT

_RFC3339 = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(\.\d{1,9})?([Zz]|[+-]\d\d:\d\d)", re.ASCII)
_MICROSECOND_DIGITS = 6


class Timestamp(fields.Field[datetime]):
    """An RFC 3339 time: any offset comes in, UTC with milliseconds and `Z` goes out."""

    default_error_messages = {  # noqa: RUF012 - marshmallow's own way
        "invalid": "Not an RFC 3339 time with an offset, such as 2026-01-31T09:30:00Z."
    }

    def __init__(self, **kwargs: Any) -> None:
        metadata = {"type": "string", "format": "date-time", **kwargs.pop("metadata", {})}
        super().__init__(metadata=metadata, **kwargs)

    def _serialize(self, value: datetime | None, attr: str | None, obj: Any, **kwargs: Any) -> str | None:
        del attr, obj, kwargs
        return None if value is None else format_time(value)

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> datetime:
        del attr, data, kwargs
        match = _RFC3339.fullmatch(value) if isinstance(value, str) else None
        if match is None:
            raise self.make_error("invalid")
        text = value.upper().replace(" ", "T")
        fraction = match.group(1)
        if fraction:
            text = text.replace(
                fraction, fraction[: _MICROSECOND_DIGITS + 1].ljust(_MICROSECOND_DIGITS + 1, "0")
            )
        try:
            return datetime.fromisoformat(text).astimezone(UTC)
        except (ValueError, OverflowError):
            raise self.make_error("invalid") from None


class RequestSchema(Schema):
    """A request body: unknown fields are refused by name."""

    # A schema whose fields all refuse NUL by themselves says so, and names the field then. Any other text with it
    # cannot be kept by the database, and the whole body is refused.
    refuses_nul = False

    class Meta:
        unknown = RAISE


class EmptyBody(RequestSchema):
    """A body without fields: absent, or `{}`."""


class PageQuery(Schema):
    """How much of a list, and from where."""

    limit = fields.Integer(
        load_default=DEFAULT_LIMIT, validate=Range(1, MAX_LIMIT), metadata={"description": "Rows per page."}
    )
    cursor = fields.String(load_default=None, metadata={"description": "`next_cursor` of the answer before."})


class Texts(fields.Dict):
    """An object of strings; a fault points to its entry."""

    def __init__(self, *, allow_none_values: bool = False, **kwargs: Any) -> None:
        super().__init__(keys=fields.String(), values=fields.String(allow_none=allow_none_values), **kwargs)

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> Any:
        try:
            return super()._deserialize(value, attr, data, **kwargs)  # type: ignore[no-untyped-call]
        except ValidationError as error:
            if not isinstance(error.messages, dict):
                raise
            # marshmallow tells faults of an entry's name and value apart by a further level.
            flat = {
                name: [fault for each in faults.values() for fault in each]
                for name, faults in error.messages.items()
            }
            raise ValidationError(flat) from None


class CommaSeparated(fields.Field[list[str]]):
    """A query parameter of several words, `?status=active,expired`, from a known set."""

    def __init__(self, choices: list[str], **kwargs: Any) -> None:
        super().__init__(
            metadata={
                "type": "string",
                "pattern": f"^({'|'.join(choices)})(,({'|'.join(choices)}))*$",
                "description": f"One or several of {', '.join(choices)}, separated by commas.",
            },
            **kwargs,
        )
        self.choices = choices

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> list[str]:
        del attr, data, kwargs
        words = str(value).split(",")
        unknown = [word for word in words if word not in self.choices]
        if unknown:
            raise ValidationError(f"Must be one or several of: {', '.join(self.choices)}.")
        return list(dict.fromkeys(words))


def list_of(item: type[Schema]) -> type[Schema]:
    """Give the schema of a page of `item`."""
    return type(
        f"{item.__name__}List",
        (Schema,),
        {
            "data": fields.List(fields.Nested(item), required=True, attribute="items"),
            "next_cursor": fields.String(required=True, allow_none=True),
        },
    )
