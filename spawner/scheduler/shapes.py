"""Shapes: what makes requests equal for placement, so that equal ones are worked out once per pass."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from spawner.scheduler.model import (
    Agent,
    DeviceRules,
    GroupPolicy,
    KernelRequest,
    Reason,
    SessionGroup,
    SessionRequest,
)
from spawner.scheduler.networks import network_of
from spawner.scheduler.nodes import CONTAINERS, PLAIN, Need
from spawner.scheduler.slots import (
    example,
    family_of,
    format_amount,
    human_amount,
    human_bytes,
    is_accelerator,
    kind_of,
    way_of,
)

Lane = frozenset[tuple[frozenset[str], frozenset[str], frozenset[str]]]
SINGLE, MULTI = "single-node", "multi-node"


@dataclass(frozen=True, slots=True)
class Circle:
    """A session group with its owner: names are each owner's own."""

    owner_id: str
    group: SessionGroup

    @property
    def members(self) -> tuple[str, str]:
        """Who belongs to it, whatever rule each of them asks for."""
        return self.owner_id, self.group.name


@dataclass(frozen=True, slots=True, eq=False)
class Shape:
    """What one node must give: kernels that start together on it. Compared by identity, see ``Shapes``."""

    slots: tuple[tuple[str, int], ...]
    """Summed amounts above zero, by slot name; a slot asked for with zero is not asked for."""
    need: Need
    """``slots`` and the containers."""
    kernels: tuple[tuple[tuple[str, int], ...], ...]
    """Amounts above zero of each kernel, by slot name."""
    architectures: frozenset[str]
    images: frozenset[str]
    designated: frozenset[str]
    """Agents it may not run outside of; empty: any."""
    preferred: frozenset[str]
    """Agents where it is to run if it can."""
    network: str | None
    """What must connect its node with those of the session's other containers."""
    circle: Circle | None
    rules: DeviceRules
    plain: bool
    """Its rules never ask for more than the sums of what is free."""

    @property
    def wanted(self) -> tuple[str, ...]:
        """Names of the slots asked for."""
        return tuple([slot for slot, _ in self.slots])

    @property
    def weight(self) -> tuple[int, int, int]:
        """How hard it is to place: accelerators weigh more than CPUs, and they more than memory."""
        amounts = dict(self.slots)
        scarce = sum(amount for slot, amount in self.slots if is_accelerator(slot))
        return scarce, amounts.get("cpu", 0), amounts.get("mem", 0)

    @property
    def containers(self) -> int:
        """How many containers it is."""
        return self.need[0][1]


@dataclass(frozen=True, slots=True, eq=False)
class Outline:
    """What a session needs in all: its parts, each on one node. Compared by identity, see ``Shapes``."""

    parts: tuple[Shape, ...]
    """One for a single-node session, else one per kernel; equal kernels have the same object."""
    slots: tuple[tuple[str, int], ...]
    """Summed amounts above zero of all kernels."""
    defects: tuple[Reason, ...] = ()
    """Everything for which no node whatever could run it: the request itself is wrong."""
    lane: Lane = frozenset()
    """What it waits for in kind: per part architectures, strict designation, accelerator families."""


class Shapes:
    """The shapes of a pass: sessions that can start on the same nodes get the same objects."""

    def __init__(self, policy: GroupPolicy, agents: Sequence[Agent] = ()) -> None:
        self._policy = policy
        self._agents = agents
        self._outlines: dict[object, Outline] = {}
        self._shapes: dict[object, Shape] = {}

    def __iter__(self) -> Iterator[Shape]:
        """The shapes of all sound requests."""
        sound = {
            part for each in self._outlines.values() if not each.defects for part in each.parts
        }
        return (shape for shape in self._shapes.values() if shape in sound)

    def of(self, session: SessionRequest) -> Outline:
        """The outline of ``session``."""
        group = session.session_group
        circle = None if group is None else Circle(session.owner_id, group)
        kernels = session.kernels
        asked = _asked(kernels[0]) if len(kernels) == 1 else tuple(map(_asked, kernels))
        key = (
            asked,
            len(kernels),
            session.designated_agents,
            session.designation,
            session.cluster_mode,
            circle,
            session.devices,
        )
        outline = self._outlines.get(key)
        if outline is None:
            outline = self._outlines[key] = self._outline(session, circle)
        return outline

    def _outline(self, session: SessionRequest, circle: Circle | None) -> Outline:
        kernels = session.kernels
        apart = session.cluster_mode == MULTI and len(kernels) > 1
        together = [(kernel,) for kernel in kernels] if apart else [kernels]
        network = network_of(session, self._agents)
        parts = tuple(self._shape(session, part, network, circle) for part in together)
        lane: Lane = frozenset().union(
            *(lane_of(part.architectures, part.designated, part.wanted) for part in parts)
        )
        slots = parts[0].slots if len(parts) == 1 else _sum(kernels)
        return Outline(parts, slots, tuple(defects(session, self._policy)), lane)

    def _shape(
        self,
        session: SessionRequest,
        kernels: tuple[KernelRequest, ...],
        network: str | None,
        circle: Circle | None,
    ) -> Shape:
        slots = _sum(kernels)
        strict = session.designation == "strict"
        nobody: frozenset[str] = frozenset()
        rules = session.devices or self._policy.devices
        if rules == PLAIN:
            rules = PLAIN
        key = (
            slots,
            ((CONTAINERS, len(kernels)), *slots),
            (slots,) if len(kernels) == 1 else tuple([_sum((kernel,)) for kernel in kernels]),
            frozenset([kernel.architecture for kernel in kernels]),
            frozenset([kernel.image for kernel in kernels]),
            session.designated_agents if strict else nobody,
            nobody if strict else session.designated_agents,
            network,
            circle,
            rules,
            not rules.unfragmented and rules.numa != "require",
        )
        found = self._shapes.get(key)
        if found is None:
            found = self._shapes[key] = Shape(*key)
        return found


