"""The rules of events: publishing, and the catalogue of types."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import orjson

from app.audit import service as audit
from app.core import json_body
from app.core.clock import now
from app.core.errors import AppError, Conflict, Invalid, NotFound, TooLarge, Unavailable, invalid_field
from app.core.ids import new_id
from app.core.pagination import Page, PageRequest, decode_cursor, encode_cursor, page_of
from app.core.unit_of_work import UnitOfWork
from app.events import payloads, repository
from app.events.catalogue import BUILT_IN
from app.events.models import ID_PREFIX, CustomEventType, Event
from config.wire import TaskName

MAX_EVENT_BYTES = 256 * 1024
MAX_BATCH = 1000
MAX_OWN_TYPES = 500
MAX_SCHEMA_BYTES = 64 * 1024
TYPE_NAME = re.compile(r"[a-z][a-z0-9_]*(\.[a-z][a-z0-9_]*)+", re.ASCII)
MAX_TYPE_NAME_LENGTH = 100


class UnknownEventType(Invalid):
    """The type is not in the catalogue."""

    code = "unknown_event_type"
    title = "Unknown event type"


class PayloadInvalid(Invalid):
    """The data breaks its type's schema."""

    code = "payload_invalid"
    title = "The data does not match the schema of its event type"


class EventTooLarge(TooLarge):
    """More bytes than an event may have."""

    code = "event_too_large"
    title = "The event is too large"


class BuiltInEventType(Conflict):
    """Built-in types are the same for everybody."""

    code = "built_in_event_type"
    title = "Built-in event types cannot be changed"


class PayloadExpunged(Conflict):
    """What would be sent is gone."""

    code = "payload_expunged"
    title = "The event's payload has been expunged"


@dataclass(frozen=True, slots=True)
class Draft:
    """An event as its publisher gives it."""

    type: str
    data: dict[str, Any]
    external_id: str | None = None
    occurred_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Receipt:
    """What a publisher gets back."""

    id: str
    external_id: str | None
    type: str
    occurred_at: datetime
    created_at: datetime
    duplicate: bool


@dataclass(frozen=True, slots=True)
class CatalogueEntry:
    """An event type as it is shown."""

    name: str
    description: str
    schema: Any
    example: Any
    built_in: bool


def publish(uow: UnitOfWork, *, workspace_id: str, draft: Draft) -> Receipt:
    """Publish an event; raises `Invalid` or `TooLarge`. A repeated `external_id` gives the first event's receipt."""
    outcome = publish_many(uow, workspace_id=workspace_id, drafts=[draft])[0]
    if isinstance(outcome, AppError):
        raise outcome
    return outcome


def publish_many(
    uow: UnitOfWork, *, workspace_id: str, drafts: Sequence[Draft | AppError]
) -> list[Receipt | AppError]:
    """Publish events in one statement; gives per draft its receipt or why it was refused. An error passes through."""
    own_types = _own_types(uow, workspace_id, drafts)
    moment = now()
    outcomes: list[Receipt | AppError] = []
    rows: list[dict[str, Any]] = []
    for draft in drafts:
        if isinstance(draft, AppError):
            outcomes.append(draft)
            continue
        refusal = _refusal(draft, own_types)
        if refusal:
            outcomes.append(refusal)
            continue
        event_id = new_id(ID_PREFIX)
        occurred_at = draft.occurred_at or moment
        data = json_body.dumps(draft.data)
        if len(data) > MAX_EVENT_BYTES:
            outcomes.append(EventTooLarge(f"An event may have up to {MAX_EVENT_BYTES} bytes."))
            continue
        rows.append(
            {
                "id": event_id,
                "workspace_id": workspace_id,
                "type": draft.type,
                "external_id": draft.external_id,
                "occurred_at": occurred_at,
                "created_at": moment,
                "body": envelope(event_id, draft.type, occurred_at, data),
            }
        )
        outcomes.append(
            Receipt(event_id, draft.external_id, draft.type, occurred_at, moment, duplicate=False)
        )
    if rows:
        outcomes = _insert(uow, workspace_id, rows, outcomes)
    return outcomes


