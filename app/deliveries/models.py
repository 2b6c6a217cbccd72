"""Deliveries, the duties; attempts, the delivery log."""

from datetime import datetime
from enum import StrEnum

from sqlalchemy import Boolean, Index, Integer, LargeBinary, SmallInteger, Text, false, select, text
from sqlalchemy.orm import Mapped, column_property, mapped_column

from app.core.database import Base, IdText, UtcDateTime, utc_now
from app.core.partitions import PartitionedTable

DELIVERY_PREFIX = "dlv"
ATTEMPT_PREFIX = "att"
RECOVERY_PREFIX = "rcv"


class DeliveryStatus(StrEnum):
    """Where a delivery stands."""

    PENDING = "pending"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELED = "canceled"


class AttemptStatus(StrEnum):
    """How an attempt ended."""

    SUCCESS = "success"
    FAILED = "failed"


class Trigger(StrEnum):
    """Who asked for an attempt."""

    AUTO = "auto"
    MANUAL = "manual"
    TEST = "test"


class RecoveryStatus(StrEnum):
    """Where a recovery stands."""

    RUNNING = "running"
    DONE = "done"
    CANCELED = "canceled"


# Whose partitions are made ahead, and dropped when their days are over.
PARTITIONED_TABLES = (
    PartitionedTable("events", "evt"),
    # Half a page stays free: a delivery that is finished is written a second time, beside the first.
    PartitionedTable("deliveries", "evt", "fillfactor = 50"),
    PartitionedTable("rendered_bodies", "evt"),
    PartitionedTable("attempts", "att"),
)

_MANUAL = text("trigger = 'manual'")
_FAILED = text("status = 'failed'")
_RUNNING = text("status = 'running'")


class PendingDelivery(Base):
    """What is still to be done for a delivery whose status is `pending`; gone when the delivery is finished.

    A table of its own: what changes with every attempt and is searched for by every claim is narrow here, and
    finishing a delivery touches none of the indexes by which people look for it.
    """

    __tablename__ = "pending_deliveries"
    __table_args__ = (
        Index("ix_pending_deliveries_due", "endpoint_id", "is_retry", "next_attempt_at", "event_id"),
        # What somebody asked for goes out through a hold, and is found among all that waits there.
        Index(
            "ix_pending_deliveries_manual",
            "endpoint_id",
            "next_attempt_at",
            sqlite_where=_MANUAL,
            postgresql_where=_MANUAL,
        ),
    )

    event_id: Mapped[str] = mapped_column(IdText, primary_key=True)
    endpoint_id: Mapped[str] = mapped_column(IdText, primary_key=True)
    delivery_id: Mapped[str] = mapped_column(IdText)
    # Whether it has been attempted: first attempts are claimed apart, so that a storm of retries cannot delay them.
    is_retry: Mapped[bool] = mapped_column(Boolean, server_default=false())
    attempt_count: Mapped[int] = mapped_column(Integer, server_default="0")
    trigger: Mapped[str] = mapped_column(Text, server_default=Trigger.AUTO.value)  # of the next attempt
    next_attempt_at: Mapped[datetime] = mapped_column(UtcDateTime, server_default=utc_now())


class Delivery(Base):
    """The duty to bring one event to one endpoint.

    Partitioned by its event, which makes (event, endpoint) unique, and lets both be dropped together. No foreign keys
    here or on attempts: they would cost a locked look-up per row, and endpoints may be deleted while their log stays.
    """

    __tablename__ = "deliveries"
    __table_args__ = (
        Index("ix_deliveries_workspace_id_id", "workspace_id", "id"),
        Index("ix_deliveries_endpoint_id_id", "endpoint_id", "id"),
        {"postgresql_partition_by": "RANGE (event_id)"},
    )

    event_id: Mapped[str] = mapped_column(IdText, primary_key=True)
    endpoint_id: Mapped[str] = mapped_column(IdText, primary_key=True)
    id: Mapped[str] = mapped_column(IdText)
    workspace_id: Mapped[str] = mapped_column(IdText)
    event_type: Mapped[str] = mapped_column(Text)
    is_test: Mapped[bool] = mapped_column(Boolean, server_default=false())  # sent once, and never again
    # None of the columns from here on may have an index: their update would then write all indexes anew.
    status: Mapped[str] = mapped_column(Text, server_default=DeliveryStatus.PENDING.value)
    attempt_count: Mapped[int] = mapped_column(Integer, server_default="0")
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, server_default=utc_now())
    finished_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    next_attempt_at: Mapped[datetime | None] = column_property(
        select(PendingDelivery.next_attempt_at)
        .where(PendingDelivery.event_id == event_id, PendingDelivery.endpoint_id == endpoint_id)
        .scalar_subquery()
    )


class PendingTest(Base):
    """A delivery that somebody asked for as a test and waits for; gone when it is finished.

    It has no row in `pending_deliveries`, so that no pump takes it and nothing of its endpoint's queue changes.
    """

    __tablename__ = "pending_tests"

    delivery_id: Mapped[str] = mapped_column(IdText, primary_key=True)
    workspace_id: Mapped[str] = mapped_column(IdText)
    event_id: Mapped[str] = mapped_column(IdText)
    endpoint_id: Mapped[str] = mapped_column(IdText)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, server_default=utc_now())
    claimed_at: Mapped[datetime | None] = mapped_column(UtcDateTime)  # set once: a test is never sent twice


