"""How a presented key becomes a credential, or one of the refusals: looked up every time, and cached nowhere."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from app.api_keys import networks, repository, tokens
from app.core.errors import AppError
from app.core.unit_of_work import UnitOfWork

ALL_SCOPES = "*"

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
    allowed_cidrs: Sequence[str]
    rate_limit: int  # requests per second
    note_use_at: datetime | None  # set when this use is due to be noted
    new_hash: bytes | None  # under the current pepper, when the one that is stored is under another

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
    peppers = uow.resources.key_hash
    hashes = peppers.candidates(key)
    row = repository.find_credential(uow, hashes)
    if row is None:
        raise InvalidApiKey
    if row.revoked_at is not None:
        raise ApiKeyRevoked
    if row.expires_at is not None and row.expires_at <= row.now:
        raise ApiKeyExpired
    if row.allowed_cidrs and not networks.contain(row.allowed_cidrs, address):
        raise IpNotAllowed
    due = row.last_used_at is None or row.last_used_at <= row.now - _USE_NOTED_EVERY
    return Credential(
        row.id,
        row.workspace_id,
        frozenset(row.scopes),
        row.allowed_cidrs,
        rate_limit=row.rate_limit_per_second or uow.resources.settings.rate_limit,
        note_use_at=row.now if due else None,
        new_hash=hashes[0] if row.hash_key_id != peppers.key_ids[0] else None,
    )


def note_use(uow: UnitOfWork, *, credential: Credential, address: str) -> None:
    """Note that the key was used, at most once a minute; its hash changes to the current pepper with that."""
    if not credential.note_use_at:
        return
    columns: dict[str, Any] = {"last_used_ip": address}
    if credential.new_hash:
        columns |= {"key_hash": credential.new_hash, "hash_key_id": uow.resources.key_hash.key_ids[0]}
    repository.note_use(uow.session, credential.key_id, credential.note_use_at, _USE_NOTED_EVERY, columns)