def rehearse(uow: UnitOfWork, *, workspace_id: str, draft: Draft) -> Any:
    """Give the envelope that publishing would make, as filters see it; nothing is stored. Raises as `publish` does."""
    data = _checked_data(uow, workspace_id, draft)
    return json_body.read_stored(envelope(new_id(ID_PREFIX), draft.type, draft.occurred_at or now(), data))


def make_unpublished(uow: UnitOfWork, *, workspace_id: str, draft: Draft) -> Event:
    """Make an event that goes to nobody; its deliveries are the caller's to make. Raises as `publish` does."""
    data = _checked_data(uow, workspace_id, draft)
    event_id, moment = new_id(ID_PREFIX), now()
    event = Event(
        id=event_id,
        workspace_id=workspace_id,
        type=draft.type,
        occurred_at=draft.occurred_at or moment,
        created_at=moment,
        body=envelope(event_id, draft.type, draft.occurred_at or moment, data),
    )
    uow.session.add(event)
    uow.session.flush()
    return event


def example(uow: UnitOfWork, *, workspace_id: str, name: str) -> dict[str, Any]:
    """Give the example of a type, empty where the workspace gave none; raises `UnknownEventType`."""
    try:
        return get_type(uow, workspace_id=workspace_id, name=name).example or {}
    except NotFound:
        raise _unknown_type(name) from None


def envelope(event_id: str, event_type: str, occurred_at: datetime, data: bytes) -> bytes:
    """Give the body that is signed, sent and logged: made once, the same bytes on every attempt."""
    return _head(event_id, event_type, occurred_at)[:-1] + b',"data":' + data + b"}"


def data_of(body: bytes) -> Any:
    """Give the payload inside an envelope; None when it has been expunged."""
    return json_body.read_stored(body).get("data")


def get(uow: UnitOfWork, *, workspace_id: str, event_id: str, hold: bool = False) -> Event:
    """Give an event; `hold` keeps it as it is until the end of the transaction. Raises `NotFound`."""
    event = repository.find(uow.session, workspace_id, event_id, hold=hold)
    if event is None:
        raise NotFound
    return event


def expunge(uow: UnitOfWork, *, workspace_id: str, event_id: str) -> None:
    """Erase an event's payload, and let it be fanned out no more; what has been made of it is the caller's.

    Again changes nothing. Raises `NotFound`.
    """
    event = repository.find_for_update(uow.session, workspace_id, event_id)
    if event is None:
        raise NotFound
    repository.claim_fan_out(uow.session, workspace_id, event_id)
    if event.payload_expunged_at is None:
        event.body = _head(event.id, event.type, event.occurred_at)
        event.payload_expunged_at = now()
        uow.session.flush()
        audit.record(uow, workspace_id=workspace_id, action="event.payload_expunged", resource_id=event_id)


def list_events(
    uow: UnitOfWork,
    *,
    workspace_id: str,
    page: PageRequest,
    event_type: str | None = None,
    since: datetime | None = None,
    until: datetime | None = None,
) -> Page[Event]:
    """Give a page of events, newest first."""
    rows = repository.list_page(
        uow.session, workspace_id, page, event_type=event_type, since=since, until=until
    )
    return page_of(rows, page)


def get_type(uow: UnitOfWork, *, workspace_id: str, name: str) -> CatalogueEntry:
    """Give a catalogue entry; raises `NotFound`."""
    if name in BUILT_IN:
        return _built_in(name)
    rows = repository.find_types(uow.session, workspace_id, [name])
    if not rows:
        raise NotFound
    return _own(rows[0])


