"""The event types that every workspace has: documentation that also refuses nonsense.

Events are published by our own features and by customers' programs. The latter begin with `{"text": "hi"}`
or `{}`, and grow; a schema that turned them away would protect nobody, for a reader of events has to cope
with an absent field anyway. So nothing is required, unknown fields pass, null stands for "does not apply",
and words such as channels and statuses are `examples` and not an `enum`: a channel added tomorrow must not
break a schema of today. What is refused is what no reader could use: a number where an id belongs, a
negative count, a time that is no time.

A schema is JSON Schema 2020-12 of an event's `data`. It holds no `$ref`: it is also put into `/openapi.json`,
where a reference would be looked up in that document. Beside this module, `catalogue/` holds one example per
type, as a receiver would get it.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

Schema = dict[str, Any]

_EXAMPLES = Path(__file__).with_suffix("")


@dataclass(frozen=True, slots=True)
class EventType:
    """An entry of the catalogue. `schema` and `example` are those of the event's `data`."""

    name: str
    description: str
    schema: Schema
    example: dict[str, Any]


def _id(description: str, *examples: str) -> Schema:
    return {"type": "string", "description": description, "examples": list(examples)}


def _word(description: str, *known: str) -> Schema:
    return {"type": "string", "description": description, "examples": list(known)}


def _text(description: str, *examples: str, **rules: str) -> Schema:
    field: Schema = {"type": ["string", "null"], "description": description, **rules}
    return {**field, "examples": list(examples)} if examples else field


def _time(description: str) -> Schema:
    return _text(description, "2026-03-02T09:15:05.000Z", format="date-time")


def _flag(description: str) -> Schema:
    return {"type": ["boolean", "null"], "description": description}


def _count(description: str) -> Schema:
    return {"type": ["integer", "null"], "description": description, "minimum": 0}


def _seconds(description: str) -> Schema:
    return {"type": ["number", "null"], "description": description, "minimum": 0}


def _words(description: str, *examples: str) -> Schema:
    return {
        "type": ["array", "null"],
        "description": description,
        "items": {"type": "string"},
        "examples": [list(examples)],
    }


def _object(description: str, **properties: Schema) -> Schema:
    return {"type": ["object", "null"], "description": description, "properties": properties}


def _object_or_string(description: str, **properties: Schema) -> Schema:
    """For what a small program has as one string: an id, a name, an address."""
    return {**_object(description, **properties), "type": ["object", "string", "null"]}


_CHANNEL = _word(
    "The channel that carries it.",
    *("whatsapp", "sms", "instagram", "messenger", "telegram", "webchat", "email"),
)
_CONVERSATION_ID = _text("The conversation that it belongs to.", "conv_01kjpx8tcmej9svxw1fyydhpy2")
_CONTACT_ID = _text("The contact that it concerns.", "cnt_01kjpx8tbpfdavcwy0j8zzgvmk")
_CAMPAIGN_ID = _text("The campaign that sent it.", "cmp_01kjfzhar0fp5sqs4s18q8qsn5")

_CONTACT = _object_or_string(
    "The contact, as it was when the event happened; a string is taken as its id.",
    id=_id("The contact's id.", "cnt_01kjpx8tbpfdavcwy0j8zzgvmk"),
    external_id=_text("Its id in the customer's own system.", "crm-48213"),
    name=_text("The name to show.", "Amara Okafor"),
    first_name=_text("Given name.", "Amara"),
    last_name=_text("Family name.", "Okafor"),
    phone=_text("Phone number in E.164 form.", "+447700900123"),
    email=_text("E-mail address.", "amara@example.com", format="idn-email"),
    whatsapp_id=_text("The WhatsApp id (wa_id): the number without its plus.", "447700900123"),
    language=_text("Preferred language, a BCP 47 tag.", "en-GB"),
    timezone=_text("Time zone, an IANA name.", "Europe/London"),
    country=_text("Country, ISO 3166-1 alpha-2.", "GB"),
    tags=_words("Tags that the workspace gave it.", "vip", "newsletter"),
    attributes=_object("The workspace's own fields, by name."),
    opted_in=_flag("Whether it agreed to receive campaigns."),
    created_at=_time("When it was created."),
    updated_at=_time("When it last changed."),
)
_TEMPLATE = _object_or_string(
    "The approved message template that was sent; a string is taken as its name.",
    name=_text("Name of the template.", "order_shipped"),
    language=_text("Its language, in the provider's form.", "en_GB"),
    category=_text("Category that the provider gave it.", "marketing", "utility", "authentication"),
)
_MESSAGE_TYPE = _word(
    "What the message holds.",
    *("text", "image", "video", "audio", "document", "location", "template"),
    *("interactive", "reaction", "sticker", "contacts"),
)


