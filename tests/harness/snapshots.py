"""Builders of scheduler snapshots, with defaults for everything a test does not care about.

Amounts are written as people write them (``{"cpu": 2, "mem": "4g"}``); time starts at ``NOW`` and
sessions are submitted in the order in which they are built, unless told otherwise.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from spawner.scheduler.model import (
    Agent,
    Device,
    DeviceShare,
    GroupPolicy,
    KernelPlacement,
    KernelRequest,
    Quota,
    RunningSession,
    SessionGroup,
    SessionRequest,
    Slots,
    Snapshot,
)
from spawner.scheduler.slots import MICRO, parse_amount

NOW = 1_800_000_000.0
ARCHITECTURE = "x86_64"
GROUP = "default"
IMAGE = "perijove/base"

Amounts = Mapping[str, object]


def slots(amounts: Amounts) -> dict[str, int]:
    """Base units of amounts as people write them."""
    return {slot: parse_amount(slot, value) for slot, value in amounts.items()}


def devices(
    amounts: Amounts, used: Amounts | None = None, *, cores: bool = False
) -> tuple[Device, ...]:
    """One device per slot; accelerators (and with ``cores`` the CPU) one device per unit.

    ``used`` is taken from the first devices on.
    """
    held = slots(used or {})
    found: list[Device] = []
    for slot, capacity in slots(amounts).items():
        single = slot == "mem" or (slot == "cpu" and not cores)
        sizes = [capacity] if single else [MICRO] * (capacity // MICRO)
        for number, size in enumerate(sizes):
            taken = min(size, held.get(slot, 0))
            held[slot] = held.get(slot, 0) - taken
            name = slot if single else f"{slot.partition('.')[0]}{number}"
            found.append(Device(slot, name, size, size - taken))
    return tuple(found)


def agent(
    agent_id: str = "a1",
    has: Amounts | None = None,
    used: Amounts | None = None,
    *,
    cores: bool = False,
    group: str = GROUP,
    architecture: str = ARCHITECTURE,
    containers: int = 0,
    max_containers: int | None = None,
    schedulable: bool = True,
    alive: bool = True,
    images: Iterable[str] = (),
) -> Agent:
    """An agent with 8 CPUs and 32 GiB, or with what it ``has``."""
    return Agent(
        agent_id,
        group,
        architecture,
        devices({"cpu": 8, "mem": "32g"} if has is None else has, used, cores=cores),
        containers=containers,
        max_containers=max_containers,
        schedulable=schedulable,
        alive=alive,
        images=frozenset(images),
    )


def session(
    session_id: str = "s1",
    wants: Amounts | None = None,
    *,
    kernels: int = 1,
    at: float = 0.0,
    priority: int = 10,
    owner: str = "ada",
    group: str = GROUP,
    architecture: str = ARCHITECTURE,
    image: str = IMAGE,
    cluster_mode: str = "single-node",
    designated: Iterable[str] = (),
    failed: Iterable[str] = (),
    starts_at: float | None = None,
    run_time: float | None = None,
) -> SessionRequest:
    """A session of one CPU, or ``kernels`` containers that each want ``wants``; ``at`` seconds after ``NOW``."""
    amounts: Slots = slots({"cpu": 1} if wants is None else wants)
    return SessionRequest(
        session_id,
        owner_id=owner,
        access_key=f"key-{owner}",
        project_id="lab",
        domain="default",
        resource_group=group,
        priority=priority,
        submitted_at=NOW + at,
        kernels=tuple(
            KernelRequest(f"{session_id}-k{number}", amounts, image, architecture)
            for number in range(kernels)
        ),
        cluster_mode=cluster_mode,
        designated_agents=frozenset(designated),
        failed_agents=frozenset(failed),
        starts_at=None if starts_at is None else NOW + starts_at,
        run_time=run_time,
    )


def quota(
    scope: str = "keypair",
    scope_id: str = "key-ada",
    limit: Amounts | None = None,
    held: Amounts | None = None,
    *,
    sessions: int | None = None,
    running: int = 0,
) -> Quota:
    """Limits of one scope; without ``limit`` and ``sessions`` nothing is limited."""
    return Quota(
        scope,
        scope_id,
        None if limit is None else slots(limit),
        slots(held or {}),
        max_sessions=sessions,
        held_sessions=running,
    )


def snapshot(
    agents: Iterable[Agent] = (),
    pending: Iterable[SessionRequest] = (),
    *,
    quotas: Iterable[Quota] = (),
    selector: str = "dispersed",
    sequencer: str = "fifo",
    groups: Iterable[GroupPolicy] | None = None,
    runs: Iterable[RunningSession] = (),
) -> Snapshot:
    """A snapshot at ``NOW`` with one resource group, or with ``groups``."""
    policies = (GroupPolicy(GROUP, sequencer, selector),) if groups is None else tuple(groups)
    return Snapshot(
        NOW, policies, tuple(agents), tuple(pending), tuple(quotas), running=tuple(runs)
    )


def running(
    session_id: str,
    agent_id: str = "a1",
    holds: Amounts | None = None,
    *,
    ends: float | None = None,
    started: float = -3600.0,
    owner: str = "ada",
    priority: int = 10,
    group: str = GROUP,
    preemptible: bool = True,
    ending: bool = False,
    claimed_by: str | None = None,
    circle: SessionGroup | None = None,
) -> RunningSession:
    """A session of one kernel that holds ``holds`` (one CPU) until ``ends`` seconds after ``NOW``.

    Devices are named as ``devices`` names them: amounts of accelerators are those of the first ones.
    The agent must say itself what of it is ``used``.
    """
    shares: list[DeviceShare] = []
    for slot, amount in slots(holds or {"cpu": 1}).items():
        if slot in ("cpu", "mem"):
            shares.append(DeviceShare(slot, slot, amount))
        else:
            name = slot.partition(".")[0]
            shares += [DeviceShare(slot, f"{name}{n}", MICRO) for n in range(amount // MICRO)]
    return RunningSession(
        session_id,
        owner,
        "lab",
        "default",
        group,
        priority,
        NOW + started,
        None if ends is None else NOW + ends,
        (KernelPlacement(f"{session_id}-k0", agent_id, tuple(shares)),),
        preemptible=preemptible,
        ending=ending,
        claimed_by=claimed_by,
        session_group=circle,
    )
