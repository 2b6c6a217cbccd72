"""Keys that were there before notices get them as new ones do."""

from datetime import timedelta

import pytest
from sqlalchemy import insert, select

from app import migrations
from app.api_keys.models import ApiKey
from app.core.clock import now
from app.workspaces.models import Workspace

DAY = timedelta(days=1)
ADDED = {"lifetime_seconds", "next_notice_at", "expired_at", "rate_limit_per_second"}


@pytest.fixture
def connection(empty):
    """Give the transaction of a migration, committed at the end."""
    with migrations._locked(empty) as connection:
        yield connection


def test_keys_that_expire_get_their_lifetime_and_their_next_notice(connection, migrate_to):
    migrate_to(connection, "0004")
    moment = now()
    columns = [column for column in ApiKey.__table__.columns if column.name not in ADDED]
    connection.execute(insert(Workspace), {"id": "ws_1", "name": "Acme", "created_at": moment})
    for key_id, expires_in, revoked in (
        *(("never", None, False), ("month", 30 * DAY, False), ("days", 3 * DAY, False)),
        *(("hours", DAY / 2, False), ("over", -DAY, False), ("revoked", 30 * DAY, True)),
    ):
        row = {
            "id": key_id,
            "workspace_id": "ws_1",
            "name": "CI",
            "prefix": "bbat_live_000000",
            "key_hash": key_id.encode(),
            "hash_key_id": "k1",
            "scopes": ["*"],
            "allowed_cidrs": [],
            "created_at": moment - 60 * DAY,
            "expires_at": moment + expires_in if expires_in else None,
            "revoked_at": moment if revoked else None,
        }
        connection.execute(insert(ApiKey).values({column: row.get(column.name) for column in columns}))
    migrate_to(connection, "head")

    rows = connection.execute(select(ApiKey.id, ApiKey.lifetime_seconds, ApiKey.next_notice_at)).all()
    day = DAY.total_seconds()
    assert {key_id: (lifetime, at - moment if at else None) for key_id, lifetime, at in rows} == {
        "never": (None, None),
        "month": (90 * day, 23 * DAY),
        "days": (63 * day, 2 * DAY),
        "hours": (60.5 * day, DAY / 2),
        "over": (59 * day, -DAY),
        "revoked": (90 * day, None),
    }