_MEDIA: Schema = {
    **_object(
        "The file of an image, video, audio, document or sticker message, or an array of such; "
        "a string is taken as its URL.",
        id=_text("Id of the file.", "med_01kjpx8td8e2rbpxf91hddy4eb"),
        url=_text("Where it can be fetched.", "https://media.example.com/m/1.jpg", format="uri"),
        mime_type=_text("Media type.", "image/jpeg", "application/pdf"),
        caption=_text("The text that came with it.", "It arrived like this"),
        filename=_text("Name that the sender gave it.", "invoice.pdf"),
        size_bytes=_count("Its size in bytes."),
        sha256=_text("SHA-256 of its bytes, in hexadecimal or as the channel tells it."),
    ),
    "type": ["object", "array", "string", "null"],
}


def _address(description: str, example: str) -> Schema:
    return {
        **_object_or_string(
            f"{description}: a phone number in E.164 form, an e-mail address, or the channel's own id.",
            id=_text("The channel's own id.", "447700900123"),
            phone=_text("Phone number in E.164 form.", "+447700900123"),
            name=_text("The name that the channel tells.", "Amara"),
        ),
        "examples": [example],
    }


def _actor(description: str) -> Schema:
    return _object_or_string(
        f"{description}; a string is taken as an id or a kind.",
        type=_word("What it is.", "agent", "contact", "workflow", "campaign", "api_key", "system"),
        id=_text("Its id; null where it has none.", "usr_01k94bnt00fdgsbf8bh5nv221x"),
        name=_text("The name to show.", "Jonas Weber"),
    )


def _message(sender: str, recipient: str, **properties: Schema) -> dict[str, Schema]:
    """Fields of every message event; the examples of the two addresses tell who wrote to whom."""
    return {
        "message_id": _id("The message's id.", "msg_01kjpx8td8ehbv8yhddhqbm8ae"),
        "provider_message_id": _text(
            "The provider's id of it; on WhatsApp it begins with `wamid.`.",
            "wamid.HBgMNDQ3NzAwOTAwMTIzFQIAEhgUM0EwRDhCRjE2QzREMkE3RjlFNTEA",
        ),
        "conversation_id": _CONVERSATION_ID,
        "contact_id": _CONTACT_ID,
        "channel": _CHANNEL,
        "direction": _word("`inbound` from a contact, `outbound` to one.", "inbound", "outbound"),
        "type": _MESSAGE_TYPE,
        "from": _address("Who sent it", sender),
        "to": _address("Who it was sent to", recipient),
        "contact": _CONTACT,
        **properties,
    }


_RECEIVED = _message(
    "+447700900123",
    "+442079460018",
    text=_object_or_string(
        "The text of the message; in the object form it is `body`.",
        body=_text("The text.", "Hello, is my order on its way?"),
    ),
    media=_MEDIA,
    location=_object(
        "The place of a location message.",
        latitude={"type": "number", "description": "Degrees north, WGS 84.", "minimum": -90, "maximum": 90},
        longitude={"type": "number", "description": "Degrees east, WGS 84.", "minimum": -180, "maximum": 180},
        name=_text("Name of the place.", "Borough Market"),
        address=_text("Postal address.", "8 Southwark St, London"),
    ),
    interactive=_object(
        "The choice that the contact made in an interactive message.",
        type=_word("What was chosen from.", "button_reply", "list_reply", "flow_reply"),
        id=_text("Id of the choice, as it was sent.", "track_order"),
        title=_text("Its text, as the contact saw it.", "Track my order"),
    ),
    reaction=_object_or_string(
        "The reaction; a string is taken as the emoji.",
        emoji=_text("The emoji, or null when the reaction was taken back.", "\N{THUMBS UP SIGN}"),
        message_id=_text("The message that it is a reaction to.", "msg_01kjpwzgj0etxsa152threnkhd"),
    ),
    reply_to=_object_or_string(
        "The earlier message that this one answers; a string is taken as its id.",
        message_id=_text("Its id.", "msg_01kjpwzgj0etxsa152threnkhd"),
        provider_message_id=_text(
            "The provider's id of it.", "wamid.HBgMNDQ3NzAwOTAwMTIzFQIAERgSNjRBMUM0RDhFMEI5MkY1QTcA"
        ),
        text=_text("Its text, perhaps cut short.", "Your order 10432 has been shipped."),
    ),
    contacts={
        "type": ["array", "null"],
        "description": "The contact cards of a contacts message.",
        "items": _object(
            "One card.",
            name=_text("Name on the card.", "Femi Okafor"),
            phones=_words("Phone numbers on it.", "+447700900456"),
            emails=_words("E-mail addresses on it.", "femi@example.com"),
        ),
    },
    forwarded=_flag("Whether the contact forwarded it from elsewhere."),
    sent_at=_time("When the contact sent it, as the channel tells."),
    received_at=_time("When it reached us."),
)

