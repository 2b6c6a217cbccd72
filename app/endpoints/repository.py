"""Every query of endpoints' configuration; their queues are in queues.py."""

from collections.abc import Collection, Sequence
from typing import Any

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from app.core.database import utc_now
from app.core.pagination import PageRequest
from app.endpoints.models import Endpoint, EndpointQueue


def find(session: Session, workspace_id: str, endpoint_id: str, *, lock: bool = False) -> Endpoint | None:
    """Give an endpoint, or None; `lock` holds it until the end of the transaction."""
    query = select(Endpoint).where(Endpoint.workspace_id == workspace_id, Endpoint.id == endpoint_id)
    return session.scalar(query.with_for_update() if lock else query)


def list_page(
    session: Session, workspace_id: str, page: PageRequest, statuses: Collection[str] | None
) -> Sequence[Endpoint]:
    """Give up to one more than a page of endpoints, newest first."""
    query = (
        select(Endpoint)
        .where(Endpoint.workspace_id == workspace_id)
        .order_by(Endpoint.id.desc())
        .limit(page.limit + 1)
    )
    if page.before:
        query = query.where(Endpoint.id < page.before)
    if statuses is not None:
        query = query.where(Endpoint.status.in_(statuses))
    return session.scalars(query).all()


def list_queues(session: Session, endpoint_ids: Collection[str]) -> Sequence[EndpointQueue]:
    """Give the queues of endpoints that the caller has found in its own workspace."""
    return session.scalars(select(EndpointQueue).where(EndpointQueue.endpoint_id.in_(endpoint_ids))).all()


def list_subscriptions(session: Session, workspace_ids: Collection[str]) -> Sequence[Any]:
    """Give id, workspace_id, events, filter and format of all endpoints of the workspaces that are being fanned out.

    Locked against deletion until the transaction ends, as a foreign key would, so that no delivery is made for an
    endpoint that is gone.
    """
    return session.execute(
        select(
            Endpoint.id,
            Endpoint.workspace_id,
            Endpoint.events,
            Endpoint.filter,
            Endpoint.format,
            Endpoint.format_options,
        )
        .where(Endpoint.workspace_id.in_(workspace_ids))
        .order_by(Endpoint.id)
        .with_for_update(key_share=True, read=True)
    ).all()


def list_formats_all_workspaces(session: Session, endpoint_ids: Collection[str]) -> Sequence[Any]:
    """Give (id, workspace_id, format, format_options) of endpoints whose deliveries are being made or claimed."""
    return session.execute(
        select(Endpoint.id, Endpoint.workspace_id, Endpoint.format, Endpoint.format_options).where(
            Endpoint.id.in_(endpoint_ids)
        )
    ).all()


def list_by_ids_all_workspaces(session: Session, endpoint_ids: Collection[str]) -> Sequence[Endpoint]:
    """Give the endpoints whose queues a pump has leased."""
    return session.scalars(
        select(Endpoint).where(Endpoint.id.in_(endpoint_ids)).execution_options(populate_existing=True)
    ).all()


def list_versions_all_workspaces(session: Session, endpoint_ids: Collection[str]) -> dict[str, Any]:
    """Give `updated_at` of the endpoints whose queues a pump has leased."""
    rows = session.execute(select(Endpoint.id, Endpoint.updated_at).where(Endpoint.id.in_(endpoint_ids)))
    return {row.id: row.updated_at for row in rows}


def lock_unlocked_all_workspaces(session: Session, endpoint_ids: Collection[str]) -> Sequence[Endpoint]:
    """Lock those of the endpoints that nobody else has locked, and give them."""
    return session.scalars(
        select(Endpoint)
        .where(Endpoint.id.in_(endpoint_ids))
        .order_by(Endpoint.id)
        .with_for_update(key_share=True, skip_locked=True)
    ).all()


def forget_ended_secrets_all_workspaces(session: Session) -> None:
    """Delete the previous secrets that no longer sign."""
    session.execute(
        update(Endpoint)
        .where(Endpoint.previous_secret_expires_at <= utc_now())
        .values(previous_signing_secret=None, previous_secret_expires_at=None)
        .execution_options(synchronize_session=False)
    )


def database_time(session: Session) -> Any:
    """Give the time by the database's clock."""
    return session.scalar(select(utc_now()))
