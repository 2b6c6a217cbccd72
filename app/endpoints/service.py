"""The rules of endpoints."""

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import orjson
import structlog

from app.audit import service as audit
from app.core import conditions, json_body
from app.core.crypto import DecryptionError
from app.core.egress_policy import UrlRefused
from app.core.errors import FieldError, Invalid, NotFound, invalid_field
from app.core.ids import new_id
from app.core.pagination import Page, PageRequest, page_of
from app.core.signing import SigningKey, generate_secret, signing_key
from app.core.templates import TemplateFailed
from app.core.unit_of_work import UnitOfWork
from app.endpoints import formats, matching, queues, repository
from app.endpoints import headers as header_rules
from app.endpoints.formats import Format
from app.endpoints.models import ID_PREFIX, SERVED, Endpoint, EndpointQueue, EndpointStatus
from app.endpoints.policy import HOLD, Policy, read_policy
from app.endpoints.subscriptions import EVERYTHING, is_pattern
from app.events import service as events
from config.wire import TaskName

log = structlog.get_logger()

MAX_DESCRIPTION_LENGTH = 500
MAX_SUBSCRIPTIONS = 200
DEFAULT_OVERLAP_SECONDS = 86_400
MAX_OVERLAP_SECONDS = 7 * 86_400
_OWN_SECRET = re.compile(r"[\x20-\x7e]{16,256}", re.ASCII)


@dataclass(frozen=True, slots=True)
class EndpointView:
    """An endpoint as it is shown: no secret."""

    id: str
    url: str
    description: str
    status: str
    status_reason: str | None
    events: list[str]
    event_count: int
    filter: Any
    headers: dict[str, str]
    format: Any
    policy: dict[str, Any]
    created_at: datetime
    updated_at: datetime
    last_attempt_at: datetime | None
    last_success_at: datetime | None
    signing_secret: str | None = None  # in the creating answer alone


@dataclass(frozen=True, slots=True)
class Target:
    """What a pump needs to send to an endpoint; secrets in the clear, in memory only."""

    endpoint_id: str
    workspace_id: str
    active: bool
    url: str
    headers: tuple[tuple[str, str], ...]
    signing_keys: tuple[SigningKey, ...]  # newest first
    policy: Policy
    version: datetime
    overlap_ends_at: datetime | None = None  # from then on the first key signs alone

    def keys_at(self, moment: datetime) -> tuple[SigningKey, ...]:
        """Give the keys that sign at this moment, newest first."""
        if self.overlap_ends_at is None or moment < self.overlap_ends_at:
            return self.signing_keys
        return self.signing_keys[:1]


def create(
    uow: UnitOfWork,
    *,
    workspace_id: str,
    url: str,
    events: Sequence[str],
    description: str = "",
    signing_secret: str | None = None,
    filter: Any = None,  # noqa: A002 - the contract's word
    headers: dict[str, str] | None = None,
    format: Any = formats.DEFAULT,  # noqa: A002 - the contract's word
    policy: dict[str, Any] | None = None,
) -> EndpointView:
    """Make an endpoint, active at once; the answer has its signing secret. Raises `Invalid`, naming the field."""
    secret = generate_secret() if signing_secret is None else signing_secret
    _check_secret(secret)
    given_format = formats.read(format)
    endpoint_id = new_id(ID_PREFIX)
    moment = repository.database_time(uow.session)
    row = Endpoint(
        id=endpoint_id,
        workspace_id=workspace_id,
        url=_checked_url(uow, url),
        description=description,
        status=EndpointStatus.ACTIVE.value,
        events=_checked_events(uow, workspace_id, events),
        filter=_checked_filter(filter),
        format=given_format.type,
        format_options=None
        if given_format.type == formats.DEFAULT
        else _seal_format(uow, workspace_id, endpoint_id, given_format),
        headers=_seal_headers(uow, workspace_id, endpoint_id, _checked_headers(headers or {})),
        signing_secret=uow.resources.secret_box.encrypt(
            secret, *_place("signing_secret", endpoint_id, workspace_id)
        ),
        policy=read_policy(policy or {}).stored(),
        created_at=moment,
        updated_at=moment,
    )
    uow.session.add(row)
    uow.session.flush()
    uow.session.add(EndpointQueue(endpoint_id=endpoint_id))
    uow.session.flush()
    _record(uow, "created", row)
    return _view(uow, row, None, signing_secret=secret)


