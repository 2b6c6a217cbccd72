"""Events, and the event types that a workspace adds to the built-in ones."""

from datetime import datetime
from typing import Any

from sqlalchemy import JSON, Index, LargeBinary, Text
from sqlalchemy.orm import Mapped, mapped_column

from app.core.database import Base, IdText, UtcDateTime, utc_now

ID_PREFIX = "evt"


class Event(Base):
    """An immutable fact, published once. `body` is the envelope as it is signed and sent, on every attempt.

    An expunged payload leaves an envelope without `data`, which is never sent.
    """

    __tablename__ = "events"
    __table_args__ = (
        Index("ix_events_workspace_id_id", "workspace_id", "id"),
        {"postgresql_partition_by": "RANGE (id)"},
    )

    id: Mapped[str] = mapped_column(IdText, primary_key=True)
    workspace_id: Mapped[str] = mapped_column(IdText)
    type: Mapped[str] = mapped_column(Text)
    external_id: Mapped[str | None] = mapped_column(Text)
    occurred_at: Mapped[datetime] = mapped_column(UtcDateTime)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    body: Mapped[bytes] = mapped_column(LargeBinary)
    payload_expunged_at: Mapped[datetime | None] = mapped_column(UtcDateTime)


class EventExternalId(Base):
    """The caller's own id of an event: a repeated publish finds the first event instead of making a second.

    A table of its own because a partitioned one cannot hold anything unique but its partition key.
    """

    __tablename__ = "event_external_ids"
    __table_args__ = (Index("ix_event_external_ids_event_id", "event_id"),)  # for retention

    workspace_id: Mapped[str] = mapped_column(IdText, primary_key=True)
    external_id: Mapped[str] = mapped_column(Text, primary_key=True)
    event_id: Mapped[str] = mapped_column(IdText)


class FanOut(Base):
    """The duty to fan out an event: made with it, and gone in the transaction that makes its deliveries.

    Narrow rows that come and go: marking the event instead would write its whole body a second time.
    """

    __tablename__ = "fan_outs"

    # By workspace first, so that the claim can take some of each.
    workspace_id: Mapped[str] = mapped_column(IdText, primary_key=True)
    event_id: Mapped[str] = mapped_column(IdText, primary_key=True)
    event_type: Mapped[str] = mapped_column(Text)


class CustomEventType(Base):
    """A workspace's own catalogue entry."""

    __tablename__ = "event_types"

    workspace_id: Mapped[str] = mapped_column(IdText, primary_key=True)
    name: Mapped[str] = mapped_column(Text, primary_key=True)
    description: Mapped[str] = mapped_column(Text)
    schema: Mapped[Any] = mapped_column(JSON(none_as_null=True), nullable=True)
    example: Mapped[Any] = mapped_column(JSON(none_as_null=True), nullable=True)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=utc_now())
