"""API keys: only a keyed hash of each is kept."""

from datetime import datetime
from enum import StrEnum

from sqlalchemy import JSON, BigInteger, ForeignKey, Index, Integer, LargeBinary, Text, text
from sqlalchemy.orm import Mapped, mapped_column

from app.core.database import Base, IdText, UtcDateTime, utc_now
from app.workspaces.models import Workspace

ID_PREFIX = "key"


class KeyStatus(StrEnum):
    """What a key is good for."""

    ACTIVE = "active"
    EXPIRED = "expired"
    REVOKED = "revoked"


class ApiKey(Base):
    """A credential of a workspace."""

    __tablename__ = "api_keys"
    __table_args__ = (
        Index("ix_api_keys_workspace_id_id", "workspace_id", "id"),
        Index(
            "ix_api_keys_next_notice_at",
            "next_notice_at",
            sqlite_where=text("next_notice_at IS NOT NULL"),
            postgresql_where=text("next_notice_at IS NOT NULL"),
        ),
    )

    id: Mapped[str] = mapped_column(IdText, primary_key=True)
    workspace_id: Mapped[str] = mapped_column(IdText, ForeignKey(Workspace.id))
    name: Mapped[str] = mapped_column(Text)
    prefix: Mapped[str] = mapped_column(Text)
    # Looked up by value: unique, since two rows for one key would make revoking one of them mean nothing.
    key_hash: Mapped[bytes] = mapped_column(LargeBinary, unique=True)
    hash_key_id: Mapped[str] = mapped_column(Text)
    scopes: Mapped[list[str]] = mapped_column(JSON)
    allowed_cidrs: Mapped[list[str]] = mapped_column(JSON)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=utc_now())
    expires_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    revoked_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    last_used_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    last_used_ip: Mapped[str | None] = mapped_column(Text)
    rotated_from: Mapped[str | None] = mapped_column(IdText)
    # What it was made for, which a rotation's overlap does not shorten: its successor gets as long again.
    lifetime_seconds: Mapped[int | None] = mapped_column(BigInteger)
    next_notice_at: Mapped[datetime | None] = mapped_column(
        UtcDateTime
    )  # none is due any more when it is None
    expired_at: Mapped[datetime | None] = mapped_column(UtcDateTime)  # beat's mark: its end has been told of
    rate_limit_per_second: Mapped[int | None] = mapped_column(Integer)  # None: the setting's

    def status_at(self, moment: datetime) -> KeyStatus:
        """Give the state at a time of the database's clock."""
        if self.revoked_at is not None:
            return KeyStatus.REVOKED
        if self.expires_at is not None and self.expires_at <= moment:
            return KeyStatus.EXPIRED
        return KeyStatus.ACTIVE
