"""Endpoints: customers' HTTPS URLs with subscriptions, secrets and a policy; and their delivery queues."""

from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import JSON, ForeignKey, Index, Integer, Text, text
from sqlalchemy.orm import Mapped, mapped_column

from app.core import json_body
from app.core.database import Base, IdText, UtcDateTime, utc_now
from app.workspaces.models import Workspace

ID_PREFIX = "ep"


class _ExactJson(JSON):
    """JSON whose every change is seen: to Python, 1 and True are equal, and the one would not replace the other."""

    def compare_values(self, x: Any, y: Any) -> bool:
        return json_body.dumps(x) == json_body.dumps(y)


class EndpointStatus(StrEnum):
    """What an endpoint gets."""

    ACTIVE = "active"
    PAUSED = "paused"
    FAILING = "failing"
    DISABLED = "disabled"


# In other states deliveries wait until somebody resumes the endpoint.
SERVED = (EndpointStatus.ACTIVE, EndpointStatus.FAILING)


class Endpoint(Base):
    """Where deliveries go."""

    __tablename__ = "endpoints"
    __table_args__ = (Index("ix_endpoints_workspace_id_id", "workspace_id", "id"),)

    id: Mapped[str] = mapped_column(IdText, primary_key=True)
    workspace_id: Mapped[str] = mapped_column(IdText, ForeignKey(Workspace.id))
    url: Mapped[str] = mapped_column(Text)
    description: Mapped[str] = mapped_column(Text)
    status: Mapped[str] = mapped_column(Text, default=EndpointStatus.ACTIVE.value)
    status_reason: Mapped[str | None] = mapped_column(Text)
    events: Mapped[list[str]] = mapped_column(JSON)
    filter: Mapped[Any] = mapped_column(_ExactJson(none_as_null=True), nullable=True)
    format: Mapped[str] = mapped_column(Text, default="default")  # the type's name
    # The whole format as encrypted JSON; null while it has never been another than the default, and so no delivery of
    # the endpoint can have a rendered body.
    format_options: Mapped[str | None] = mapped_column(Text)
    headers: Mapped[str] = mapped_column(Text)  # encrypted JSON object
    signing_secret: Mapped[str] = mapped_column(Text)  # encrypted
    # The secret before it goes on signing until then; both are set, or neither.
    previous_signing_secret: Mapped[str | None] = mapped_column(Text)  # encrypted
    previous_secret_expires_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    policy: Mapped[dict[str, Any]] = mapped_column(JSON)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=utc_now())
    updated_at: Mapped[datetime] = mapped_column(UtcDateTime, default=utc_now())


class EndpointQueue(Base):
    """The scheduling side of an endpoint, apart from its configuration because every batch writes it.

    A pump leases whole queues, so that one process at a time serves an endpoint and its concurrency and rate
    limits hold over all workers: docs/decisions/0003. Invariant: while the endpoint is served and has pending
    deliveries, `due_at` is not later than the earliest `next_attempt_at` among them, or than `probe_at` while it is
    held.
    """

    __tablename__ = "endpoint_queues"
    __table_args__ = (
        Index(
            "ix_endpoint_queues_due_at",
            "due_at",
            sqlite_where=text("due_at IS NOT NULL"),
            postgresql_where=text("due_at IS NOT NULL"),
        ),
    )

    endpoint_id: Mapped[str] = mapped_column(
        IdText, ForeignKey("endpoints.id", ondelete="CASCADE"), primary_key=True
    )
    due_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    lease_id: Mapped[str | None] = mapped_column(IdText)
    leased_until: Mapped[datetime | None] = mapped_column(UtcDateTime)
    # When the next request is free under the rate limit (GCRA's theoretical arrival time).
    rate_limited_until: Mapped[datetime | None] = mapped_column(UtcDateTime)
    last_attempt_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    last_success_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    # The fields of `health.Health`.
    failures_in_row: Mapped[int] = mapped_column(Integer, server_default="0")
    failing_since: Mapped[datetime | None] = mapped_column(UtcDateTime)
    probe_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    failed_probes: Mapped[int] = mapped_column(Integer, server_default="0")