def get(uow: UnitOfWork, *, workspace_id: str, endpoint_id: str) -> EndpointView:
    """Give an endpoint; raises `NotFound`."""
    return _views(uow, [find(uow, workspace_id=workspace_id, endpoint_id=endpoint_id)])[0]


def find(uow: UnitOfWork, *, workspace_id: str, endpoint_id: str, lock: bool = False) -> Endpoint:
    """Give an endpoint's row; raises `NotFound`."""
    row = repository.find(uow.session, workspace_id, endpoint_id, lock=lock)
    if row is None:
        raise NotFound
    return row


def list_endpoints(
    uow: UnitOfWork, *, workspace_id: str, page: PageRequest, statuses: Collection[str] | None
) -> Page[EndpointView]:
    """Give a page of endpoints, newest first."""
    rows = page_of(repository.list_page(uow.session, workspace_id, page, statuses), page)
    return Page(_views(uow, rows.items), rows.next_cursor)


def update(uow: UnitOfWork, *, workspace_id: str, endpoint_id: str, changes: dict[str, Any]) -> EndpointView:
    """Change the given fields. `policy` and `headers` are merged; a header set to None is removed.

    A format is given whole. What was rendered before is sent as it was rendered.

    A signing secret given here signs alone from now on: no overlap, and one that is going on ends.
    """
    row = find(uow, workspace_id=workspace_id, endpoint_id=endpoint_id, lock=True)
    before = _kept(row, changes)
    if "url" in changes:
        row.url = _checked_url(uow, changes["url"])
    if "events" in changes:
        row.events = _checked_events(uow, workspace_id, changes["events"])
    if "filter" in changes:
        row.filter = _checked_filter(changes["filter"])
    if "headers" in changes:
        row.headers = _resealed_headers(uow, row, changes["headers"] or {})
    if "policy" in changes:
        row.policy = read_policy({**row.policy, **changes["policy"]}).stored()
    if "signing_secret" in changes:
        _replace_secret(uow, row, changes["signing_secret"])
    row.description = changes.get("description", row.description)
    if "format" in changes:
        _replace_format(uow, row, changes["format"])
    row.updated_at = repository.database_time(uow.session)
    uow.session.flush()
    if changed := audit.changed_fields(before, _kept(row, changes)):
        _record(uow, "updated", row, changed)
    if "policy" in changes:
        queues.set_hold(uow, endpoint_id=endpoint_id, holds=row.policy["when_failing"] == HOLD)
        # A rate limit that is lifted may have put off what waits, for up to a day.
        queues.wake(uow, endpoint_ids=[endpoint_id])
        uow.ring(TaskName.DELIVERIES_PUMP)
    return _views(uow, [row])[0]


def set_status(
    uow: UnitOfWork, *, workspace_id: str, endpoint_id: str, status: EndpointStatus
) -> EndpointView:
    """Change the state; what waits is the caller's to wake. Who resumes an endpoint gives it another chance."""
    row = find(uow, workspace_id=workspace_id, endpoint_id=endpoint_id, lock=True)
    if row.status != status.value:
        row.status = status.value
        row.status_reason = None
        if status is EndpointStatus.ACTIVE:
            queues.start_over(uow, endpoint_id=endpoint_id)
        row.updated_at = repository.database_time(uow.session)
        uow.session.flush()
        _record(uow, "paused" if status is EndpointStatus.PAUSED else "resumed", row, ["status"])
    return _views(uow, [row])[0]


def delete(uow: UnitOfWork, *, workspace_id: str, endpoint_id: str) -> None:
    """Delete an endpoint and its secrets for good; its deliveries are the caller's to cancel. Raises `NotFound`."""
    row = find(uow, workspace_id=workspace_id, endpoint_id=endpoint_id, lock=True)
    uow.session.delete(row)
    uow.session.flush()
    _record(uow, "deleted", row)


def reveal_secret(uow: UnitOfWork, *, workspace_id: str, endpoint_id: str) -> dict[str, Any]:
    """Give the signing secret and those before it that still sign, and record that they were shown."""
    row = find(uow, workspace_id=workspace_id, endpoint_id=endpoint_id)
    _record(uow, "secret_revealed", row)
    previous = []
    expires_at = row.previous_secret_expires_at
    if expires_at is not None and expires_at > repository.database_time(uow.session):
        previous = [
            {"signing_secret": _open_secret(uow, row, "previous_signing_secret"), "expires_at": expires_at}
        ]
    return {"signing_secret": _open_secret(uow, row), "previous": previous}