def list_types(uow: UnitOfWork, *, workspace_id: str, limit: int, cursor: str | None) -> Page[CatalogueEntry]:
    """Give a page of the catalogue: the built-in types, then the workspace's own by name."""
    entries = [_built_in(name) for name in BUILT_IN]
    entries += [_own(row) for row in repository.list_types(uow.session, workspace_id)]
    names = [entry.name for entry in entries]
    start = 0
    if cursor is not None:
        after = decode_cursor(cursor, lambda text: bool(TYPE_NAME.fullmatch(text)))
        if after in BUILT_IN:
            start = names.index(after) + 1
        else:
            # By name, not by place: the type itself may be gone meanwhile.
            start = len(BUILT_IN) + sum(name <= after for name in names[len(BUILT_IN) :])
    part = entries[start : start + limit]
    return Page(part, encode_cursor(part[-1].name) if start + limit < len(entries) else None)


def put_type(
    uow: UnitOfWork, *, workspace_id: str, name: str, description: str, schema: Any, example: Any
) -> CatalogueEntry:
    """Add or replace one of the workspace's own types; raises `Invalid` or `BuiltInEventType`."""
    if name in BUILT_IN:
        raise BuiltInEventType
    if not TYPE_NAME.fullmatch(name) or len(name) > MAX_TYPE_NAME_LENGTH:
        raise invalid_field(
            "/name",
            "invalid",
            f"A type is named like `order.created`, in up to {MAX_TYPE_NAME_LENGTH} lower-case letters.",
        )
    if schema is not None:
        _check_schema(schema, example)
    rows = repository.find_types(uow.session, workspace_id, [name])
    if not rows and len(repository.list_types(uow.session, workspace_id)) >= MAX_OWN_TYPES:
        raise invalid_field("/name", "too_many", f"A workspace has up to {MAX_OWN_TYPES} types of its own.")
    fields = {"description": description, "schema": schema, "example": example}
    repository.put_type(uow, {"workspace_id": workspace_id, "name": name, **fields})
    if not rows:
        _record(uow, workspace_id, "created", name)
    elif changed := audit.changed_fields(vars(rows[0]), fields):
        _record(uow, workspace_id, "updated", name, changed)
    return CatalogueEntry(name, description, schema, example, built_in=False)


def delete_type(uow: UnitOfWork, *, workspace_id: str, name: str) -> None:
    """Remove one of the workspace's own types; events of it stay. Raises `NotFound` or `BuiltInEventType`."""
    if name in BUILT_IN:
        raise BuiltInEventType
    if not repository.delete_type(uow.session, workspace_id, name):
        raise NotFound
    _record(uow, workspace_id, "deleted", name)


def unknown_types(uow: UnitOfWork, *, workspace_id: str, names: Sequence[str]) -> list[str]:
    """Give those of `names` that the catalogue lacks."""
    missing = [name for name in names if name not in BUILT_IN]
    if not missing:
        return []
    known = {row.name for row in repository.find_types(uow.session, workspace_id, missing)}
    return [name for name in missing if name not in known]


def any_fan_out(uow: UnitOfWork) -> bool:
    """Tell whether an event of any workspace waits for its fan-out."""
    return repository.any_fan_out(uow.session)


def claim_fan_outs(uow: UnitOfWork, *, limit: int) -> list[tuple[str, str, str]]:
    """Take duties to fan out, of all workspaces: (workspace id, event id, type). The caller makes the deliveries."""
    return repository.claim_fan_outs(uow, limit)


def claim_fan_out(uow: UnitOfWork, *, workspace_id: str, event_id: str) -> bool:
    """Take the duty to fan out one event; False when there is none. Waits for whoever is doing so."""
    return repository.claim_fan_out(uow.session, workspace_id, event_id)


def put_back_fan_outs(uow: UnitOfWork, *, rows: Sequence[tuple[str, str, str]]) -> None:
    """Give back claimed duties that have to wait for another transaction."""
    repository.add_fan_outs(uow, rows)


def _head(event_id: str, event_type: str, occurred_at: datetime) -> bytes:
    timestamp = occurred_at.astimezone(UTC).isoformat(timespec="milliseconds")[:-6] + "Z"
    return orjson.dumps({"id": event_id, "type": event_type, "timestamp": timestamp})


