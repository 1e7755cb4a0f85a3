"""What callers hand to the session service and what they get back: plain values, no database."""

from __future__ import annotations

import datetime as dt
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from spawner.sessions.states import Status
from spawner.sessions.tables import KernelRow, SessionRow

REDACTED = "(hidden)"
_SECRET_WORDS = ("TOKEN", "SECRET", "PASSWORD", "KEY")


@dataclass(frozen=True, slots=True)
class HubLaunch:
    """What the hub adds to a session that is one of its servers (accepted from the hub only)."""

    hub: str
    """Id of the hub."""
    server: str
    """Name of the JupyterHub server; empty for the default one."""
    command: tuple[str, ...]
    port: int


@dataclass(frozen=True, slots=True)
class NewSession:
    """A request for a session, as received: values are checked by ``creation.check``.

    ``slots`` and ``resource_opts`` hold what the caller wrote (text or numbers, e.g. ``{"cpu": "2",
    "mem": "4g"}`` and ``{"shmem": "64m"}``). ``starts_at`` is an ISO 8601 time or a duration such as
    ``"90s"``, ``"2h"``. ``project`` is a name or id; None means the owner's first project.
    """

    name: str
    image: str
    type: str = "interactive"
    architecture: str | None = None
    resource_group: str | None = None
    slots: Mapping[str, object] = field(default_factory=dict)
    resource_opts: Mapping[str, object] = field(default_factory=dict)
    mounts: Sequence[str] = ()
    mount_map: Mapping[str, str] = field(default_factory=dict)
    environ: Mapping[str, str] = field(default_factory=dict)
    domain: str | None = None
    project: str | None = None
    cluster_mode: str = "single-node"
    cluster_size: int = 1
    priority: int | None = None
    tag: str | None = None
    startup_command: str | None = None
    bootstrap_script: str | None = None
    starts_at: str | None = None
    dependencies: Sequence[str] = ()
    callback_url: str | None = None
    preopen_ports: Sequence[object] = ()
    designated_agents: Sequence[str] = ()
    reuse_if_exists: bool = True
    hub: HubLaunch | None = None
    failed_parents: str = "wait"
    """What becomes of it when a session it depends on fails: ``wait``, ``cancel`` or ``ignore``."""
    run_time: object = None
    """Duration after which it is ended; it also tells the scheduler when its resources come back."""
    preemptible: bool = True
    designation: str = "strict"
    """Whether it may run elsewhere than on ``designated_agents``: ``strict`` or ``preferred``."""
    session_group: Mapping[str, object] | None = None
    """``{"name", "rule": "spread" | "pack", "strict": bool}``."""
    retry_policy: Mapping[str, object] | None = None
    """``{"max_retries", "causes", "backoff", "backoff_limit"}`` (``spawner.sessions.retries``)."""
    service: Mapping[str, object] | None = None
    """Of an inference session: ``{"port", "protocol", "start_timeout", "health_check": {...}}``."""


@dataclass(frozen=True, slots=True)
class SessionDetail:
    """A session with its kernels, as its reader may see it.

    Rows are detached copies. Secrets in the kernels' environment are hidden; agents' names are
    there for superadmins only.
    """

    session: SessionRow
    kernels: tuple[KernelRow, ...]
    owner: str
    """User name of the owner."""
    owner_email: str = ""
    project: str = ""
    """Name of the project."""
    occupied: Mapping[str, int] = field(default_factory=dict)
    """What its kernels hold now, by slot, in base units."""
    unreachable_since: dt.datetime | None = None
    """When its node was last heard of, while that node does not answer."""

    @property
    def main(self) -> KernelRow:
        """The kernel that people talk to."""
        return min(self.kernels, key=lambda k: (k.cluster_role != "main", k.cluster_index))

    @property
    def status(self) -> Status:
        """Status of the session."""
        return Status(self.session.status)

    @property
    def environ(self) -> dict[str, str]:
        """Environment of the main kernel without secrets."""
        return dict(self.main.spec.get("environ", {}))


@dataclass(frozen=True, slots=True)
class Created:
    """Answer of ``SessionService.create``: ``created`` is false when a live session was reused."""

    detail: SessionDetail
    created: bool


@dataclass(frozen=True, slots=True)
class ProgressEvent:
    """One step on a session's way. The last one has ``end`` set and carries ``url``/``exit_code``."""

    id: int
    """Grows; give the last one seen as ``after`` to go on from there."""
    at: dt.datetime
    status: str
    message: str
    progress: int
    """Percent of the way to RUNNING."""
    end: bool = False
    url: str | None = None
    exit_code: int | None = None


@dataclass(frozen=True, slots=True)
class Check:
    """The answer of ``Offers.dry_run``, as clients see it: ``verdict`` is ``now``, ``wait`` or ``never``."""

    verdict: str
    message: str
    errors: Mapping[str, str] = field(default_factory=dict)
    starts_at: float | None = None
    """When it would probably start, in seconds since the epoch, if it would wait."""
    would_fit: Mapping[str, str] | None = None
    """Of each slot, what could start now instead, if it would wait."""


@dataclass(frozen=True, slots=True)
class AgentSession:
    """A session as an administrator sees it on an agent."""

    session_id: uuid.UUID
    name: str
    owner: str
    status: str
    slots: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class AgentView:
    """An agent for administrators. Slot amounts are in base units."""

    id: str
    resource_group: str
    status: str
    schedulable: bool
    connected: bool
    architecture: str
    engine: str
    version: str
    address: str
    first_contact: dt.datetime
    last_seen: dt.datetime
    lost_at: dt.datetime | None
    capacity: Mapping[str, int]
    used: Mapping[str, int]
    devices: tuple[Mapping[str, Any], ...]
    """``{"slot", "device_id", "model", "numa_node", "capacity", "used", "attributes"}`` each."""
    sessions: tuple[AgentSession, ...]
    images: tuple[str, ...] = ()
    drain: Mapping[str, Any] | None = None
    """While it is being emptied: since when, and until when what runs there may run."""
    unwell: str | None = None
    """Why its engine can be given nothing now."""


def hide_secrets(environ: Mapping[str, str]) -> dict[str, str]:
    """``environ`` with the values of names that sound secret replaced."""
    return {
        name: REDACTED if any(word in name.upper() for word in _SECRET_WORDS) else value
        for name, value in environ.items()
    }