def rotate_secret(
    uow: UnitOfWork,
    *,
    workspace_id: str,
    endpoint_id: str,
    signing_secret: str | None = None,
    overlap_seconds: int = DEFAULT_OVERLAP_SECONDS,
) -> dict[str, Any]:
    """Sign with a new secret from now on, and for `overlap_seconds` with the one before it as well.

    An older one that was still signing ceases to. The answer has the new secret. Raises `NotFound` or `Invalid`.
    """
    row = find(uow, workspace_id=workspace_id, endpoint_id=endpoint_id, lock=True)
    old = _open_secret(uow, row)
    if signing_secret == old:
        # Else a rotation that is sent twice would drop the secret that receivers still have.
        raise invalid_field("/signing_secret", "unchanged", "This is the endpoint's signing secret already.")
    new = generate_secret() if signing_secret is None else signing_secret
    _replace_secret(uow, row, new)
    row.updated_at = repository.database_time(uow.session)
    if overlap_seconds:
        row.previous_signing_secret = uow.resources.secret_box.encrypt(
            old, *_place("previous_signing_secret", endpoint_id, workspace_id)
        )
        row.previous_secret_expires_at = row.updated_at + timedelta(seconds=overlap_seconds)
    uow.session.flush()
    _record(uow, "secret_rotated", row)
    return {"signing_secret": new, "previous_expires_at": row.previous_secret_expires_at}


def forget_ended_secrets(uow: UnitOfWork) -> None:
    """Delete the previous secrets of all workspaces that no longer sign."""
    repository.forget_ended_secrets_all_workspaces(uow.session)


def match(
    uow: UnitOfWork, *, workspace_id: str, draft: events.Draft, page: PageRequest
) -> Page[matching.Verdict]:
    """Tell for a page of endpoints whether they would get an event; nothing is stored. Raises as publishing does."""
    envelope = events.rehearse(uow, workspace_id=workspace_id, draft=draft)
    rows = page_of(repository.list_page(uow.session, workspace_id, page, None), page)
    return Page([matching.judge(row, envelope) for row in rows.items], rows.next_cursor)


def preview(
    uow: UnitOfWork,
    *,
    workspace_id: str,
    format: Any,  # noqa: A002 - the contract's word
    type: str,  # noqa: A002 - the contract's word
    data: dict[str, Any] | None,
) -> dict[str, str]:
    """Give the body and content type that an event would have in a format, secrets masked; nothing is stored.

    Without `data` it is the example of the type. Raises `Invalid`, also where the template fails on the event.
    """
    given_format = formats.read(format)
    if data is None:
        data = events.example(uow, workspace_id=workspace_id, name=type)
    envelope = events.rehearse(uow, workspace_id=workspace_id, draft=events.Draft(type, data))
    try:
        rendered = given_format.render(envelope, json_body.dumps(envelope))
    except TemplateFailed as error:
        raise invalid_field("/format/template", "template_failed", str(error)) from None
    return {"body": given_format.masked(rendered.body).decode(), "content_type": rendered.content_type}


def list_subscriptions(uow: UnitOfWork, *, workspace_ids: Collection[str]) -> Sequence[Any]:
    """Give (id, workspace_id, events, filter, format, format_options) of endpoints, locked against deletion."""
    return repository.list_subscriptions(uow.session, workspace_ids)


def list_formats(uow: UnitOfWork, *, endpoint_ids: Collection[str]) -> Sequence[Any]:
    """Give (id, workspace_id, format, format_options) of the endpoints of deliveries; who is gone is absent."""
    return repository.list_formats_all_workspaces(uow.session, endpoint_ids)


def open_format(uow: UnitOfWork, row: Any) -> Format:
    """Give the format of an endpoint, or of a row of `list_subscriptions` or `list_formats`; it may hold secrets.

    Raises `DecryptionError`.
    """
    if row.format_options is None:
        return Format()
    place = _place("format_options", row.id, row.workspace_id)
    return formats.restore(
        json_body.read_stored(uow.resources.secret_box.decrypt(row.format_options, *place))
    )


