"""Rows of identity: domain > project > user > key pair, and the policies that say what they may use.

Slot amounts in ``total_resource_slots`` are integers in the slot's own base unit (see
``spawner.scheduler.slots``); None means unlimited, an amount of 0 means nothing.
"""

import datetime as dt
import uuid

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Double,
    ForeignKey,
    String,
    Text,
    UniqueConstraint,
)
from sqlalchemy.orm import Mapped, mapped_column

from store.base import Base, JsonDict


class DomainRow(Base):
    """A domain: the outermost payer."""

    __tablename__ = "domains"

    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    description: Mapped[str] = mapped_column(Text, default="")
    is_active: Mapped[bool] = mapped_column(default=True)
    total_resource_slots: Mapped[JsonDict | None]
    max_concurrent_sessions: Mapped[int | None]
    weight: Mapped[float] = mapped_column(Double, default=1.0, server_default="1")
    """Its share in ``fair-share``, against others beside it."""
    allowed_vfolder_hosts: Mapped[JsonDict | None]
    created_at: Mapped[dt.datetime]


class ProjectRow(Base):
    """A project (Backend.AI: group) of a domain."""

    __tablename__ = "projects"
    __table_args__ = (UniqueConstraint("domain", "name", name="uq_projects_domain_name"),)

    id: Mapped[uuid.UUID] = mapped_column(primary_key=True)
    domain: Mapped[str] = mapped_column(ForeignKey("domains.name"))
    name: Mapped[str] = mapped_column(String(64))
    description: Mapped[str] = mapped_column(Text, default="")
    is_active: Mapped[bool] = mapped_column(default=True)
    total_resource_slots: Mapped[JsonDict | None]
    max_concurrent_sessions: Mapped[int | None]
    weight: Mapped[float] = mapped_column(Double, default=1.0, server_default="1")
    """Its share in ``fair-share``, against others beside it."""
    allowed_vfolder_hosts: Mapped[JsonDict | None]
    resource_policy: Mapped[str] = mapped_column(
        String(64), default="default", server_default="default"
    )
    """Name of its ``ProjectPolicyRow``; added without a foreign key, so ``Administration`` guards it."""
    created_at: Mapped[dt.datetime]


class UserRow(Base):
    """A person. ``username`` is the JupyterHub name; ``password_hash`` is argon2id or None (log-in elsewhere)."""

    __tablename__ = "users"
    __table_args__ = (
        CheckConstraint("role IN ('user', 'admin', 'superadmin')", name="role"),
        CheckConstraint("status IN ('active', 'inactive', 'before-verification')", name="status"),
    )

    id: Mapped[uuid.UUID] = mapped_column(primary_key=True)
    username: Mapped[str] = mapped_column(String(64), unique=True)
    email: Mapped[str] = mapped_column(String(254), unique=True)
    full_name: Mapped[str] = mapped_column(String(254), default="")
    password_hash: Mapped[str | None] = mapped_column(Text)
    password_changed_at: Mapped[dt.datetime | None]
    domain: Mapped[str] = mapped_column(ForeignKey("domains.name"))
    role: Mapped[str] = mapped_column(String(16), default="user")
    status: Mapped[str] = mapped_column(String(24), default="active")
    main_access_key: Mapped[str | None] = mapped_column(String(20))
    total_resource_slots: Mapped[JsonDict | None]
    """Limits of the person, whatever key pair is used."""
    max_concurrent_sessions: Mapped[int | None]
    weight: Mapped[float] = mapped_column(Double, default=1.0, server_default="1")
    """The person's share in ``fair-share``, against others in the same project; ``drf`` has weights of its group."""
    resource_policy: Mapped[str] = mapped_column(
        String(64), default="default", server_default="default"
    )
    """Name of its ``UserPolicyRow``, guarded as a project's is."""
    bootstrap_script: Mapped[str | None] = mapped_column(Text)
    """Runs first in sessions that bring none of their own."""
    ssh_public_key: Mapped[str | None] = mapped_column(Text)
    """Whose private part opens the SSH servers of the person's sessions; that part is never kept."""
    created_at: Mapped[dt.datetime]


class MembershipRow(Base):
    """A user's place in a project."""

    __tablename__ = "memberships"

    user_id: Mapped[uuid.UUID] = mapped_column(
        ForeignKey("users.id", ondelete="CASCADE"), primary_key=True
    )
    project_id: Mapped[uuid.UUID] = mapped_column(
        ForeignKey("projects.id", ondelete="CASCADE"), primary_key=True
    )


