"""Rows of sessions, kernels, agents, devices, allocations, history, groups, presets and images.

Slot amounts are integers in the slot's base unit (``spawner.scheduler.slots``).
"""

import datetime as dt
import uuid
from typing import Any

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Double,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    String,
    Text,
    text,
)
from sqlalchemy.orm import Mapped, mapped_column

from store.base import Base, JsonDict

LIVE = text("status NOT IN ('TERMINATED', 'CANCELLED', 'ERROR')")


class ResourceGroupRow(Base):
    """Agents scheduled together (Backend.AI: scaling group). ``options``: sequencer, selector, ..."""

    __tablename__ = "resource_groups"

    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    description: Mapped[str] = mapped_column(Text, default="")
    is_active: Mapped[bool] = mapped_column(default=True)
    is_default: Mapped[bool] = mapped_column(default=False)
    options: Mapped[JsonDict]
    created_at: Mapped[dt.datetime]


class PresetRow(Base):
    """A named bundle of slots; ``resource_group`` None means offered in every group."""

    __tablename__ = "resource_presets"

    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    resource_slots: Mapped[JsonDict]
    shared_memory: Mapped[int | None] = mapped_column(BigInteger)
    resource_group: Mapped[str | None] = mapped_column(ForeignKey("resource_groups.name"))
    rank: Mapped[int] = mapped_column(default=0)


class ImageRow(Base):
    """An image that some agent has or can get; ``labels`` as the engine reports them."""

    __tablename__ = "images"

    name: Mapped[str] = mapped_column(String(255), primary_key=True)
    architecture: Mapped[str] = mapped_column(String(16), primary_key=True)
    engine: Mapped[str] = mapped_column(String(16))
    digest: Mapped[str | None] = mapped_column(String(128))
    size_bytes: Mapped[int] = mapped_column(BigInteger, default=0)
    labels: Mapped[JsonDict]
    is_enabled: Mapped[bool] = mapped_column(default=True)
    created_at: Mapped[dt.datetime]
    owner_id: Mapped[uuid.UUID | None] = mapped_column(index=True)
    """Whose it is, of an image made of a session; None: everybody's."""
    expected_digest: Mapped[str | None] = mapped_column(String(128))
    """The only digest under which agents may pull it."""


class RegistryRow(Base):
    """A registry whose images agents pull with credentials. ``name`` is its host, with the port."""

    __tablename__ = "registries"

    name: Mapped[str] = mapped_column(String(255), primary_key=True)
    username: Mapped[str] = mapped_column(String(255))
    password: Mapped[str] = mapped_column(Text)
    """As the registry wants it, so that agents can show it; never part of an answer."""
    is_active: Mapped[bool] = mapped_column(default=True)
    created_at: Mapped[dt.datetime]


class CommitRow(Base):
    """An image being made of a session, or made of it."""

    __tablename__ = "commits"
    __table_args__ = (
        CheckConstraint("status IN ('ongoing', 'done', 'failed')", name="status"),
        Index("ix_commits_session", "session_id"),
    )

    id: Mapped[uuid.UUID] = mapped_column(primary_key=True)
    session_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("sessions.id", ondelete="CASCADE"))
    owner_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("users.id"))
    agent_id: Mapped[str] = mapped_column(String(64))
    image: Mapped[str] = mapped_column(String(255))
    status: Mapped[str] = mapped_column(String(16))
    message: Mapped[str] = mapped_column(Text, default="")
    created_at: Mapped[dt.datetime]
    ended_at: Mapped[dt.datetime | None]


class AgentRow(Base):
    """A node's daemon, and the node."""

    __tablename__ = "agents"
    __table_args__ = (CheckConstraint("status IN ('ALIVE', 'LOST', 'TERMINATED')", name="status"),)

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    resource_group: Mapped[str] = mapped_column(ForeignKey("resource_groups.name"))
    status: Mapped[str] = mapped_column(String(16))
    schedulable: Mapped[bool] = mapped_column(default=True)
    architecture: Mapped[str] = mapped_column(String(16))
    engine: Mapped[str] = mapped_column(String(16))
    version: Mapped[str] = mapped_column(String(32))
    address: Mapped[str] = mapped_column(String(255))
    """Where the proxy reaches this agent's sessions (a host name or address)."""
    max_containers: Mapped[int | None]
    images: Mapped[list[Any]]
    features: Mapped[JsonDict | None]
    """What its engine can do besides (``Hello.features``)."""
    first_contact: Mapped[dt.datetime]
    last_seen: Mapped[dt.datetime]
    lost_at: Mapped[dt.datetime | None]
    drain: Mapped[JsonDict | None]
    """While it is being emptied: ``{"since", "deadline"}`` (ISO 8601; no deadline: null)."""