def refresh_targets(uow: UnitOfWork, *, known: dict[str, Target | None]) -> dict[str, Target | None]:
    """Give what a pump needs for each endpoint; None for one that is gone. Unchanged ones are taken from `known`."""
    versions = repository.list_versions_all_workspaces(uow.session, list(known))
    changed = [
        endpoint_id
        for endpoint_id, version in versions.items()
        if (target := known[endpoint_id]) is None or target.version != version
    ]
    fresh = {row.id: _target(uow, row) for row in repository.list_by_ids_all_workspaces(uow.session, changed)}
    return {
        endpoint_id: fresh.get(endpoint_id, known[endpoint_id]) if endpoint_id in versions else None
        for endpoint_id in known
    }


def list_versions(uow: UnitOfWork, *, endpoint_ids: Collection[str]) -> dict[str, datetime]:
    """Give the versions of endpoints that a pump has leased; those that are gone are absent."""
    return repository.list_versions_all_workspaces(uow.session, endpoint_ids)


def _record(uow: UnitOfWork, verb: str, row: Endpoint, changed: Sequence[str] = ()) -> None:
    audit.record(
        uow,
        workspace_id=row.workspace_id,
        action=f"endpoint.{verb}",
        resource_id=row.id,
        changed=changed,
    )


def _target(uow: UnitOfWork, row: Endpoint) -> Target:
    try:
        return _open_target(uow, row)
    except DecryptionError:
        # Its deliveries wait; the other endpoints that the pump serves do not.
        log.exception("endpoint.secrets_unreadable", endpoint_id=row.id)
        return Target(
            endpoint_id=row.id,
            workspace_id=row.workspace_id,
            active=False,
            url=row.url,
            headers=(),
            signing_keys=(),
            policy=read_policy(row.policy),
            version=row.updated_at,
        )


def _open_target(uow: UnitOfWork, row: Endpoint) -> Target:
    columns = ["signing_secret"]
    if row.previous_signing_secret is not None:
        columns.append("previous_signing_secret")
    open_format(uow, row)  # a delivery that is not rendered yet has to wait as well
    return Target(
        endpoint_id=row.id,
        workspace_id=row.workspace_id,
        active=row.status in SERVED,
        url=row.url,
        headers=tuple(_open_headers(uow, row).items()),
        signing_keys=tuple(signing_key(_open_secret(uow, row, column)) for column in columns),
        policy=read_policy(row.policy),
        version=row.updated_at,
        overlap_ends_at=row.previous_secret_expires_at,
    )


def _views(uow: UnitOfWork, rows: Sequence[Endpoint]) -> list[EndpointView]:
    found = {
        queue.endpoint_id: queue for queue in repository.list_queues(uow.session, [row.id for row in rows])
    }
    return [_view(uow, row, found.get(row.id)) for row in rows]


def _view(
    uow: UnitOfWork, row: Endpoint, queue: EndpointQueue | None, *, signing_secret: str | None = None
) -> EndpointView:
    return EndpointView(
        id=row.id,
        url=row.url,
        description=row.description,
        status=row.status,
        status_reason=row.status_reason,
        events=row.events,
        event_count=len(row.events),
        filter=row.filter,
        headers=dict.fromkeys(_open_headers(uow, row), header_rules.MASK),
        format=open_format(uow, row).shown(),
        policy=read_policy(row.policy).stored(),
        created_at=row.created_at,
        updated_at=row.updated_at,
        last_attempt_at=queue.last_attempt_at if queue else None,
        last_success_at=queue.last_success_at if queue else None,
        signing_secret=signing_secret,
    )


def _checked_url(uow: UnitOfWork, url: str) -> str:
    try:
        return uow.resources.egress_policy.check_url(url)
    except UrlRefused as error:
        raise invalid_field("/url", error.code, error.detail) from None


def _checked_events(uow: UnitOfWork, workspace_id: str, given: Sequence[str]) -> list[str]:
    names = list(dict.fromkeys(given))
    if not 1 <= len(names) <= MAX_SUBSCRIPTIONS:
        raise invalid_field("/events", "length", f"Subscribe to 1 to {MAX_SUBSCRIPTIONS} event types.")
    plain = [name for name in names if not is_pattern(name)]
    unknown = set(events.unknown_types(uow, workspace_id=workspace_id, names=plain))
    errors = []
    for name in names:
        shown, pointer = repr(name[: events.MAX_TYPE_NAME_LENGTH]), f"/events/{given.index(name)}"
        if name in unknown:
            errors.append(FieldError(pointer, "unknown_event_type", f"There is no event type {shown}."))
        elif is_pattern(name) and name != EVERYTHING and not _is_group(name):
            errors.append(FieldError(pointer, "invalid", f"{shown} is no group such as `message.*`."))
    if errors:
        raise Invalid(errors[0].detail, errors=errors)
    return names


