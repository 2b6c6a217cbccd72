"""The rules of API keys."""

from collections.abc import Collection, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from app.api_keys import networks, repository, tokens
from app.api_keys.authentication import ALL_SCOPES, Credential, InsufficientScope
from app.api_keys.expiry import next_notice_at
from app.api_keys.models import ID_PREFIX, ApiKey, KeyStatus
from app.audit import service as audit
from app.core.errors import AppError, Conflict, NotFound, invalid_field
from app.core.ids import new_id
from app.core.pagination import Page, PageRequest, page_of
from app.core.unit_of_work import UnitOfWork

RESOURCES = ("api_keys", "events", "event_types", "endpoints", "deliveries", "audit_log")
SCOPES = (ALL_SCOPES, *(f"{resource}:{action}" for resource in RESOURCES for action in ("read", "write")))

_LAST_MOMENT = datetime.max.replace(tzinfo=UTC)


class NetworkNotAllowed(AppError):
    """The key is bound to networks, and asked for a key that works elsewhere."""

    status = 403
    code = "network_not_allowed"
    title = "The API key may not let others in from elsewhere"


class ApiKeyNotActive(Conflict):
    """The key is revoked or has expired: it is not to come back in another form."""

    code = "api_key_not_active"
    title = "The API key is not active"


def create(
    uow: UnitOfWork,
    *,
    workspace_id: str,
    name: str,
    maker: Credential | None = None,
    expires_at: datetime | None = None,
    expires_in_days: int | None = None,
    scopes: Sequence[str] | None = None,
    allowed_cidrs: Sequence[str] | None = None,
    rate_limit_per_second: int | None = None,
) -> tuple[ApiKey, str]:
    """Make a key; gives it and the full key, which is nowhere kept.

    Without `scopes` or `allowed_cidrs` it has those of its maker, or all when no key makes it. Raises `Invalid`, and
    `InsufficientScope` or `NetworkNotAllowed` when it could do more than its maker.
    """
    moment = repository.database_time(uow.session)
    if expires_at is not None and expires_in_days is not None:
        raise invalid_field(
            "/expires_in_days", "conflict", "Give `expires_at` or `expires_in_days`, not both."
        )
    if expires_in_days is not None:
        expires_at = moment + timedelta(days=expires_in_days)
    _require_future(expires_at, moment)
    if scopes is None:
        scopes = sorted(maker.scopes) if maker else [ALL_SCOPES]
    if allowed_cidrs is None:
        allowed_cidrs = maker.allowed_cidrs if maker else []
    _require_cover(maker, scopes, allowed_cidrs)
    return _add(
        uow,
        moment,
        expires_at,
        workspace_id=workspace_id,
        name=name,
        scopes=list(dict.fromkeys(scopes)),
        allowed_cidrs=list(allowed_cidrs),
        rate_limit_per_second=rate_limit_per_second,
    )


def update(
    uow: UnitOfWork, *, workspace_id: str, key_id: str, maker: Credential, changes: dict[str, Any]
) -> dict[str, Any]:
    """Change the given fields and give the key as it is shown.

    Raises `NotFound`, and, when a key that can do less changes the networks, what `create` does.
    """
    row = _find(uow, workspace_id, key_id, lock=True)
    changed = audit.changed_fields({name: getattr(row, name) for name in changes}, changes)
    if "allowed_cidrs" in changed:
        _require_cover(maker, row.scopes, changes["allowed_cidrs"])
    for name in changed:
        setattr(row, name, changes[name])
    if changed:
        uow.session.flush()
        audit.record(
            uow, workspace_id=workspace_id, action="api_key.updated", resource_id=key_id, changed=changed
        )
    return view(uow, row)


def rotate(
    uow: UnitOfWork,
    *,
    workspace_id: str,
    key_id: str,
    maker: Credential,
    overlap_seconds: int | None,
    expires_at: datetime | None,
) -> tuple[ApiKey, str]:
    """Make a key with the name, scopes, networks and rate limit of another; gives it and the full key.

    The old one goes on until it is revoked or `overlap_seconds` have passed, but never past its own expiry. Without
    `expires_at` the new one lives as long as the old one was made for. Raises `NotFound`, `ApiKeyNotActive`, and what
    `create` does.
    """
    old = _find(uow, workspace_id, key_id, lock=True)
    moment = repository.database_time(uow.session)
    if old.status_at(moment) is not KeyStatus.ACTIVE:
        raise ApiKeyNotActive(f"It is {old.status_at(moment)}: make a new key instead.")
    _require_cover(maker, old.scopes, old.allowed_cidrs)
    _require_future(expires_at, moment)
    if expires_at is None and old.lifetime_seconds is not None:
        expires_at = moment + min(timedelta(seconds=old.lifetime_seconds), _LAST_MOMENT - moment)
    changed = []
    if overlap_seconds is not None:
        ends_at = moment + timedelta(seconds=overlap_seconds)
        if old.expires_at is None or ends_at < old.expires_at:
            old.expires_at, old.next_notice_at = ends_at, next_notice_at(ends_at, moment)
            changed = ["expires_at"]
    audit.record(
        uow, workspace_id=workspace_id, action="api_key.rotated", resource_id=key_id, changed=changed
    )
    return _add(
        uow,
        moment,
        expires_at,
        workspace_id=workspace_id,
        name=old.name,
        scopes=old.scopes,
        allowed_cidrs=old.allowed_cidrs,
        rate_limit_per_second=old.rate_limit_per_second,
        rotated_from=key_id,
    )


