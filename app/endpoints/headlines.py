"""An event told to people: a title, what was said, and its plain facts, for pagers and chats.

Events may hold any JSON, so nothing here relies on a field being there or being what the catalogue says.
"""

from dataclasses import dataclass
from typing import Any

from app.core import json_body

MAX_FACTS = 10

_MAX_FACT_LENGTH = 300
_MAX_TITLE_LENGTH = 150
_SECONDS = "_seconds"
# What the title says, and the fields of `data` of which the first that is there ends it.
_TITLES: dict[str, tuple[str, tuple[str, ...]]] = {
    "message.received": ("Message from", ("contact", "from", "contact_id")),
    "message.delivered": ("Message delivered to", ("contact", "to", "contact_id")),
    "message.read": ("Message read by", ("contact", "to", "contact_id")),
    "conversation.created": ("Conversation opened with", ("contact", "contact_id")),
    "conversation.closed": ("Conversation closed with", ("contact", "contact_id")),
    "conversation.waiting": ("Conversation waiting:", ("contact", "contact_id")),
    "contact.created": ("Contact created:", ("contact", "contact_id")),
    "contact.updated": ("Contact updated:", ("contact", "contact_id")),
    "campaign.completed": ("Campaign completed:", ("name", "campaign_id")),
    "api_key.expiring": ("API key expires soon:", ("name", "prefix", "api_key_id")),
    "api_key.expired": ("API key has expired:", ("name", "prefix", "api_key_id")),
    "endpoint.failing": ("Endpoint failing:", ("endpoint", "url", "endpoint_id")),
    "endpoint.recovered": ("Endpoint recovered:", ("endpoint", "url", "endpoint_id")),
    "endpoint.disabled": ("Endpoint disabled:", ("endpoint", "url", "endpoint_id")),
}
_NAMES = ("name", "title", "phone", "email", "url", "id")


@dataclass(frozen=True, slots=True)
class Headline:
    """What a person is told. The title is one line that is never blank; `text` may be empty."""

    title: str
    text: str
    facts: tuple[tuple[str, str], ...]  # up to MAX_FACTS labels, each with a value that is not blank


def headline(envelope: dict[str, Any]) -> Headline:
    """Tell an event; never raises, whatever its data is."""
    data = envelope["data"] if isinstance(envelope["data"], dict) else {}
    beginning, fields = _TITLES.get(envelope["type"], (_words(envelope["type"].replace(".", " ")), ()))
    subject = next((shown for name in fields if (shown := _shown(data.get(name)))), "")
    said = data.get("text")
    said = said.get("body") if isinstance(said, dict) else said
    # Ids come last: what does not fit is theirs.
    names = sorted((name for name in data if name != "text"), key=lambda name: name.endswith("_id"))
    facts = [(_label(name), _value(name, data[name])) for name in names]
    return Headline(
        title=_cut(f"{beginning} {subject}" if subject else beginning.rstrip(":"), _MAX_TITLE_LENGTH),
        text=said.strip() if isinstance(said, str) else "",
        facts=tuple((label, value) for label, value in facts if label and value)[:MAX_FACTS],
    )


def _label(name: str) -> str:
    return _cut(_words(name.removesuffix(_SECONDS)), _MAX_FACT_LENGTH)


def _value(name: str, value: Any) -> str:
    if name.endswith(_SECONDS) and type(value) in (int, float) and 0 <= value < 10**9:
        return _duration(value)
    return _shown(value)


def _shown(value: Any) -> str:
    """Give a value in one line, an object by what names it; empty for what tells nothing."""
    if value is None or isinstance(value, bool):
        return {None: "", True: "yes", False: "no"}[value]
    if isinstance(value, dict):
        named = next((shown for name in _NAMES if (shown := _plain(value.get(name)))), "")
        members = (
            f"{_words(name).lower()} {shown}" for name, each in value.items() if (shown := _plain(each))
        )
        return _cut(named or ", ".join(members), _MAX_FACT_LENGTH)
    if isinstance(value, list):
        return _cut(", ".join(filter(None, map(_plain, value))), _MAX_FACT_LENGTH)
    return _plain(value)


def _plain(value: Any) -> str:
    if isinstance(value, str):
        return _cut(" ".join(value.split()), _MAX_FACT_LENGTH)
    if type(value) in (int, float):
        return _cut(json_body.dumps(value).decode(), _MAX_FACT_LENGTH)
    return ""


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    parts = ((hours, "h"), (minutes, "min"), (rest, "s"))
    return " ".join(f"{count} {unit}" for count, unit in parts if count) or "0 s"


def _words(name: str) -> str:
    words = " ".join(name.replace("_", " ").split())
    return words[:1].upper() + words[1:]


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"
