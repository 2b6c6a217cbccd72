"""Ids are TypeIDs: a prefix that names the kind, and a UUIDv7, so that they sort by the time of their making.

https://github.com/jetify-com/typeid/tree/main/spec
"""

from datetime import UTC, datetime

from typeid import TypeID
from typeid.errors import TypeIDException
from uuid_utils import UUID

_MILLISECONDS_SHIFT = 80
_UUID7_MAX_MILLISECONDS = 2**48 - 1


def new_id(prefix: str) -> str:
    """Make an id, larger than every earlier one of this process."""
    return str(TypeID(prefix))


def is_id(text: str, prefix: str) -> bool:
    """Tell whether `text` is a well-formed id of this kind."""
    try:
        return TypeID.from_string(text).prefix == prefix and text == text.lower()
    except TypeIDException:
        return False


def first_id_at(prefix: str, moment: datetime) -> str:
    """Give the smallest id that an object made at `moment` can have: a bound for a range over ids."""
    milliseconds = int((moment - datetime(1970, 1, 1, tzinfo=UTC)).total_seconds() * 1000)
    milliseconds = min(max(milliseconds, 0), _UUID7_MAX_MILLISECONDS)
    lowest = UUID(int=milliseconds << _MILLISECONDS_SHIFT)
    return str(TypeID.from_uuid(suffix=lowest, prefix=prefix))