def _is_group(name: str) -> bool:
    return len(name) <= events.MAX_TYPE_NAME_LENGTH and bool(events.TYPE_NAME.fullmatch(name[:-1] + "x"))


def _checked_filter(tree: Any) -> Any:
    if tree is None:
        return None
    faults = conditions.check(tree)
    if faults:
        errors = [FieldError("/filter" + item.pointer, item.code, item.detail) for item in faults]
        raise Invalid(errors[0].detail, errors=errors)
    return tree


def _checked_headers(headers: dict[str, str]) -> dict[str, str]:
    if len(headers) > header_rules.MAX_HEADERS:
        raise invalid_field("/headers", "too_many", f"Up to {header_rules.MAX_HEADERS} custom headers.")
    if len({name.lower() for name in headers}) != len(headers):
        raise invalid_field("/headers", "duplicate", "Two headers have the same name.")
    errors = []
    for name, value in headers.items():
        if sentence := header_rules.fault(name, value):
            step = name.replace("~", "~0").replace("/", "~1")
            errors.append(FieldError(f"/headers/{step}", "invalid_header", sentence))
    if errors:
        raise Invalid(errors[0].detail, errors=errors)
    return headers


def _merged(headers: dict[str, str], changes: dict[str, str | None]) -> dict[str, str]:
    for name, value in changes.items():
        headers = {known: kept for known, kept in headers.items() if known.lower() != name.lower()}
        if value is not None:
            headers[name] = value
    return headers


def _check_secret(secret: str) -> None:
    if not _OWN_SECRET.fullmatch(secret):
        raise invalid_field(
            "/signing_secret", "invalid", "A signing secret has 16 to 256 printable ASCII characters."
        )


def _replace_secret(uow: UnitOfWork, row: Endpoint, secret: str) -> None:
    _check_secret(secret)
    place = _place("signing_secret", row.id, row.workspace_id)
    row.signing_secret = uow.resources.secret_box.encrypt(secret, *place)
    row.previous_signing_secret = row.previous_secret_expires_at = None


def _place(column: str, endpoint_id: str, workspace_id: str) -> tuple[str, str, str, str]:
    return ("endpoints", column, endpoint_id, workspace_id)


def _seal_headers(uow: UnitOfWork, workspace_id: str, endpoint_id: str, headers: dict[str, str]) -> str:
    place = _place("headers", endpoint_id, workspace_id)
    return uow.resources.secret_box.encrypt(orjson.dumps(headers).decode(), *place)


def _resealed_headers(uow: UnitOfWork, row: Endpoint, changes: dict[str, str | None]) -> str:
    opened = _open_headers(uow, row)
    merged = _merged(opened, changes)
    if merged == opened:
        return row.headers  # sealed anew, they would look like others
    return _seal_headers(uow, row.workspace_id, row.id, _checked_headers(merged))


def _open_headers(uow: UnitOfWork, row: Endpoint) -> dict[str, str]:
    opened: dict[str, str] = orjson.loads(
        uow.resources.secret_box.decrypt(row.headers, *_place("headers", row.id, row.workspace_id))
    )
    return opened


def _kept(row: Endpoint, names: Collection[str]) -> dict[str, Any]:
    """Give what the row has for these fields; for the format what changes with each of its options."""
    return {name: row.format_options if name == "format" else getattr(row, name) for name in names}


def _replace_format(uow: UnitOfWork, row: Endpoint, given: Any) -> None:
    new = formats.read(given)
    if new != open_format(uow, row):  # sealed anew, it would look like another
        row.format = new.type
        row.format_options = _seal_format(uow, row.workspace_id, row.id, new)


def _seal_format(uow: UnitOfWork, workspace_id: str, endpoint_id: str, sealed: Format) -> str:
    place = _place("format_options", endpoint_id, workspace_id)
    return uow.resources.secret_box.encrypt(json_body.dumps(sealed.stored()).decode(), *place)


def _open_secret(uow: UnitOfWork, row: Endpoint, column: str = "signing_secret") -> str:
    return uow.resources.secret_box.decrypt(getattr(row, column), *_place(column, row.id, row.workspace_id))