class DeploymentRow(Base):
    """This deployment: one row, whose id is on what agents make beyond their own node."""

    __tablename__ = "deployment"

    name: Mapped[str] = mapped_column(String(16), primary_key=True)
    id: Mapped[uuid.UUID]
    created_at: Mapped[dt.datetime]


class AgentTokenRow(Base):
    """A secret with which an agent dials in; only its SHA-256 is kept. ``agent_id`` None: any agent.

    ``kind``: ``standing`` (for any number of dials), ``join`` (makes one node a member, which gets a
    ``credential`` of its own for it).
    """

    __tablename__ = "agent_tokens"

    id: Mapped[uuid.UUID] = mapped_column(primary_key=True)
    token_hash: Mapped[str] = mapped_column(String(64), unique=True)
    agent_id: Mapped[str | None] = mapped_column(String(64))
    note: Mapped[str] = mapped_column(Text, default="")
    created_at: Mapped[dt.datetime]
    revoked_at: Mapped[dt.datetime | None]
    kind: Mapped[str] = mapped_column(String(16), default="standing", server_default="standing")
    expires_at: Mapped[dt.datetime | None]
    """When a join token that nobody used is worth nothing any more."""
    used_at: Mapped[dt.datetime | None]
    """When an agent dialled with it first."""
    join_id: Mapped[uuid.UUID | None]
    """Of a credential: the join token that it was given for."""


class AgentDeviceRow(Base):
    """The ledger's account of one slot of one device: never ``used > capacity``.

    ``reported`` is what the agent offers now. ``capacity`` equals it, except while a device that
    shrank is still held by more: then it is what is held, and falls back as kernels leave.
    """

    __tablename__ = "agent_devices"
    __table_args__ = (
        CheckConstraint("used >= 0", name="used_not_negative"),
        CheckConstraint("used <= capacity", name="not_overcommitted"),
        CheckConstraint("reported >= 0", name="reported"),
    )

    agent_id: Mapped[str] = mapped_column(
        ForeignKey("agents.id", ondelete="CASCADE"), primary_key=True
    )
    slot: Mapped[str] = mapped_column(String(64), primary_key=True)
    device_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    reported: Mapped[int] = mapped_column(BigInteger)
    capacity: Mapped[int] = mapped_column(BigInteger)
    used: Mapped[int] = mapped_column(BigInteger, default=0)
    numa_node: Mapped[int | None]
    model: Mapped[str] = mapped_column(String(128), default="")
    attributes: Mapped[JsonDict]


class SlotTypeRow(Base):
    """How people read a slot, as an agent last said it (``spawner.agent.protocol.SlotMetadata``)."""

    __tablename__ = "slot_types"

    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    facts: Mapped[JsonDict]


class SessionRow(Base):
    """What a user asked for. User actions change ``target`` only; the reconciler moves ``status``."""

    __tablename__ = "sessions"
    __table_args__ = (
        CheckConstraint("target IN ('RUNNING', 'TERMINATED')", name="target"),
        CheckConstraint("priority BETWEEN 0 AND 100", name="priority"),
        Index(
            "uq_sessions_owner_name",
            "owner_id",
            "name",
            unique=True,
            sqlite_where=LIVE,
            postgresql_where=LIVE,
        ),
        Index("ix_sessions_status", "status"),
    )

    id: Mapped[uuid.UUID] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(64))
    owner_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("users.id"), index=True)
    access_key: Mapped[str] = mapped_column(String(20))
    domain: Mapped[str] = mapped_column(ForeignKey("domains.name"))
    project_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("projects.id"))
    resource_group: Mapped[str] = mapped_column(ForeignKey("resource_groups.name"))
    type: Mapped[str] = mapped_column(String(16))
    cluster_mode: Mapped[str] = mapped_column(String(16), default="single-node")
    cluster_size: Mapped[int] = mapped_column(default=1)
    cluster_keys: Mapped[JsonDict | None]
    """Keys with which its containers reach each other (``spawner.sessions.clusters``); secret."""
    priority: Mapped[int] = mapped_column(default=10)
    image: Mapped[str] = mapped_column(String(255))
    architecture: Mapped[str] = mapped_column(String(16))
    requested_slots: Mapped[JsonDict]
    resource_opts: Mapped[JsonDict]
    designated_agents: Mapped[list[Any]]
    status: Mapped[str] = mapped_column(String(16))
    target: Mapped[str] = mapped_column(String(16), default="RUNNING")
    forced: Mapped[bool] = mapped_column(default=False)
    status_info: Mapped[str] = mapped_column(Text, default="")
    """Why the session is in this status: a sentence for its owner."""
    status_data: Mapped[JsonDict]
    """While it waits: the scheduler's structured explanation."""
    result: Mapped[str] = mapped_column(String(16), default="undefined")
    tag: Mapped[str | None] = mapped_column(String(64))
    callback_url: Mapped[str | None] = mapped_column(Text)
    origin: Mapped[JsonDict]
    """Who asked: ``{"hub": "<hub id>", "server": "<server name>"}`` or ``{}``."""
    request_id: Mapped[str] = mapped_column(String(64))
    starts_at: Mapped[dt.datetime | None]
    eligible_since: Mapped[dt.datetime | None]
    """Since when it waits for room only; None: its own limits or parents hold it, or no pass saw it yet."""
    scheduling: Mapped[JsonDict | None]
    """What it asks of the scheduler besides resources (``spawner.sessions.wishes``)."""
    ends_at: Mapped[dt.datetime | None]
    """When its run-time limit is reached; set when it starts to run."""
    idle: Mapped[JsonDict | None]
    """What was found of its idleness (``spawner.sessions.idle_state``)."""
    recovery: Mapped[JsonDict | None]
    """Its retry policy, and which attempt this is (``spawner.sessions.retries``)."""
    created_at: Mapped[dt.datetime]
    scheduled_at: Mapped[dt.datetime | None]
    started_at: Mapped[dt.datetime | None]
    terminated_at: Mapped[dt.datetime | None]