def lane_of(
    architectures: frozenset[str], designated: frozenset[str], wanted: Iterable[str]
) -> Lane:
    """What one part waits for in kind."""
    families = frozenset(family_of(slot) for slot in wanted if is_accelerator(slot))
    return frozenset(((architectures, designated, families),))


def defects(session: SessionRequest, policy: GroupPolicy) -> Iterator[Reason]:
    """Everything that is wrong with the request itself, whatever nodes there are."""
    if not session.kernels:
        yield Reason("kernels", "it has no containers")
    if session.cluster_mode not in (SINGLE, MULTI):
        yield Reason(
            "cluster-mode",
            f"cluster mode {session.cluster_mode!r} is not offered: choose {SINGLE!r} or {MULTI!r}",
        )
    seen: set[tuple[str, str]] = set()
    for kernel in session.kernels:
        for reason in _kernel_defects(kernel, policy):
            if (reason.name, reason.message) not in seen:
                seen.add((reason.name, reason.message))
                yield reason


def _kernel_defects(kernel: KernelRequest, policy: GroupPolicy) -> Iterator[Reason]:
    served = policy.served_slots
    yield from mixed(kernel)
    for slot, amount in kernel.slots.items():
        quantum = kind_of(slot).quantum
        if amount < 0 or amount % quantum:
            text = (
                f"{slot} is {amount} base units: it must be a non-negative multiple of "
                f"{format_amount(slot, quantum)}, such as {example(slot)}"
            )
            yield Reason("amount", text, data={"slot": slot, "requested": amount})
        if amount and served is not None and slot not in served:
            text = (
                f"resource group {policy.name!r} does not serve {slot} "
                f"(it serves {', '.join(sorted(served)) or 'nothing'})"
            )
            yield Reason("slot-kinds", text, data={"slot": slot})
    for slot in sorted(policy.required_slots):
        if not kernel.slots.get(slot):
            text = f"resource group {policy.name!r} requires every container to ask for {slot}"
            yield Reason("required-slots", text, data={"slot": slot})
    for slot, least in sorted(kernel.minimum.items()):
        asked = kernel.slots.get(slot, 0)
        if asked < least:
            text = (
                f"image {kernel.image} needs at least {human_amount(slot, least)} "
                f"(asked for {human_amount(slot, asked)})"
            )
            data = {"slot": slot, "requested": asked, "minimum": least}
            yield Reason("image-minimum", text, data=data)
    memory = kernel.slots.get("mem", 0)
    if kernel.shared_memory and kernel.shared_memory >= memory:
        text = (
            f"shared memory of {human_bytes(kernel.shared_memory)} must be smaller than "
            f"the memory of {human_bytes(max(0, memory))}"
        )
        data = {"shared_memory": kernel.shared_memory, "mem": memory}
        yield Reason("shared-memory", text, data=data)


def mixed(kernel: KernelRequest) -> Iterator[Reason]:
    """An accelerator family taken in more than one way: whole, in shares or in partitions."""
    special = [slot for slot, amount in kernel.slots.items() if amount and is_accelerator(slot)]
    if len(special) < 2:
        return
    ways: dict[str, dict[str, str]] = {}
    for slot in sorted(special):
        ways.setdefault(family_of(slot), {}).setdefault(way_of(slot), slot)
    for family, found in sorted(ways.items()):
        if len(found) > 1:
            slots = " and ".join(sorted(found.values()))
            text = f"a container cannot have {slots}: they divide the same {family} devices in different ways"
            yield Reason("exclusive-family", text, data={"family": family})


def _asked(k: KernelRequest) -> tuple[object, ...]:
    """All of one kernel that its outline depends on."""
    minimum = tuple(k.minimum.items()) if k.minimum else ()
    return (tuple(k.slots.items()), k.architecture, k.image, k.shared_memory, minimum)


def _sum(kernels: tuple[KernelRequest, ...]) -> tuple[tuple[str, int], ...]:
    total: dict[str, int] = {}
    for kernel in kernels:
        for slot, amount in kernel.slots.items():
            if amount:
                total[slot] = total.get(slot, 0) + amount
    return tuple(sorted(total.items()))
