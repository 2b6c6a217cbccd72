"""A workspace is a tenant: everything else belongs to exactly one."""

from datetime import datetime

from sqlalchemy import Text
from sqlalchemy.orm import Mapped, mapped_column

from app.core.database import Base, IdText, UtcDateTime, utc_now

ID_PREFIX = "ws"


class Workspace(Base):
    """A tenant."""

    __tablename__ = "workspaces"

    id: Mapped[str] = mapped_column(IdText, primary_key=True)
    name: Mapped[str] = mapped_column(Text)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=utc_now())
