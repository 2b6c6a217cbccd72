"""Every query of API keys."""

from collections.abc import Collection, Sequence
from datetime import datetime, timedelta
from functools import cache
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, LargeBinary, and_, bindparam, or_, select, update
from sqlalchemy.orm import Session
from sqlalchemy.sql.functions import count

from app.api_keys.models import ApiKey, KeyStatus
from app.core.database import read_rows, utc_now
from app.core.pagination import PageRequest
from app.core.unit_of_work import UnitOfWork

_BY_STATUS: dict[KeyStatus, ColumnElement[bool]] = {
    KeyStatus.REVOKED: ApiKey.revoked_at.is_not(None),
    KeyStatus.EXPIRED: and_(ApiKey.revoked_at.is_(None), ApiKey.expires_at <= utc_now()),
    KeyStatus.ACTIVE: and_(
        ApiKey.revoked_at.is_(None), or_(ApiKey.expires_at.is_(None), ApiKey.expires_at > utc_now())
    ),
}


class CredentialRow(NamedTuple):
    """What authentication needs to know of a key, and the database's time."""

    id: str
    workspace_id: str
    scopes: list[str]
    allowed_cidrs: list[str]
    revoked_at: datetime | None
    expires_at: datetime | None
    last_used_at: datetime | None
    hash_key_id: str
    rate_limit_per_second: int | None
    now: datetime


_KEY_COLUMNS = CredentialRow._fields[:-1]


@cache
def _by_hash_postgresql(count: int) -> str:
    hashes = ", ".join(f"%(hash_{index})s" for index in range(count))
    return f"SELECT {', '.join(_KEY_COLUMNS)}, now() FROM api_keys WHERE key_hash IN ({hashes})"


@cache
def _by_hash_sqlite(count: int) -> Any:
    names = [bindparam(f"hash_{index}", type_=LargeBinary()) for index in range(count)]
    columns = [getattr(ApiKey, name) for name in _KEY_COLUMNS]
    return select(*columns, utc_now().label("now")).where(or_(*(ApiKey.key_hash == name for name in names)))


def find_credential(uow: UnitOfWork, hashes: list[bytes]) -> CredentialRow | None:
    """Give the one key with one of these hashes, whatever its workspace and state; or None. Every request runs this."""
    parameters = {f"hash_{index}": value for index, value in enumerate(hashes)}
    if uow.is_sqlite:
        row = uow.connection.execute(_by_hash_sqlite(len(hashes)), parameters).first()
        return None if row is None else CredentialRow(*row)
    rows = read_rows(uow.connection, _by_hash_postgresql(len(hashes)), parameters)
    return CredentialRow(*rows[0]) if rows else None


def find(session: Session, workspace_id: str, key_id: str, *, lock: bool = False) -> ApiKey | None:
    """Give a key, or None; `lock` holds it until the end of the transaction."""
    query = select(ApiKey).where(ApiKey.workspace_id == workspace_id, ApiKey.id == key_id)
    return session.scalar(query.with_for_update() if lock else query)


def list_page(
    session: Session, workspace_id: str, page: PageRequest, statuses: Collection[KeyStatus]
) -> Sequence[ApiKey]:
    """Give up to one more than a page of keys, newest first."""
    query = (
        select(ApiKey)
        .where(ApiKey.workspace_id == workspace_id, or_(*(_BY_STATUS[status] for status in statuses)))
        .order_by(ApiKey.id.desc())
        .limit(page.limit + 1)
    )
    if page.before:
        query = query.where(ApiKey.id < page.before)
    return session.scalars(query).all()


def database_time(session: Session) -> datetime:
    """Give the time by the database's clock."""
    moment: datetime = session.execute(select(utc_now())).scalar_one()
    return moment


def note_use(
    session: Session, key_id: str, moment: datetime, at_most_every: timedelta, columns: dict[str, Any]
) -> None:
    """Note a use and set `columns`, unless one was noted less than `at_most_every` ago.

    Nothing is noted while somebody else has the row: a request does not wait for that.
    """
    due = or_(ApiKey.last_used_at.is_(None), ApiKey.last_used_at <= moment - at_most_every)
    free = select(ApiKey.id).where(ApiKey.id == key_id, due).with_for_update(skip_locked=True)
    session.execute(
        update(ApiKey)
        .where(ApiKey.id == free.correlate(None).scalar_subquery())
        .values(last_used_at=moment, **columns)
        .execution_options(synchronize_session=False)
    )


def claim_notices_of_all_workspaces(session: Session, limit: int) -> Sequence[ApiKey]:
    """Lock up to `limit` keys of all workspaces with a notice that is due. On SQLite the transaction is the lock."""
    query = select(ApiKey).where(ApiKey.next_notice_at <= utc_now()).order_by(ApiKey.next_notice_at)
    return session.scalars(query.limit(limit).with_for_update(skip_locked=True)).all()


def count_active_by_pepper_in_all_workspaces(session: Session) -> dict[str, int]:
    """Give how many active keys have their hash under each pepper, by the pepper's id."""
    query = select(ApiKey.hash_key_id, count()).where(_BY_STATUS[KeyStatus.ACTIVE])
    return dict(session.execute(query.group_by(ApiKey.hash_key_id)).all())
