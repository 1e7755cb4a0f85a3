"""Value objects of the scheduler: what it reads (a snapshot) and what it answers (a plan).

All slot amounts are integers in the slot's base unit (``spawner.scheduler.slots``): micro-units for
counts, bytes for memory. Times are seconds since the epoch; ``now`` is a field, never a clock.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Slots = Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Device:
    """One thing that offers one slot; ``free`` is capacity minus what the ledger says is held."""

    slot: str
    device_id: str
    capacity: int
    free: int
    numa_node: int | None = None


@dataclass(frozen=True, slots=True)
class Agent:
    """A node as the scheduler sees it."""

    agent_id: str
    resource_group: str
    architecture: str
    devices: tuple[Device, ...]
    containers: int = 0
    max_containers: int | None = None
    schedulable: bool = True
    alive: bool = True
    images: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class KernelRequest:
    """What one container needs."""

    kernel_id: str
    slots: Slots
    image: str
    architecture: str


@dataclass(frozen=True, slots=True)
class SessionRequest:
    """A session that waits."""

    session_id: str
    owner_id: str
    access_key: str
    project_id: str
    domain: str
    resource_group: str
    priority: int
    submitted_at: float
    kernels: tuple[KernelRequest, ...]
    cluster_mode: str = "single-node"
    designated_agents: frozenset[str] = frozenset()
    failed_agents: frozenset[str] = frozenset()
    """Agents where this very session just failed: avoided, not forbidden."""
    starts_at: float | None = None


@dataclass(frozen=True, slots=True)
class Quota:
    """Limits of one scope with what is held now. ``slots`` None or a missing slot: unlimited; 0: nothing."""

    scope: str
    """``keypair``, ``user``, ``project`` or ``domain``."""
    scope_id: str
    max_slots: Slots | None
    held_slots: Slots
    max_sessions: int | None = None
    held_sessions: int = 0


@dataclass(frozen=True, slots=True)
class GroupPolicy:
    """How a resource group orders and places."""

    name: str
    sequencer: str = "fifo"
    selector: str = "dispersed"
    slot_priority: tuple[str, ...] = ("cuda", "rocm", "tpu", "cpu", "mem")


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything a pass may know."""

    now: float
    groups: tuple[GroupPolicy, ...]
    agents: tuple[Agent, ...]
    pending: tuple[SessionRequest, ...]
    quotas: tuple[Quota, ...] = ()


@dataclass(frozen=True, slots=True)
class DeviceShare:
    """An amount of one slot of one device."""

    slot: str
    device_id: str
    amount: int


@dataclass(frozen=True, slots=True)
class KernelPlacement:
    """A kernel's agent and devices."""

    kernel_id: str
    agent_id: str
    shares: tuple[DeviceShare, ...]


@dataclass(frozen=True, slots=True)
class Placement:
    """A session that starts now: all of its kernels, or it is not here."""

    session_id: str
    kernels: tuple[KernelPlacement, ...]


@dataclass(frozen=True, slots=True)
class Missing:
    """How much of a slot the best-fitting agent lacks."""

    slot: str
    requested: int
    available: int
    agent_id: str


@dataclass(frozen=True, slots=True)
class Reason:
    """One named reason why a session was not placed.

    ``name`` is a stable identifier (``capacity``, ``architecture``, ``quota``, ...), ``message`` a
    sentence for the person, ``removed`` how many agents this filter took out.
    """

    name: str
    message: str
    removed: int = 0
    data: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why a session still waits."""

    session_id: str
    position: int
    """Place in its group's queue, from 1: how many wait for resources ahead of it, plus one."""
    message: str
    """One sentence, e.g. ``queued, second in line: waiting for 2 CPUs``."""
    reasons: tuple[Reason, ...]
    missing: tuple[Missing, ...] = ()
    agents_total: int = 0
    unsatisfiable: bool = False
    """No agent's total capacity, or no limit of its owner, could ever let it start; it blocks nobody."""
    largest: Slots | None = None
    """When no agent could ever serve it: of the requested slots, what the best-fitting agent has in all."""


@dataclass(frozen=True, slots=True)
class Plan:
    """The answer of a pass."""

    placements: tuple[Placement, ...]
    waiting: tuple[Explanation, ...]
    order: tuple[str, ...] = ()
    """Ids of all pending sessions in the order in which the pass looked at them."""


VerdictName = Literal["now", "wait", "never"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """The answer of a dry run: would this request start now, wait, or never start as things are?"""

    verdict: VerdictName
    message: str
    """One sentence, e.g. ``can start now`` or ``cannot ever start: no node has more than 8 CPUs ...``."""
    agent_id: str | None = None
    """Where it would start, when ``verdict`` is ``now``."""
    explanation: Explanation | None = None
    """Why it would not start now, otherwise."""