class KernelRow(Base):
    """One container of a session. ``epoch`` grows with each (re)start; stale epochs are refused."""

    __tablename__ = "kernels"
    __table_args__ = (Index("ix_kernels_agent_status", "agent_id", "status"),)

    id: Mapped[uuid.UUID] = mapped_column(primary_key=True)
    session_id: Mapped[uuid.UUID] = mapped_column(
        ForeignKey("sessions.id", ondelete="CASCADE"), index=True
    )
    cluster_role: Mapped[str] = mapped_column(String(16), default="main")
    cluster_index: Mapped[int] = mapped_column(default=1)
    hostname: Mapped[str] = mapped_column(String(64), default="main1")
    epoch: Mapped[int] = mapped_column(default=0)
    status: Mapped[str] = mapped_column(String(16))
    agent_id: Mapped[str | None] = mapped_column(ForeignKey("agents.id"))
    image: Mapped[str] = mapped_column(String(255))
    slots: Mapped[JsonDict]
    spec: Mapped[JsonDict]
    """What the agent needs besides: command, environ, mounts, ports, shm bytes, ..."""
    container_id: Mapped[str | None] = mapped_column(String(128))
    url: Mapped[str | None] = mapped_column(String(255))
    """Where the proxy reaches the main port of this kernel."""
    ports: Mapped[list[Any]]
    exit_code: Mapped[int | None]
    status_info: Mapped[str] = mapped_column(Text, default="")
    last_stat: Mapped[JsonDict]
    last_log: Mapped[str] = mapped_column(Text, default="")
    """The tail of the log of a kernel that ended."""
    created_at: Mapped[dt.datetime]
    started_at: Mapped[dt.datetime | None]
    terminated_at: Mapped[dt.datetime | None]


class AllocationRow(Base):
    """Amount of one slot of one device that a kernel holds until ``freed_at``."""

    __tablename__ = "allocations"
    __table_args__ = (
        CheckConstraint("amount > 0", name="amount"),
        Index(
            "ix_allocations_live",
            "agent_id",
            sqlite_where=text("freed_at IS NULL"),
            postgresql_where=text("freed_at IS NULL"),
        ),
        Index(
            "ix_allocations_uncharged",
            "uncharged_since",
            sqlite_where=text("uncharged_since IS NOT NULL"),
            postgresql_where=text("uncharged_since IS NOT NULL"),
        ),
    )

    kernel_id: Mapped[uuid.UUID] = mapped_column(
        ForeignKey("kernels.id", ondelete="CASCADE"), primary_key=True
    )
    epoch: Mapped[int] = mapped_column(primary_key=True)
    agent_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    slot: Mapped[str] = mapped_column(String(64), primary_key=True)
    device_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    amount: Mapped[int] = mapped_column(BigInteger)
    allocated_at: Mapped[dt.datetime]
    freed_at: Mapped[dt.datetime | None]
    uncharged_since: Mapped[dt.datetime | None]
    """From when on it still has to be charged to its owner's usage; None: all is charged."""