class RenderedBody(Base):
    """The body of a delivery whose endpoint has another format than the default: every attempt sends these bytes.

    Made with the delivery; one that has neither `body` nor `error` is rendered when the delivery is claimed. A delivery
    without a row here sends its event's body, whatever format its endpoint has by now.
    """

    __tablename__ = "rendered_bodies"
    __table_args__ = ({"postgresql_partition_by": "RANGE (event_id)"},)

    event_id: Mapped[str] = mapped_column(IdText, primary_key=True)
    endpoint_id: Mapped[str] = mapped_column(IdText, primary_key=True)
    format: Mapped[str] = mapped_column(Text)  # the type's name: what is masked in it depends on that
    body: Mapped[str | None] = mapped_column(Text)  # encrypted: it may have secrets of the format in it
    content_type: Mapped[str | None] = mapped_column(Text)
    error: Mapped[str | None] = mapped_column(
        Text
    )  # why there is no body: a sentence, with the template's line


class Attempt(Base):
    """One POST of a delivery. The body that was sent is the rendered one where there is one, or else the event's."""

    __tablename__ = "attempts"
    __table_args__ = (
        Index("ix_attempts_endpoint_id_id", "endpoint_id", "id"),
        Index("ix_attempts_delivery_id", "delivery_id"),
        Index("ix_attempts_failed", "endpoint_id", "id", sqlite_where=_FAILED, postgresql_where=_FAILED),
        {"postgresql_partition_by": "RANGE (id)"},
    )

    id: Mapped[str] = mapped_column(IdText, primary_key=True)
    workspace_id: Mapped[str] = mapped_column(IdText)
    delivery_id: Mapped[str] = mapped_column(IdText)
    event_id: Mapped[str] = mapped_column(IdText)
    event_type: Mapped[str] = mapped_column(Text)
    endpoint_id: Mapped[str] = mapped_column(IdText)
    number: Mapped[int] = mapped_column(Integer)
    trigger: Mapped[str] = mapped_column(Text)
    status: Mapped[str] = mapped_column(Text)
    status_code: Mapped[int | None] = mapped_column(Integer)
    duration_ms: Mapped[int] = mapped_column(Integer)
    error_code: Mapped[str | None] = mapped_column(Text)
    error_detail: Mapped[str | None] = mapped_column(Text)
    started_at: Mapped[datetime] = mapped_column(UtcDateTime)
    url: Mapped[str] = mapped_column(Text)
    request_headers: Mapped[str] = mapped_column(Text)  # JSON array of [name, value], secrets masked
    response_headers: Mapped[str] = mapped_column(Text)  # JSON array of [name, value]
    response_body: Mapped[bytes] = mapped_column(LargeBinary)
    response_truncated: Mapped[bool] = mapped_column(Boolean)


class AttemptCount(Base):
    """How many attempts of an endpoint in an hour ended so, and took about so long."""

    __tablename__ = "attempt_counts"
    # By hour first: what is written to is together, and so is what retention deletes.
    __table_args__ = (Index("ix_attempt_counts_endpoint_id_hour", "endpoint_id", "hour"),)

    hour: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)  # since 1970, in UTC
    endpoint_id: Mapped[str] = mapped_column(IdText, primary_key=True)
    status: Mapped[str] = mapped_column(Text, primary_key=True)
    duration_bin: Mapped[int] = mapped_column(SmallInteger, primary_key=True)  # see statistics.py
    count: Mapped[int] = mapped_column(Integer)


class Recovery(Base):
    """The job that restarts all of an endpoint's failed deliveries that were made in a span of time.

    It goes through the ids of deliveries twice: to count, and to restart; `cursor` is the last one that it looked at.
    No foreign key: a job whose endpoint is gone ends by itself, and cannot be seen any more.
    """

    __tablename__ = "recoveries"
    __table_args__ = (
        # One at a time for each endpoint; and the few that run are found by it.
        Index(
            "uq_recoveries_running",
            "endpoint_id",
            unique=True,
            sqlite_where=_RUNNING,
            postgresql_where=_RUNNING,
        ),
        Index("ix_recoveries_endpoint_id_id", "endpoint_id", "id"),
    )

    id: Mapped[str] = mapped_column(IdText, primary_key=True)
    workspace_id: Mapped[str] = mapped_column(IdText)
    endpoint_id: Mapped[str] = mapped_column(IdText)
    since: Mapped[datetime] = mapped_column(UtcDateTime)
    until: Mapped[datetime] = mapped_column(UtcDateTime)
    dry_run: Mapped[bool] = mapped_column(Boolean)
    status: Mapped[str] = mapped_column(Text, default=RecoveryStatus.RUNNING.value)
    matched: Mapped[int] = mapped_column(Integer, default=0)
    done: Mapped[int] = mapped_column(Integer, default=0)
    counted: Mapped[bool] = mapped_column(Boolean, default=False)  # `matched` is complete
    cursor: Mapped[str] = mapped_column(IdText)
    next_step_at: Mapped[datetime] = mapped_column(UtcDateTime)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    finished_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
