"""Rows of storage folders."""

import datetime as dt
import uuid

from sqlalchemy import BigInteger, CheckConstraint, ForeignKey, Index, String, text
from sqlalchemy.orm import Mapped, mapped_column

from store.base import Base

LIVE = text("status <> 'delete-complete'")


class FolderRow(Base):
    """A vfolder. Its bytes lie on ``volume`` under ``<scope>/<id[:2]>/<id[2:4]>/<id[4:]>``."""

    __tablename__ = "vfolders"
    __table_args__ = (
        CheckConstraint("quota_bytes IS NULL OR quota_bytes >= 0", name="quota"),
        CheckConstraint("ownership IN ('user', 'group')", name="ownership"),
        Index(
            "uq_vfolders_owner_name",
            "owner_id",
            "name",
            unique=True,
            sqlite_where=LIVE,
            postgresql_where=LIVE,
        ),
    )

    id: Mapped[uuid.UUID] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(64))
    volume: Mapped[str] = mapped_column(String(64))
    ownership: Mapped[str] = mapped_column(String(8), default="user")
    owner_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("users.id"))
    project_id: Mapped[uuid.UUID | None] = mapped_column(ForeignKey("projects.id"))
    usage_mode: Mapped[str] = mapped_column(String(8), default="general")
    permission: Mapped[str] = mapped_column(String(2), default="wd")
    is_home: Mapped[bool] = mapped_column(default=False)
    """Each user has one home folder, mounted at /home/work in their sessions; it cannot be deleted."""
    quota_bytes: Mapped[int | None] = mapped_column(BigInteger)
    cloneable: Mapped[bool] = mapped_column(default=False)
    status: Mapped[str] = mapped_column(String(16), default="ready")
    created_at: Mapped[dt.datetime]
    last_used: Mapped[dt.datetime | None]