def _check_schema(schema: Any, example: Any) -> None:
    if not isinstance(schema, dict | bool):  # the validator would read a string as the text of a schema
        raise invalid_field("/schema", "invalid_schema", "A JSON Schema is an object, true or false.")
    if len(json_body.dumps(schema)) > MAX_SCHEMA_BYTES:
        raise invalid_field("/schema", "too_large", f"A schema may have up to {MAX_SCHEMA_BYTES} bytes.")
    try:
        payloads.check_schema(schema)
    except payloads.SchemaNotUsable as error:
        raise invalid_field("/schema", "invalid_schema", f"Not a usable JSON Schema: {error}") from None
    if example is not None and (errors := payloads.faults(schema, example, "/example")):
        raise PayloadInvalid("The example does not match the schema.", errors=errors)


def _record(uow: UnitOfWork, workspace_id: str, verb: str, name: str, changed: Sequence[str] = ()) -> None:
    audit.record(
        uow, workspace_id=workspace_id, action=f"event_type.{verb}", resource_id=name, changed=changed
    )


def _own_types(
    uow: UnitOfWork, workspace_id: str, drafts: Sequence[Draft | AppError]
) -> dict[str, CustomEventType]:
    names = {draft.type for draft in drafts if isinstance(draft, Draft) and draft.type not in BUILT_IN}
    if not names:
        return {}
    return {row.name: row for row in repository.find_types(uow.session, workspace_id, names)}


def _checked_data(uow: UnitOfWork, workspace_id: str, draft: Draft) -> bytes:
    if refusal := _refusal(draft, _own_types(uow, workspace_id, [draft])):
        raise refusal
    data = json_body.dumps(draft.data)
    if len(data) > MAX_EVENT_BYTES:
        raise EventTooLarge(f"An event may have up to {MAX_EVENT_BYTES} bytes.")
    return data


def _unknown_type(name: str) -> UnknownEventType:
    detail = f"There is no event type {name[:MAX_TYPE_NAME_LENGTH]!r}; GET /v1/event-types lists them."
    return UnknownEventType(detail, errors=invalid_field("/type", "unknown_event_type", detail).errors)


def _refusal(draft: Draft, own_types: dict[str, CustomEventType]) -> AppError | None:
    if draft.type in BUILT_IN:
        errors = payloads.built_in_faults(draft.type, draft.data, "/data")
    elif draft.type in own_types:
        schema = own_types[draft.type].schema
        errors = payloads.faults(schema, draft.data, "/data") if schema is not None else []
    else:
        return _unknown_type(draft.type)
    if errors:
        return PayloadInvalid(f"{errors[0].pointer}: {errors[0].detail}", errors=errors)
    return None


def _insert(
    uow: UnitOfWork, workspace_id: str, rows: list[dict[str, Any]], outcomes: list[Receipt | AppError]
) -> list[Receipt | AppError]:
    new = repository.insert_new(uow, rows)
    if new:
        uow.ring(TaskName.EVENTS_FAN_OUT)
    if len(new) == len(rows):
        return outcomes
    repeated = {row["external_id"] for row in rows if row["id"] not in new}
    first = repository.ids_by_external_id(uow.session, workspace_id, repeated)
    return [
        outcome
        if isinstance(outcome, AppError) or outcome.id in new
        else _duplicate(first.get(str(outcome.external_id)))
        for outcome in outcomes
    ]


def _duplicate(event: Event | None) -> Receipt | AppError:
    if event is None:  # retention has taken it, and takes its id in a moment
        return Unavailable(
            "The first event with this `external_id` is being deleted, as old as it is. Publish yours again.",
            headers={"Retry-After": "60"},
        )
    return Receipt(
        event.id, event.external_id, event.type, event.occurred_at, event.created_at, duplicate=True
    )


def _built_in(name: str) -> CatalogueEntry:
    entry = BUILT_IN[name]
    return CatalogueEntry(name, entry.description, entry.schema, entry.example, built_in=True)


def _own(row: CustomEventType) -> CatalogueEntry:
    return CatalogueEntry(row.name, row.description, row.schema, row.example, built_in=False)