_DELIVERED = _message(
    "+442079460018",
    "+447700900123",
    campaign_id=_CAMPAIGN_ID,
    template=_TEMPLATE,
    sent_at=_time("When it was handed to the channel."),
    delivered_at=_time("When it reached the contact's device, as the channel tells."),
)

_READ = {**_DELIVERED, "read_at": _time("When the contact opened it, as the channel tells.")}

_CONVERSATION = {
    "conversation_id": _id("The conversation's id.", "conv_01kjpx8tcmej9svxw1fyydhpy2"),
    "status": _word("Its state after the event.", "open", "pending", "closed"),
    "channel": _CHANNEL,
    "contact_id": _CONTACT_ID,
    "contact": _CONTACT,
    "subject": _text("What it is about, where the channel has a subject.", "Order 10432"),
    "assignee": _actor("The agent or team that it is assigned to, null if nobody"),
    "tags": _words("Tags that the workspace gave it.", "orders"),
    "opened_at": _time("When it was opened."),
    "opened_by": _actor("Who opened it"),
}

_CONVERSATION_WAITING = {
    **_CONVERSATION,
    "waiting_since": _time("When the contact wrote the first message that is not answered."),
    "waiting_seconds": _seconds("From then to the event."),
}

_CONVERSATION_CLOSED = {
    **_CONVERSATION,
    "closed_at": _time("When it was closed."),
    "closed_by": _actor("Who closed it"),
    "close_reason": _text("Why it was closed.", "resolved", "inactive", "spam", "duplicate"),
    "duration_seconds": _seconds("From opened to closed."),
    "first_response_seconds": _seconds(
        "From opened to the first answer of an agent; null if there was none."
    ),
    "message_count": _count("Messages in both directions."),
    "inbound_message_count": _count("Messages from the contact."),
    "outbound_message_count": _count("Messages to the contact."),
}

_CONTACT_CREATED = {
    "contact_id": _id("The contact's id.", "cnt_01kjpx8tbpfdavcwy0j8zzgvmk"),
    "contact": _CONTACT,
    "source": _text("How it came.", "inbound_message", "import", "api", "form", "console"),
    "created_at": _time("When it was created."),
    "created_by": _actor("Who created it"),
}

_CONTACT_UPDATED = {
    "contact_id": _id("The contact's id.", "cnt_01kjpx8tbpfdavcwy0j8zzgvmk"),
    "contact": _CONTACT,
    "changed_fields": _words("Names of the contact's fields that changed.", "email", "tags"),
    "previous": _object("The values that those fields had before, by name."),
    "updated_at": _time("When it changed."),
    "updated_by": _actor("Who changed it"),
}

_CAMPAIGN_COMPLETED = {
    "campaign_id": _id("The campaign's id.", "cmp_01kjfzhar0fp5sqs4s18q8qsn5"),
    "name": _text("Its name.", "Spring sale"),
    "status": _word("How it ended.", "completed", "stopped"),
    "channel": _CHANNEL,
    "template": _TEMPLATE,
    "counts": _object(
        "Contacts, each counted once per line; receipts that come later are not in it.",
        recipients=_count("Whom it was for."),
        sent=_count("To whom a message was handed to the channel."),
        delivered=_count("Whose device it reached."),
        read=_count("Who opened it; 0 on channels without read receipts."),
        replied=_count("Who wrote back."),
        failed=_count("To whom it could not be sent or delivered."),
    ),
    "scheduled_at": _time("When it was to start; null if it was started by hand."),
    "started_at": _time("When it started."),
    "completed_at": _time("When its last message was sent or had failed."),
    "duration_seconds": _seconds("From started to completed."),
}