class KeyPairPolicyRow(Base):
    """What holders of key pairs under this policy may use; None means unlimited, 0 nothing."""

    __tablename__ = "keypair_policies"

    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    total_resource_slots: Mapped[JsonDict | None]
    max_concurrent_sessions: Mapped[int | None]
    max_pending_sessions: Mapped[int | None]
    max_pending_resource_slots: Mapped[JsonDict | None]
    """What all sessions that wait may ask for together."""
    max_containers_per_session: Mapped[int] = mapped_column(default=1)
    max_session_lifetime: Mapped[int | None] = mapped_column(BigInteger)
    """Seconds."""
    max_priority: Mapped[int] = mapped_column(default=10)
    idle_timeout: Mapped[int | None] = mapped_column(BigInteger)
    """Seconds."""
    idle_checks: Mapped[JsonDict | None]
    """When sessions count as idle besides, and how their owners are warned (``spawner.sessions.idleness``)."""
    seccomp: Mapped[str | None] = mapped_column(String(64))
    """Name of the profile that their sessions run under (``spawner.agent.seccomp``)."""
    allowed_vfolder_hosts: Mapped[JsonDict | None]
    created_at: Mapped[dt.datetime]


class _ResourcePolicy:
    """What each holder of a policy may use, with all key pairs together; None: unlimited, 0: nothing."""

    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    total_resource_slots: Mapped[JsonDict | None]
    max_concurrent_sessions: Mapped[int | None]
    max_pending_sessions: Mapped[int | None]
    max_pending_resource_slots: Mapped[JsonDict | None]
    max_containers_per_session: Mapped[int | None]
    created_at: Mapped[dt.datetime]


class UserPolicyRow(_ResourcePolicy, Base):
    """Of users, each for itself."""

    __tablename__ = "user_resource_policies"

    max_vfolder_count: Mapped[int | None]
    max_customized_image_count: Mapped[int | None]
    """Images that a user may have made of sessions."""


class ProjectPolicyRow(_ResourcePolicy, Base):
    """Of projects, their members together."""

    __tablename__ = "project_resource_policies"


class KeyPairRow(Base):
    """An access key with its secret. HMAC needs the secret itself, so it cannot be stored hashed."""

    __tablename__ = "keypairs"

    access_key: Mapped[str] = mapped_column(String(20), primary_key=True)
    secret_key: Mapped[str] = mapped_column(String(64))
    user_id: Mapped[uuid.UUID] = mapped_column(
        ForeignKey("users.id", ondelete="CASCADE"), index=True
    )
    policy: Mapped[str] = mapped_column(ForeignKey("keypair_policies.name"))
    is_active: Mapped[bool] = mapped_column(default=True)
    is_admin: Mapped[bool] = mapped_column(default=False)
    rate_limit: Mapped[int] = mapped_column(default=30000)
    """Requests per rolling 15 minutes."""
    created_at: Mapped[dt.datetime]
    last_used: Mapped[dt.datetime | None]


_COUNT = " + ".join(
    f"CASE WHEN {name} IS NULL THEN 0 ELSE 1 END" for name in ("user_id", "project_id", "domain")
)


class DotfileRow(Base):
    """A file that sessions of a user, of a project's or of a domain's members find in their home folder."""

    __tablename__ = "dotfiles"
    __table_args__ = (
        CheckConstraint(f"{_COUNT} = 1", name="owner"),
        UniqueConstraint("user_id", "path", name="uq_dotfiles_user_id_path"),
        UniqueConstraint("project_id", "path", name="uq_dotfiles_project_id_path"),
        UniqueConstraint("domain", "path", name="uq_dotfiles_domain_path"),
    )

    id: Mapped[uuid.UUID] = mapped_column(primary_key=True)
    user_id: Mapped[uuid.UUID | None] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"))
    project_id: Mapped[uuid.UUID | None] = mapped_column(
        ForeignKey("projects.id", ondelete="CASCADE")
    )
    domain: Mapped[str | None] = mapped_column(ForeignKey("domains.name", ondelete="CASCADE"))
    path: Mapped[str] = mapped_column(Text)
    """Beneath the home folder."""
    permission: Mapped[str] = mapped_column(String(3))
    """Three octal digits."""
    data: Mapped[str] = mapped_column(Text)
