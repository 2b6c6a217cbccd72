"""What the body of a delivery is: our envelope, a Slack message, a PagerDuty event, or the customer's own template.

A body is rendered once, when the event fans out, and every attempt sends the same bytes.
"""

import re
from collections.abc import Iterator
from dataclasses import MISSING, asdict, dataclass, fields
from typing import Any, ClassVar, NoReturn

import orjson

from app.core import json_body
from app.core.errors import FieldError, Invalid
from app.core.templates import TemplateFailed, TemplateInvalid, compile_template
from app.endpoints.headers import MASK
from app.endpoints.headlines import headline

DEFAULT = "default"
JSON = "application/json"
CONTENT_TYPES = (
    *(JSON, "application/x-ndjson", "application/x-www-form-urlencoded", "application/xml", "text/plain"),
)
SEVERITIES = ("info", "warning", "error", "critical")

# https://developer.pagerduty.com/docs/send-alert-event
MAX_PAGERDUTY_BYTES = 512_000
MAX_SUMMARY_LENGTH = 1024
# https://docs.slack.dev/reference/block-kit/blocks
MAX_SLACK_TEXT_LENGTH = 3000
MAX_SLACK_HEADER_LENGTH = 150
MAX_SLACK_FIELD_LENGTH = 2000

_SOURCE = "BotBat"
_ROUTING_KEY = re.compile(r"[A-Za-z0-9]{32}", re.ASCII)
# A routing key as an alert begins with it.
_SENT_KEY = re.compile(rb'\A\{"routing_key":"[A-Za-z0-9]{32}"')
_CUT_ENTITY = re.compile(r"&[a-z]*\Z")


@dataclass(frozen=True, slots=True)
class Rendered:
    """The body of a delivery, and what it is."""

    body: bytes
    content_type: str


@dataclass(frozen=True, slots=True)
class Format:
    """The default: the envelope as it was published. The other formats are kinds of it; their fields are options."""

    type: ClassVar[str] = DEFAULT

    def stored(self) -> Any:
        """Give what `read` and `restore` make the same format of. It may hold a secret."""
        options = asdict(self)
        return {"type": self.type, **options} if options else self.type

    def shown(self) -> Any:
        """Give what the API shows: as stored, secrets masked."""
        return self.stored()

    @staticmethod
    def masked(body: bytes) -> bytes:
        """Give a body that was rendered as the API shows it: secrets of the format masked."""
        return body

    def faults(self) -> Iterator[tuple[str, str, str]]:
        """Give an option, a code and a sentence for each that is not acceptable; all options are strings."""
        yield from ()

    def render(self, envelope: dict[str, Any], body: bytes) -> Rendered:
        """Give what is sent for an event that has this envelope and default body; raises `TemplateFailed`."""
        del envelope
        return Rendered(body, JSON)


class Slack(Format):
    """A message for an incoming webhook of Slack: https://docs.slack.dev/messaging/sending-messages-using-incoming-webhooks."""

    __slots__ = ()
    type = "slack"

    def render(self, envelope: dict[str, Any], body: bytes) -> Rendered:
        """Give the message."""
        del body
        news = headline(envelope)
        blocks: list[dict[str, Any]] = [
            {"type": "header", "text": _slack_text("plain_text", news.title, MAX_SLACK_HEADER_LENGTH)}
        ]
        if news.text:
            blocks.append(
                {"type": "section", "text": _slack_text("mrkdwn", news.text, MAX_SLACK_TEXT_LENGTH)}
            )
        if news.facts:
            shown = [
                _slack_text("mrkdwn", f"*{label}*\n{value}", MAX_SLACK_FIELD_LENGTH)
                for label, value in news.facts
            ]
            blocks.append({"type": "section", "fields": shown})
        origin = " · ".join(envelope[name] for name in ("type", "timestamp", "id"))
        blocks.append(
            {"type": "context", "elements": [_slack_text("mrkdwn", origin, MAX_SLACK_FIELD_LENGTH)]}
        )
        text = f"{news.title}\n{news.text}".strip()
        return _json({"text": _escaped(text, MAX_SLACK_TEXT_LENGTH), "blocks": blocks})


