"""Value objects of the scheduler: what it reads (a snapshot) and what it answers (a plan).

All slot amounts are integers in the slot's base unit (``spawner.scheduler.slots``): micro-units for
counts, bytes for memory. Times are seconds since the epoch; ``now`` is a field, never a clock.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

Slots = Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Device:
    """One thing that offers one slot; ``free`` is capacity minus what the ledger says is held."""

    slot: str
    device_id: str
    capacity: int
    free: int
    numa_node: int | None = None
    links: frozenset[str] = frozenset()
    """Ids of devices of the same slot with a fast link to this one (NVLink and the like)."""
    masked: bool = False
    """Never to be given out, though the agent reports it."""
    reserved: int = 0
    """Part of the capacity that is kept for the host."""
    quantum: int | None = None
    """Base units in which the agent cuts it, when that is coarser than its slot's quantum."""


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
    networks: frozenset[str] | None = None
    """Networks by which it can connect the containers of a session (``networks.NODE``: on this node);
    None: by all."""


@dataclass(frozen=True, slots=True)
class KernelRequest:
    """What one container needs."""

    kernel_id: str
    slots: Slots
    image: str
    architecture: str
    shared_memory: int = 0
    """Bytes; part of the memory asked for, so it must be smaller."""
    minimum: Slots = field(default_factory=dict)
    """What the image needs at least."""


@dataclass(frozen=True, slots=True)
class DeviceRules:
    """How amounts are cut out of devices."""

    fill: Literal["fill", "evenly"] = "fill"
    """``fill``: the fewest devices; ``evenly``: all that have something, in shares as equal as that allows."""
    unfragmented: bool = False
    """Of an accelerator up to one device's worth comes from one device; more from the fewest devices in
    equal shares."""
    numa: Literal["none", "prefer", "require"] = "none"
    """Whether all devices of a kernel come from one NUMA node. Devices without a node are near to all."""


@dataclass(frozen=True, slots=True)
class Dependency:
    """A parent session: it must have succeeded before its child starts."""

    session_id: str
    state: Literal["waiting", "succeeded", "failed"]
    name: str = ""
    """What its owner calls it."""


@dataclass(frozen=True, slots=True)
class SessionGroup:
    """Sessions of one owner to be spread over agents or packed onto few."""

    name: str
    rule: Literal["spread", "pack"] = "spread"
    strict: bool = False


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
    designation: Literal["strict", "preferred"] = "strict"
    """Whether it may run elsewhere than on ``designated_agents``."""
    run_time: float | None = None
    """Seconds it runs at most (declared) or probably (learned); None: unknown."""
    dependencies: tuple[Dependency, ...] = ()
    failed_parents: Literal["wait", "cancel", "ignore"] = "wait"
    session_group: SessionGroup | None = None
    devices: DeviceRules | None = None
    """Overrides the group's rules."""
    preemptible: bool = True
    unlimited: bool = False
    """Counts against no limit (sessions of the platform itself)."""
    eligible_since: float | None = None
    """Since when nothing of its own (parents, limits) holds it back; None: since it was submitted."""


@dataclass(frozen=True, slots=True)
class RunningSession:
    """A session that holds devices. ``ends_at`` None: nobody knows when it ends."""

    session_id: str
    owner_id: str
    project_id: str
    domain: str
    resource_group: str
    priority: int
    started_at: float
    ends_at: float | None
    kernels: tuple[KernelPlacement, ...]
    preemptible: bool = True
    ending: bool = False
    """It was told to end and still holds its devices."""
    claimed_by: str | None = None
    """The pending session for which it was preempted; what it holds goes to that one."""
    session_group: SessionGroup | None = None


@dataclass(frozen=True, slots=True)
class Usage:
    """Slot-seconds of one scope, each decayed to ``at`` (base units times seconds)."""

    scope: Literal["domain", "project", "user"]
    scope_id: str
    """Projects and users by id; a user's usage counts per project: ``PROJECT/USER``."""
    slot_seconds: Mapping[str, float]
    at: float
    weight: float = 1.0
    resource_group: str | None = None
    """Where it was used; it counts there only. None: in every group."""


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
    max_containers: int | None = None
    """Containers that one session may have."""


