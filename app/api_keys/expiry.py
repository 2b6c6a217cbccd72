"""What is told of a key's end, and when: a week before, a day before, and when it has come.

Each key has the moment of its next notice. Whoever gives a notice moves that moment on in the same transaction, so
that it is given once, however often and however late beat comes. What beat missed is not told afterwards: a notice
says what is true when it is given.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from app.api_keys import repository
from app.api_keys.models import ApiKey
from app.audit import service as audit
from app.core.clock import format_time
from app.core.unit_of_work import UnitOfWork

NOTICES_PER_TRANSACTION = 500
_TOLD_BEFORE = (timedelta(days=7), timedelta(days=1))


@dataclass(frozen=True, slots=True)
class Notice:
    """What a workspace is told of one of its keys."""

    workspace_id: str
    event_type: str
    data: dict[str, Any]


def next_notice_at(expires_at: datetime, moment: datetime) -> datetime:
    """Give when there is next something to tell, after `moment`, of a key that expires at `expires_at`."""
    ahead = [expires_at - before for before in _TOLD_BEFORE if expires_at - before > moment]
    return min(ahead, default=expires_at)


def give_notices_of_all_workspaces(uow: UnitOfWork) -> list[Notice]:
    """Record a batch of due notices and give them, for the caller to publish; none when no more are due."""
    rows = repository.claim_notices_of_all_workspaces(uow.session, NOTICES_PER_TRANSACTION)
    moment = repository.database_time(uow.session)
    notices = [_give(row, moment) for row in rows]
    uow.session.flush()
    for notice in notices:
        audit.record(
            uow,
            workspace_id=notice.workspace_id,
            action=notice.event_type,
            resource_id=notice.data["api_key_id"],
        )
    return notices


def _give(row: ApiKey, moment: datetime) -> Notice:
    expires_at = row.expires_at
    if expires_at is None:
        raise ValueError("a key that never expires has no notices")
    over = expires_at <= moment
    row.next_notice_at = None if over else next_notice_at(expires_at, moment)
    row.expired_at = moment if over else None
    shown = {
        "api_key_id": row.id,
        "name": row.name,
        "prefix": row.prefix,
        "created_at": format_time(row.created_at),
        "last_used_at": format_time(row.last_used_at) if row.last_used_at else None,
        "expires_at": format_time(expires_at),
    }
    if over:
        return Notice(row.workspace_id, "api_key.expired", shown)
    days_left = -((moment - expires_at) // timedelta(days=1))  # a begun day counts
    return Notice(row.workspace_id, "api_key.expiring", {**shown, "days_left": days_left})