@dataclass(frozen=True, slots=True)
class PagerDuty(Format):
    """An alert for PagerDuty's Events API v2. The event's id is the key under which PagerDuty drops duplicates."""

    type: ClassVar[str] = "pagerduty"
    routing_key: str
    severity: str = "error"

    def shown(self) -> Any:
        """Give what the API shows: who has the routing key can raise alerts."""
        return {**self.stored(), "routing_key": MASK}

    @staticmethod
    def masked(body: bytes) -> bytes:
        """Give an alert without its routing key."""
        return _SENT_KEY.sub(f'{{"routing_key":"{MASK}"'.encode(), body)

    def faults(self) -> Iterator[tuple[str, str, str]]:
        """Give the options that are not acceptable."""
        if not _ROUTING_KEY.fullmatch(self.routing_key):
            yield (
                "routing_key",
                "invalid",
                "A routing key is the integration key of a service: 32 letters and digits.",
            )
        if self.severity not in SEVERITIES:
            yield "severity", "invalid", f"A severity is one of {', '.join(SEVERITIES)}."

    def render(self, envelope: dict[str, Any], body: bytes) -> Rendered:
        """Give the alert."""
        del body
        news = headline(envelope)
        summary = " ".join(f"{news.title}: {news.text}".split()) if news.text else news.title
        payload = {
            "summary": summary[:MAX_SUMMARY_LENGTH],
            "source": _SOURCE,
            "severity": self.severity,
            "timestamp": envelope["timestamp"],
            "component": envelope["type"].partition(".")[0],
            "class": envelope["type"],
            "custom_details": envelope["data"],
        }
        alert = {
            "routing_key": self.routing_key,
            "event_action": "trigger",
            "dedup_key": envelope["id"],
            "payload": payload,
        }
        rendered = _json(alert)
        if len(rendered.body) > MAX_PAGERDUTY_BYTES:
            rendered = _json({**alert, "payload": {**payload, "custom_details": dict(news.facts)}})
        return rendered


@dataclass(frozen=True, slots=True)
class Templated(Format):
    """A body of the customer's own; its variables are those of the envelope, and `event`, the envelope itself."""

    type: ClassVar[str] = "template"
    template: str
    content_type: str = JSON

    def faults(self) -> Iterator[tuple[str, str, str]]:
        """Give the options that are not acceptable."""
        try:
            compile_template(self.template)
        except TemplateInvalid as error:
            yield "template", "invalid_template", str(error)
        if self.content_type not in CONTENT_TYPES:
            yield "content_type", "invalid", f"A content type is one of {', '.join(CONTENT_TYPES)}."

    def render(self, envelope: dict[str, Any], body: bytes) -> Rendered:
        """Give the text, which has to be JSON if that is the content type."""
        del body
        text = compile_template(self.template).render({**envelope, "event": envelope})
        if self.content_type == JSON:
            _check_json(text)
        charset = "; charset=utf-8" if self.content_type == "text/plain" else ""
        return Rendered(text.encode(), self.content_type + charset)


_KINDS: dict[str, type[Format]] = {kind.type: kind for kind in (Format, Slack, PagerDuty, Templated)}


def read(value: Any) -> Format:
    """Read a format, a name or an object with `type` and its options; raises `Invalid`, naming each bad field."""
    given = {"type": value} if isinstance(value, str) else value
    if not isinstance(given, dict):
        _refuse([("", "invalid", "A format is a name, or an object with a `type`.")])
    place = "" if isinstance(value, str) else "type"
    if not isinstance(given.get("type"), str) or given["type"] not in _KINDS:
        _refuse([(place, "unknown_format", f"There are the formats {', '.join(_KINDS)}.")])
    kind = _KINDS[given["type"]]
    known = {field.name: field for field in fields(kind)}
    options = {name: option for name, option in given.items() if name != "type"}
    faults = []
    for name, option in options.items():
        if name not in known:
            faults.append((name, "unknown_field", f"The format {kind.type} has no such option."))
        elif not isinstance(option, str):
            faults.append((name, "invalid", "Must be a string."))
    for name, field in known.items():
        if field.default is MISSING and name not in options:
            faults.append((name, "required", f"The format {kind.type} needs this option."))
    if faults:
        _refuse(faults)
    read_format = kind(**options)
    if faults := list(read_format.faults()):
        _refuse(faults)
    return read_format


def restore(stored: Any) -> Format:
    """Make a format again of what it gave as `stored`; the rules for new ones may be others by now."""
    options = {"type": stored} if isinstance(stored, str) else dict(stored)
    return _KINDS[options.pop("type")](**options)


def masked(kind: str, body: bytes) -> bytes:
    """Give a body that a format of this type rendered as the API shows it."""
    return _KINDS[kind].masked(body)


def _refuse(faults: list[tuple[str, str, str]]) -> NoReturn:
    errors = [FieldError(_pointer(name), code, detail) for name, code, detail in faults]
    raise Invalid(errors[0].detail, errors=errors)


def _pointer(option: str) -> str:
    return "/format/" + option.replace("~", "~0").replace("/", "~1") if option else "/format"


def _json(value: Any) -> Rendered:
    return Rendered(json_body.dumps(value), JSON)


def _check_json(text: str) -> None:
    try:
        orjson.loads(text)
    except orjson.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno} of the result"
        hint = "The `json` filter writes values as JSON: {{ data.text | json }}."
        raise TemplateFailed(f"The result is not JSON ({place}). {hint}", None) from None


def _slack_text(kind: str, text: str, limit: int) -> dict[str, str]:
    return {"type": kind, "text": _escaped(text, limit)}


def _escaped(text: str, limit: int) -> str:
    """Write text so that Slack takes no link or mention out of it, cut between characters and not within an entity."""
    escaped = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return escaped if len(escaped) <= limit else _CUT_ENTITY.sub("", escaped[: limit - 1]) + "…"