@dataclass(frozen=True, slots=True)
class PreemptionRules:
    """Whether waiting sessions may end running ones of strictly lower priority."""

    order: Literal["oldest", "newest", "fewest-sessions", "smallest-resources"] = "newest"
    action: Literal["terminate", "requeue"] = "requeue"
    minimum_run_time: float = 0.0
    """Seconds a session may run before it can be preempted."""
    scope: Literal["user", "project", "domain", "group"] = "group"
    """Victims come from the same user, project, domain or from the whole resource group."""


@dataclass(frozen=True, slots=True)
class GroupPolicy:
    """How a resource group orders and places."""

    name: str
    sequencer: str = "fifo"
    selector: str = "dispersed"
    slot_priority: tuple[str, ...] = ("cuda", "rocm", "tpu", "cpu", "mem")
    devices: DeviceRules = DeviceRules()
    served_slots: frozenset[str] | None = None
    """Slot names that may be asked for here; None: all."""
    required_slots: frozenset[str] = frozenset()
    """Slot names that every session must ask for."""
    weights: Mapping[str, float] = field(default_factory=dict)
    """Shares of owners for ``drf`` (by owner id; 1 when missing)."""
    slot_weights: Mapping[str, float] = field(default_factory=dict)
    """What a slot-second of each slot costs in ``fair-share``."""
    half_life: float = 7 * 86400.0
    """Seconds in which usage counts half in ``fair-share``."""
    ageing: float = 3 * 86400.0
    """Seconds of waiting after which a session is not overtaken any more by others of its band or below."""
    preemption: PreemptionRules | None = None
    rise: float | None = 7 * 86400.0
    """Seconds of waiting after which a session comes before all bands, at least ``ageing``; None: never."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything a pass may know."""

    now: float
    groups: tuple[GroupPolicy, ...]
    agents: tuple[Agent, ...]
    pending: tuple[SessionRequest, ...]
    quotas: tuple[Quota, ...] = ()
    running: tuple[RunningSession, ...] = ()
    usage: tuple[Usage, ...] = ()


class DeviceShare(NamedTuple):
    """An amount of one slot of one device; a tuple, as every pass makes thousands of them."""

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
class Reservation:
    """Where and when a session that waits is to start, and what later sessions leave for it."""

    session_id: str
    starts_at: float | None
    """None: not before something ends, and nobody knows when."""
    agent_ids: tuple[str, ...]
    amounts: tuple[Slots, ...] = ()
    """What is kept on each of ``agent_ids``; containers count as ``*containers``."""
    cuts: tuple[tuple[DeviceShare, ...], ...] = ()
    """On each of ``agent_ids`` the devices that are kept, where its rules ask for certain ones."""


@dataclass(frozen=True, slots=True)
class Preemption:
    """A running session that ends for the sake of a waiting one."""

    victim_id: str
    for_session_id: str
    action: Literal["terminate", "requeue"]


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
    starts_at: float | None = None
    """Estimated start, when there is one."""
    waits_for: tuple[str, ...] = ()
    """Ids of running sessions whose end it needs."""
    largest: Slots | None = None
    """When no agent could ever serve it: of the requested slots, what the best-fitting agent has in all.
    Of a cluster that all agents together cannot hold, what they have together."""


@dataclass(frozen=True, slots=True)
class Plan:
    """The answer of a pass."""

    placements: tuple[Placement, ...]
    waiting: tuple[Explanation, ...]
    order: tuple[str, ...] = ()
    """Ids of all pending sessions in the order in which the pass looked at them."""
    reservations: tuple[Reservation, ...] = ()
    preemptions: tuple[Preemption, ...] = ()
    cancelled: tuple[Reason, ...] = ()
    """Sessions to be cancelled because a parent failed (``data["session_id"]``)."""


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
    """Why it would not start now, otherwise; ``starts_at`` says when it could, if that is known."""
    would_fit: Slots | None = None
    """When ``verdict`` is ``wait``: of each slot asked for, what could start now on the best-fitting agent."""
