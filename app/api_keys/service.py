"""The rules of API keys."""

import ipaddress
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from app.api_keys import repository, tokens
from app.api_keys.models import ID_PREFIX, ApiKey, KeyStatus
from app.core.errors import AppError, NotFound, invalid_field
from app.core.ids import new_id
from app.core.pagination import Page, PageRequest, page_of
from app.core.unit_of_work import UnitOfWork

ALL_SCOPES = "*"
RESOURCES = ("api_keys", "events", "event_types", "endpoints", "deliveries", "audit_log")
SCOPES = (ALL_SCOPES, *(f"{resource}:{action}" for resource in RESOURCES for action in ("read", "write")))

_USE_NOTED_EVERY = timedelta(minutes=1)
_REALM = 'Bearer realm="botbat"'
_INVALID_TOKEN = f'{_REALM}, error="invalid_token"'


class MissingApiKey(AppError):
    """No credentials came."""

    status = 401
    code = "missing_api_key"
    title = "An API key is required"

    def __init__(self) -> None:
        super().__init__("Send `Authorization: Bearer <your API key>`.", headers={"WWW-Authenticate": _REALM})


class InvalidApiKey(AppError):
    """Not a key of ours."""

    status = 401
    code = "invalid_api_key"
    title = "The API key is not valid"

    def __init__(self, detail: str | None = None) -> None:
        super().__init__(detail, headers={"WWW-Authenticate": _INVALID_TOKEN})


class ApiKeyRevoked(InvalidApiKey):
    """A real key that was revoked."""

    code = "api_key_revoked"
    title = "The API key was revoked"


class ApiKeyExpired(InvalidApiKey):
    """A real key that has expired."""

    code = "api_key_expired"
    title = "The API key has expired"


class IpNotAllowed(AppError):
    """The key may not be used from this address."""

    status = 403
    code = "ip_not_allowed"
    title = "The API key may not be used from this address"


class InsufficientScope(AppError):
    """The key lacks a scope."""

    status = 403
    code = "insufficient_scope"
    title = "The API key lacks a scope"

    def __init__(self, scope: str) -> None:
        super().__init__(
            f"This needs the scope `{scope}`.",
            headers={
                "WWW-Authenticate": f'{_REALM}, error="insufficient_scope", scope="{scope}"',
            },
        )


@dataclass(frozen=True, slots=True)
class Credential:
    """An authenticated key: who is asking."""

    key_id: str
    workspace_id: str
    scopes: frozenset[str]
    rate_limit: int  # requests per second
    note_use_at: datetime | None  # set when this use is due to be noted

    @property
    def use_is_due(self) -> bool:
        """Whether this use has to be noted."""
        return self.note_use_at is not None

    def allows(self, scope: str) -> bool:
        """Tell whether the key has a scope."""
        return ALL_SCOPES in self.scopes or scope in self.scopes


def authenticate(uow: UnitOfWork, *, key: str, address: str) -> Credential:
    """Give the credential of a presented key; raises the errors above. Never cached: revoking is immediate."""
    if not tokens.is_well_formed(key):
        raise InvalidApiKey
    row = repository.find_credential(uow.connection, uow.resources.key_hash.candidates(key))
    if row is None:
        raise InvalidApiKey
    if row.revoked_at is not None:
        raise ApiKeyRevoked
    if row.expires_at is not None and row.expires_at <= row.now:
        raise ApiKeyExpired
    if row.allowed_cidrs and not _in_any(address, row.allowed_cidrs):
        raise IpNotAllowed
    due = row.last_used_at is None or row.last_used_at <= row.now - _USE_NOTED_EVERY
    rate_limit = uow.resources.settings.rate_limit
    return Credential(row.id, row.workspace_id, frozenset(row.scopes), rate_limit, row.now if due else None)


def note_use(uow: UnitOfWork, *, credential: Credential, address: str) -> None:
    """Note that the key was used, at most once a minute."""
    if credential.note_use_at:
        repository.note_use(uow.session, credential.key_id, credential.note_use_at, address, _USE_NOTED_EVERY)


def create(
    uow: UnitOfWork,
    *,
    workspace_id: str,
    name: str,
    maker: Credential | None = None,
    expires_at: datetime | None = None,
    expires_in_days: int | None = None,
    scopes: Sequence[str] | None = None,
    allowed_cidrs: Sequence[str] = (),
) -> tuple[ApiKey, str]:
    """Make a key; gives it and the full key, which is nowhere kept.

    Without `scopes` it has those of its maker, or all when no key makes it. Raises `Invalid`, and
    `InsufficientScope` when it would have more than its maker.
    """
    moment = repository.database_time(uow.session)
    if expires_at is not None and expires_in_days is not None:
        raise invalid_field(
            "/expires_in_days", "conflict", "Give `expires_at` or `expires_in_days`, not both."
        )
    if expires_in_days is not None:
        expires_at = moment + timedelta(days=expires_in_days)
    if expires_at is not None and expires_at <= moment:
        raise invalid_field("/expires_at", "in_the_past", "An expiry must be in the future.")
    if scopes is None:
        scopes = sorted(maker.scopes) if maker else [ALL_SCOPES]
    for scope in scopes:
        if maker and not maker.allows(scope):
            raise InsufficientScope(scope)
    key = tokens.generate()
    hash_key_id, key_hash = uow.resources.key_hash.current(key)
    row = ApiKey(
        id=new_id(ID_PREFIX),
        workspace_id=workspace_id,
        name=name,
        prefix=key[: tokens.SHOWN_CHARACTERS],
        key_hash=key_hash,
        hash_key_id=hash_key_id,
        scopes=list(dict.fromkeys(scopes)),
        allowed_cidrs=list(allowed_cidrs),
        created_at=moment,
        expires_at=expires_at,
    )
    uow.session.add(row)
    uow.session.flush()
    return row, key


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
    row = _find(uow, workspace_id, key_id)
    if row.revoked_at is None:
        row.revoked_at = repository.database_time(uow.session)
        uow.session.flush()
    return view(uow, row)


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


def _find(uow: UnitOfWork, workspace_id: str, key_id: str) -> ApiKey:
    row = repository.find(uow.session, workspace_id, key_id)
    if row is None:
        raise NotFound
    return row


def _in_any(address: str, cidrs: Sequence[str]) -> bool:
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return False
    if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped:
        ip = ip.ipv4_mapped
    return any(ip in ipaddress.ip_network(cidr) for cidr in cidrs)