_API_KEY = {
    "api_key_id": _id("The key's id.", "key_01kjpx8tcmej9svxw1fyydhpy2"),
    "name": _text("The name that it was given.", "Warehouse sync"),
    "prefix": _text("Its first characters, by which it can be recognised.", "bbat_live_4fT9aQ"),
    "created_at": _time("When it was made."),
    "last_used_at": _time("When it was used last, null if never: one still in use needs a successor."),
    "expires_at": _time("The moment from which it is refused."),
}

_API_KEY_EXPIRING = {**_API_KEY, "days_left": _count("Days until then; one that has begun counts.")}

_ENDPOINT = {
    "endpoint_id": _id("The endpoint's id.", "ep_01kjpwzgj0etxsa152threnkhd"),
    "url": _text("Where it delivers to.", "https://hooks.example.com/botbat"),
    "description": _text("The description that it was given.", "Order system"),
    "status": _word("Its status from now on.", "failing", "active", "disabled"),
    "reason": _text("Why it has that status, in a sentence; null if it is active."),
    "failures_in_row": _count("Failed attempts in a row until the event."),
    "since": _time("When it was found failing; null if it was not."),
}


def _event_type(name: str, description: str, properties: dict[str, Schema]) -> EventType:
    example = json.loads((_EXAMPLES / f"{name}.json").read_text(encoding="utf-8"))
    schema = {"type": "object", "properties": properties, "additionalProperties": True}
    return EventType(name, description, schema, example)


_ALL = (
    _event_type(
        "message.received",
        "A contact sent the workspace a message, on any channel.",
        _RECEIVED,
    ),
    _event_type(
        "message.delivered",
        "The channel reported that a message of the workspace has reached the contact's device.",
        _DELIVERED,
    ),
    _event_type(
        "message.read",
        "The channel reported that the contact has opened a message of the workspace. "
        "Channels without read receipts, such as SMS, never cause it.",
        _READ,
    ),
    _event_type(
        "conversation.created",
        "A conversation was opened: by a contact's first message, or by an agent, a campaign or a workflow.",
        _CONVERSATION,
    ),
    _event_type(
        "conversation.waiting",
        "A contact waits for an answer; a filter on `waiting_seconds` picks those who have waited for too long.",
        _CONVERSATION_WAITING,
    ),
    _event_type(
        "conversation.closed",
        "A conversation was closed, by an agent or a workflow, or because nobody wrote any more.",
        _CONVERSATION_CLOSED,
    ),
    _event_type(
        "contact.created",
        "A contact was added: by its first message, an import, a form, the API or the console.",
        _CONTACT_CREATED,
    ),
    _event_type(
        "contact.updated",
        "One or more fields of a contact changed. A save that changes nothing does not cause it.",
        _CONTACT_UPDATED,
    ),
    _event_type(
        "campaign.completed",
        "A campaign ended: its last message was sent or had failed, or it was stopped.",
        _CAMPAIGN_COMPLETED,
    ),
    _event_type(
        "api_key.expiring",
        "An API key of the workspace expires within 7 days, and once more, within a day.",
        _API_KEY_EXPIRING,
    ),
    _event_type(
        "api_key.expired",
        "An API key of the workspace has expired. A key that is revoked before causes neither this nor a notice.",
        _API_KEY,
    ),
    _event_type(
        "endpoint.failing",
        "The last attempts to deliver to an endpoint have all failed. Deliveries to it go on as its policy says.",
        _ENDPOINT,
    ),
    _event_type(
        "endpoint.recovered",
        "An endpoint that was failing has taken a delivery.",
        _ENDPOINT,
    ),
    _event_type(
        "endpoint.disabled",
        "An endpoint has failed for so long that nothing is sent to it until somebody enables it.",
        _ENDPOINT,
    ),
)

BUILT_IN: Mapping[str, EventType] = MappingProxyType({event_type.name: event_type for event_type in _ALL})
"""By name, in the order of the catalogue."""
OPERATIONAL = frozenset(name for name in BUILT_IN if name.startswith(("api_key.", "endpoint.")))
"""What this service tells of itself; all others are what happens on the platform."""
