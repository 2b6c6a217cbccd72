"""Idempotency keys: the same POST sent twice acts once and gets the same answer.

The key is claimed in a transaction of its own, so that a twin meanwhile sees it; the answer is kept in the
transaction of the work itself, so that neither exists without the other.
https://datatracker.ietf.org/doc/draft-ietf-httpapi-idempotency-key-header/
"""

from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import Integer, LargeBinary, Text, delete, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Mapped, mapped_column

from app.core.clock import now
from app.core.crypto import SecretBox
from app.core.database import Base, IdText, UtcDateTime
from app.core.errors import AppError, Conflict
from app.core.unit_of_work import UnitOfWork

KEPT = timedelta(hours=24)
# A request that holds its key longer than this has died with its process; one that has not cannot keep its answer.
_CLAIM_LASTS = timedelta(seconds=90)
MAX_KEY_LENGTH = 255


class IdempotencyKeyReused(AppError):
    """The key came earlier with another request."""

    status = 422
    code = "idempotency_key_reused"
    title = "The idempotency key was used for another request"


class IdempotencyKeyInFlight(Conflict):
    """The first request with this key is not answered yet."""

    code = "idempotency_key_in_flight"
    title = "A request with this idempotency key is still being processed"


class IdempotencyKey(Base):
    """A claimed key and, once answered, its answer (encrypted: it may hold a secret)."""

    __tablename__ = "idempotency_keys"

    # Per API key: what one caller chose says nothing about another's.
    api_key_id: Mapped[str] = mapped_column(IdText, primary_key=True)
    key: Mapped[str] = mapped_column(Text, primary_key=True)
    fingerprint: Mapped[bytes] = mapped_column(LargeBinary)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, index=True)
    status_code: Mapped[int | None] = mapped_column(Integer)
    response: Mapped[str | None] = mapped_column(Text)


@dataclass(frozen=True, slots=True)
class StoredAnswer:
    """An earlier request's answer."""

    status_code: int
    body: str


def claim(
    uow: UnitOfWork, box: SecretBox, *, api_key_id: str, key: str, fingerprints: list[bytes]
) -> StoredAnswer | datetime:
    """Claim a key for this request and give when, or give the answer that it already has.

    The first fingerprint is kept; an earlier request may have any of them.
    Raises `IdempotencyKeyReused` where the fingerprint differs, `IdempotencyKeyInFlight` where no answer is known yet.
    """
    moment = now()
    session = uow.session
    session.execute(
        delete(IdempotencyKey).where(
            IdempotencyKey.api_key_id == api_key_id,
            IdempotencyKey.key == key,
            (IdempotencyKey.created_at < moment - KEPT)
            | (IdempotencyKey.status_code.is_(None) & (IdempotencyKey.created_at < moment - _CLAIM_LASTS)),
        )
    )
    values = {"api_key_id": api_key_id, "key": key, "fingerprint": fingerprints[0], "created_at": moment}
    dialect = sqlite if uow.is_sqlite else postgresql
    claimed = session.execute(
        dialect.insert(IdempotencyKey).values(values).on_conflict_do_nothing().returning(IdempotencyKey.key)
    ).first()
    if claimed:
        return moment
    row = session.get(IdempotencyKey, (api_key_id, key))
    if row is None:
        # Its twin failed and gave it back between the two statements.
        raise IdempotencyKeyInFlight
    if row.fingerprint not in fingerprints:
        raise IdempotencyKeyReused("Use a new key for a request with another path or body.")
    if row.status_code is None or row.response is None:
        raise IdempotencyKeyInFlight
    return StoredAnswer(row.status_code, box.decrypt(row.response, "idempotency_keys", key, api_key_id))


def keep(
    uow: UnitOfWork,
    box: SecretBox,
    *,
    api_key_id: str,
    key: str,
    claimed_at: datetime,
    status_code: int,
    body: str,
) -> None:
    """Keep the answer, in the transaction of the work that it answers.

    Raises `IdempotencyKeyInFlight`, so that the work is undone, when the claim was so old that another request took it.
    """
    kept = uow.session.execute(
        update(IdempotencyKey)
        .where(
            IdempotencyKey.api_key_id == api_key_id,
            IdempotencyKey.key == key,
            IdempotencyKey.created_at == claimed_at,
        )
        .values(status_code=status_code, response=box.encrypt(body, "idempotency_keys", key, api_key_id))
        .returning(IdempotencyKey.key)
        .execution_options(synchronize_session=False)
    ).first()
    if kept is None:
        raise IdempotencyKeyInFlight


def release(uow: UnitOfWork, *, api_key_id: str, key: str, claimed_at: datetime) -> None:
    """Give a key back whose request failed: nothing was done, so it may be tried again."""
    uow.session.execute(
        delete(IdempotencyKey).where(
            IdempotencyKey.api_key_id == api_key_id,
            IdempotencyKey.key == key,
            IdempotencyKey.created_at == claimed_at,
            IdempotencyKey.status_code.is_(None),
        )
    )


def prune_all_workspaces(uow: UnitOfWork) -> None:
    """Delete keys that are no longer honoured."""
    uow.session.execute(delete(IdempotencyKey).where(IdempotencyKey.created_at < now() - KEPT))
