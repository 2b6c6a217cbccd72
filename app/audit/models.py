"""The audit log: who changed what, when and from where; the database refuses to change or delete its entries."""

from datetime import datetime

from sqlalchemy import JSON, Index, Text
from sqlalchemy.orm import Mapped, mapped_column

from app.core.database import Base, IdText, UtcDateTime

ID_PREFIX = "aud"


class AuditEntry(Base):
    """One change. It has no foreign keys, since it outlives what it tells of."""

    __tablename__ = "audit_entries"
    __table_args__ = (
        Index("ix_audit_entries_workspace_id_id", "workspace_id", "id"),
        # One for each filter, so that a page costs its rows, however many others there are.
        Index("ix_audit_entries_workspace_id_actor_type_id", "workspace_id", "actor_type", "id"),
        Index("ix_audit_entries_workspace_id_actor_id_id", "workspace_id", "actor_id", "id"),
        Index("ix_audit_entries_workspace_id_action_id", "workspace_id", "action", "id"),
        Index("ix_audit_entries_workspace_id_resource_id_id", "workspace_id", "resource_id", "id"),
    )

    id: Mapped[str] = mapped_column(IdText, primary_key=True)
    workspace_id: Mapped[str] = mapped_column(IdText)
    action: Mapped[str] = mapped_column(Text)  # noun.verbed; the noun is the resource's type
    actor_type: Mapped[str] = mapped_column(Text)
    actor_id: Mapped[str | None] = mapped_column(IdText)
    resource_id: Mapped[str] = mapped_column(IdText)
    changed: Mapped[list[str]] = mapped_column(JSON)  # names of fields, never their values
    address: Mapped[str | None] = mapped_column(Text)
    request_id: Mapped[str | None] = mapped_column(Text)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