def get(uow: UnitOfWork, *, workspace_id: str, key_id: str) -> dict[str, Any]:
    """Give a key as it is shown; raises `NotFound`."""
    return view(uow, _find(uow, workspace_id, key_id))


def list_keys(
    uow: UnitOfWork, *, workspace_id: str, page: PageRequest, statuses: Collection[KeyStatus]
) -> Page[dict[str, Any]]:
    """Give a page of keys as they are shown, newest first."""
    rows = page_of(repository.list_page(uow.session, workspace_id, page, statuses), page)
    moment = repository.database_time(uow.session)
    return Page([_view(row, moment) for row in rows.items], rows.next_cursor)


def revoke(uow: UnitOfWork, *, workspace_id: str, key_id: str) -> dict[str, Any]:
    """Revoke a key for good and give it as it is shown; again changes nothing. Raises `NotFound`."""
    row = _find(uow, workspace_id, key_id, lock=True)
    if row.revoked_at is None:
        row.revoked_at, row.next_notice_at = repository.database_time(uow.session), None
        uow.session.flush()
        audit.record(uow, workspace_id=workspace_id, action="api_key.revoked", resource_id=key_id)
    return view(uow, row)


def count_active_by_pepper_in_all_workspaces(uow: UnitOfWork) -> dict[str, int]:
    """Give how many active keys are hashed under each pepper: the configured ones, the current one first, then others.

    One that has none can be taken out of the configuration. Keys under one that is not there are unknown.
    """
    configured = dict.fromkeys(uow.resources.key_hash.key_ids, 0)
    return configured | repository.count_active_by_pepper_in_all_workspaces(uow.session)


def view(uow: UnitOfWork, row: ApiKey) -> dict[str, Any]:
    """Give a key as it is shown."""
    return _view(row, repository.database_time(uow.session))


def _view(row: ApiKey, moment: datetime) -> dict[str, Any]:
    return {
        "id": row.id,
        "name": row.name,
        "prefix": row.prefix,
        "scopes": row.scopes,
        "allowed_cidrs": row.allowed_cidrs,
        "status": row.status_at(moment).value,
        "created_at": row.created_at,
        "last_used_at": row.last_used_at,
        "expires_at": row.expires_at,
        "revoked_at": row.revoked_at,
        "rotated_from": row.rotated_from,
    }


def _find(uow: UnitOfWork, workspace_id: str, key_id: str, *, lock: bool = False) -> ApiKey:
    row = repository.find(uow.session, workspace_id, key_id, lock=lock)
    if row is None:
        raise NotFound
    return row


def _add(
    uow: UnitOfWork, moment: datetime, expires_at: datetime | None, *, workspace_id: str, **columns: Any
) -> tuple[ApiKey, str]:
    key = tokens.generate()
    hash_key_id, key_hash = uow.resources.key_hash.current(key)
    row = ApiKey(
        id=new_id(ID_PREFIX),
        workspace_id=workspace_id,
        prefix=key[: tokens.SHOWN_CHARACTERS],
        key_hash=key_hash,
        hash_key_id=hash_key_id,
        created_at=moment,
        expires_at=expires_at,
        lifetime_seconds=(expires_at - moment) // timedelta(seconds=1) if expires_at else None,
        next_notice_at=next_notice_at(expires_at, moment) if expires_at else None,
        **columns,
    )
    uow.session.add(row)
    uow.session.flush()
    audit.record(uow, workspace_id=workspace_id, action="api_key.created", resource_id=row.id)
    return row, key


def _require_future(expires_at: datetime | None, moment: datetime) -> None:
    if expires_at is not None and expires_at <= moment:
        raise invalid_field("/expires_at", "in_the_past", "An expiry must be in the future.")


def _require_cover(maker: Credential | None, scopes: Sequence[str], cidrs: Sequence[str]) -> None:
    """Refuse a key that could do what its maker cannot, or from where its maker cannot."""
    if maker is None:
        return
    for scope in scopes:
        if not maker.allows(scope):
            raise InsufficientScope(scope)
    if not networks.cover(maker.allowed_cidrs, cidrs):
        own = ", ".join(maker.allowed_cidrs)
        raise NetworkNotAllowed(
            f"This key works from {own} alone, and so must every key that it makes or changes."
        )
