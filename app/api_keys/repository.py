"""Every query of API keys."""

from collections.abc import Collection, Sequence
from datetime import datetime, timedelta
from functools import cache
from typing import Any

from sqlalchemy import ColumnElement, Connection, LargeBinary, and_, bindparam, or_, select, update
from sqlalchemy.orm import Session

from app.api_keys.models import ApiKey, KeyStatus
from app.core.database import utc_now
from app.core.pagination import PageRequest

_BY_STATUS: dict[KeyStatus, ColumnElement[bool]] = {
    KeyStatus.REVOKED: ApiKey.revoked_at.is_not(None),
    KeyStatus.EXPIRED: and_(ApiKey.revoked_at.is_(None), ApiKey.expires_at <= utc_now()),
    KeyStatus.ACTIVE: and_(
        ApiKey.revoked_at.is_(None), or_(ApiKey.expires_at.is_(None), ApiKey.expires_at > utc_now())
    ),
}

_CREDENTIAL: Any = select(
    ApiKey.id,
    ApiKey.workspace_id,
    ApiKey.scopes,
    ApiKey.allowed_cidrs,
    ApiKey.revoked_at,
    ApiKey.expires_at,
    ApiKey.last_used_at,
    utc_now().label("now"),
)


@cache
def _by_hash(count: int) -> Any:
    """Give the look-up for a number of live peppers; made once, since every request runs it."""
    names = [bindparam(f"hash_{index}", type_=LargeBinary()) for index in range(count)]
    return _CREDENTIAL.where(or_(*(ApiKey.key_hash == name for name in names)))


def find_credential(connection: Connection, hashes: list[bytes]) -> Any:
    """Give the one key with one of these hashes, whatever its workspace and state, and the database's time; or None."""
    statement = _by_hash(len(hashes))
    return connection.execute(
        statement, {f"hash_{index}": value for index, value in enumerate(hashes)}
    ).first()


def find(session: Session, workspace_id: str, key_id: str) -> ApiKey | None:
    """Give a key, or None."""
    return session.scalar(select(ApiKey).where(ApiKey.workspace_id == workspace_id, ApiKey.id == key_id))


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


def note_use(session: Session, key_id: str, moment: datetime, address: str, at_most_every: timedelta) -> None:
    """Note a use, unless one was noted less than `at_most_every` ago."""
    session.execute(
        update(ApiKey)
        .where(
            ApiKey.id == key_id,
            or_(ApiKey.last_used_at.is_(None), ApiKey.last_used_at <= moment - at_most_every),
        )
        .values(last_used_at=moment, last_used_ip=address)
    )
