"""Events, and the event types that a workspace adds to the built-in ones."""

from datetime import datetime
from typing import Any

from sqlalchemy import JSON, Index, LargeBinary, Text, text
from sqlalchemy.orm import Mapped, mapped_column

from app.core.database import Base, IdText, UtcDateTime, utc_now

ID_PREFIX = "evt"


class Event(Base):
    """An immutable fact, published once. `body` is the envelope as it is signed and sent, on every attempt."""

    __tablename__ = "events"
    __table_args__ = (
        Index("ix_events_workspace_id_id", "workspace_id", "id"),
        # The caller's own id: a repeated publish finds the first event instead of making a second.
        Index(
            "uq_events_workspace_id_external_id",
            "workspace_id",
            "external_id",
            unique=True,
            sqlite_where=text("external_id IS NOT NULL"),
            postgresql_where=text("external_id IS NOT NULL"),
        ),
        Index(
            "ix_events_not_fanned_out",
            "id",
            sqlite_where=text("fanned_out_at IS NULL"),
            postgresql_where=text("fanned_out_at IS NULL"),
        ),
    )

    id: Mapped[str] = mapped_column(IdText, primary_key=True)
    workspace_id: Mapped[str] = mapped_column(IdText)
    type: Mapped[str] = mapped_column(Text)
    external_id: Mapped[str | None] = mapped_column(Text)
    occurred_at: Mapped[datetime] = mapped_column(UtcDateTime)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    body: Mapped[bytes] = mapped_column(LargeBinary)
    fanned_out_at: Mapped[datetime | None] = mapped_column(UtcDateTime)


class CustomEventType(Base):
    """A workspace's own catalogue entry."""

    __tablename__ = "event_types"

    workspace_id: Mapped[str] = mapped_column(IdText, primary_key=True)
    name: Mapped[str] = mapped_column(Text, primary_key=True)
    description: Mapped[str] = mapped_column(Text)
    schema: Mapped[Any] = mapped_column(JSON(none_as_null=True), nullable=True)
    example: Mapped[Any] = mapped_column(JSON(none_as_null=True), nullable=True)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=utc_now())