class RunRow(Base):
    """A run of a kernel that ended: how, and what was kept of its output (``spawner.sessions.runs``)."""

    __tablename__ = "runs"

    kernel_id: Mapped[uuid.UUID] = mapped_column(
        ForeignKey("kernels.id", ondelete="CASCADE"), primary_key=True
    )
    epoch: Mapped[int] = mapped_column(primary_key=True)
    session_id: Mapped[uuid.UUID] = mapped_column(
        ForeignKey("sessions.id", ondelete="CASCADE"), index=True
    )
    attempt: Mapped[int]
    """The how manieth run of the session it was."""
    cause: Mapped[str] = mapped_column(String(16))
    """Why it ended: ``success``, ``ended``, or one of the causes of ``spawner.sessions.retries``."""
    message: Mapped[str] = mapped_column(Text, default="")
    exit_code: Mapped[int | None]
    started_at: Mapped[dt.datetime | None]
    ended_at: Mapped[dt.datetime]
    log: Mapped[bytes | None] = mapped_column(LargeBinary)
    """Its output, compressed by zlib: all, or the beginning and the end with a line between."""


class LostRunRow(Base):
    """A run that was given up with its node, while its session goes on elsewhere.

    Its devices stay accounted on that node until the node says that it is gone.
    """

    __tablename__ = "lost_runs"

    kernel_id: Mapped[uuid.UUID] = mapped_column(
        ForeignKey("kernels.id", ondelete="CASCADE"), primary_key=True
    )
    epoch: Mapped[int] = mapped_column(primary_key=True)
    agent_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    session_id: Mapped[uuid.UUID]
    lost_at: Mapped[dt.datetime]


class UsageRow(Base):
    """Slot-seconds that a scope used in a resource group, decayed to ``at`` (``spawner.sessions.usage``)."""

    __tablename__ = "usage_accounts"
    __table_args__ = (CheckConstraint("scope IN ('domain', 'project', 'user')", name="scope"),)

    resource_group: Mapped[str] = mapped_column(
        ForeignKey("resource_groups.name", ondelete="CASCADE"), primary_key=True
    )
    scope: Mapped[str] = mapped_column(String(16), primary_key=True)
    scope_id: Mapped[str] = mapped_column(String(128), primary_key=True)
    """Name of a domain, id of a project, ``PROJECT/USER``."""
    slot: Mapped[str] = mapped_column(String(64), primary_key=True)
    slot_seconds: Mapped[float] = mapped_column(Double)
    """Base units times seconds."""
    at: Mapped[dt.datetime]


class PassRow(Base):
    """How many passes the scheduler made for a resource group, so that attempts need no counters of their own."""

    __tablename__ = "scheduler_passes"

    resource_group: Mapped[str] = mapped_column(
        ForeignKey("resource_groups.name", ondelete="CASCADE"), primary_key=True
    )
    passes: Mapped[int] = mapped_column(BigInteger, default=0)
    at: Mapped[dt.datetime]


class RunTimeRow(Base):
    """How long batch sessions of one owner and image ran: a moving mean and its mean deviation."""

    __tablename__ = "run_times"

    owner_id: Mapped[uuid.UUID] = mapped_column(
        ForeignKey("users.id", ondelete="CASCADE"), primary_key=True
    )
    image: Mapped[str] = mapped_column(String(255), primary_key=True)
    samples: Mapped[int]
    mean: Mapped[float] = mapped_column(Double)
    """Seconds."""
    deviation: Mapped[float] = mapped_column(Double)


class HistoryRow(Base):
    """A transition (or attempt) of a session, kernel or agent, with its cause; the object's story."""

    __tablename__ = "history"
    __table_args__ = (Index("ix_history_object", "kind", "object_id", "id"),)

    id: Mapped[int] = mapped_column(
        BigInteger().with_variant(Integer(), "sqlite"),
        primary_key=True,
        autoincrement=True,
    )
    kind: Mapped[str] = mapped_column(String(16))
    object_id: Mapped[str] = mapped_column(String(64))
    session_id: Mapped[uuid.UUID | None] = mapped_column(index=True)
    at: Mapped[dt.datetime]
    from_status: Mapped[str | None] = mapped_column(String(16))
    to_status: Mapped[str] = mapped_column(String(16))
    cause: Mapped[str] = mapped_column(Text)
    """A sentence."""
    request_id: Mapped[str] = mapped_column(String(64))
    data: Mapped[JsonDict]


class CallbackRow(Base):
    """What happened to a session and its callback URL is not told yet (``spawner.sessions.callbacks``)."""

    __tablename__ = "callbacks"
    __table_args__ = (
        Index("ix_callbacks_session", "session_id", "number"),
        Index("ix_callbacks_due", "due_at"),
    )

    number: Mapped[int] = mapped_column(
        BigInteger().with_variant(Integer(), "sqlite"), primary_key=True, autoincrement=True
    )
    """The order in which a session's are told."""
    id: Mapped[uuid.UUID] = mapped_column(unique=True)
    """By which its receiver knows a repeat."""
    session_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("sessions.id", ondelete="CASCADE"))
    event: Mapped[str] = mapped_column(String(32))
    at: Mapped[dt.datetime]
    tries: Mapped[int] = mapped_column(default=0)
    due_at: Mapped[dt.datetime]
    """When it is tried next."""
