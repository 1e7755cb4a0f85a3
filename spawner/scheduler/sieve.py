"""Who surely waits, told without working a request out: for dry runs, where nobody reads why others wait.

What a session behind a queue must know of those ahead of it is who starts, what is reserved, and how many
stand in line. Most of a long queue only stands in line: no node has free what they ask for, as it was at the
beginning of the pass, and within a pass what is free only falls.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from spawner.scheduler.census import Bunch
from spawner.scheduler.model import GroupPolicy, KernelRequest, SessionRequest
from spawner.scheduler.nodes import CONTAINERS, Node
from spawner.scheduler.shapes import MULTI, SINGLE, Lane, lane_of, mixed
from spawner.scheduler.slots import is_accelerator, kind_of

FRONT = 32
"""How many nodes' free amounts are compared with a request; more than these are taken for one large node."""

Amounts = Mapping[str, int]


@dataclass(frozen=True, slots=True)
class _Kind:
    """What requests for the same slots on the same architecture have in common."""

    lane: Lane
    quanta: Mapping[str, int]
    free: Sequence[Amounts]
    """What nodes have free that no other node has more of in everything."""
    sizes: Sequence[Amounts]
    """What nodes have in all that take sessions now and cut in the usual steps."""


class Sieve:
    """Knows requests of one group that no node has room for at the beginning of a pass."""

    def __init__(
        self, policy: GroupPolicy, nodes: Sequence[Node], bunches: Sequence[Bunch]
    ) -> None:
        self._policy = policy
        self._nodes = nodes
        self._bunches = bunches
        self._kinds: dict[tuple[str, tuple[str, ...]], _Kind | None] = {}
        self._fronts: dict[str, list[Amounts]] = {}

    def lane(self, session: SessionRequest) -> Lane | None:
        """The lane in which ``session`` waits for room; None: it may start, or has to be looked at closely."""
        if (
            len(session.kernels) != 1
            or session.designated_agents
            or session.session_group is not None
            or session.devices is not None
            or session.cluster_mode not in (SINGLE, MULTI)
        ):
            return None
        kernel = session.kernels[0]
        slots = kernel.slots
        wanted = tuple([slot for slot, amount in slots.items() if amount])
        key = (kernel.architecture, wanted)
        if key not in self._kinds:
            self._kinds[key] = self._kind(kernel, wanted)
        kind = self._kinds[key]
        if kind is None or (kernel.shared_memory and kernel.shared_memory >= slots.get("mem", 0)):
            return None
        for slot, quantum in kind.quanta.items():
            amount = slots[slot]
            if amount < 0 or amount % quantum:
                return None
        if any(slots.get(slot, 0) < least for slot, least in kernel.minimum.items()):
            return None
        if _within(slots, wanted, kind.free) or not _within(slots, wanted, kind.sizes):
            return None
        return kind.lane

    def _kind(self, kernel: KernelRequest, wanted: tuple[str, ...]) -> _Kind | None:
        policy, rules = self._policy, self._policy.devices
        served = policy.served_slots
        picky = rules.numa == "require" or (rules.unfragmented and any(map(is_accelerator, wanted)))
        unserved = served is not None and not served.issuperset(wanted)
        if picky or unserved or not policy.required_slots.issubset(wanted) or any(mixed(kernel)):
            return None
        architecture = kernel.architecture
        if architecture not in self._fronts:
            self._fronts[architecture] = _front(
                node.free
                for node in self._nodes
                if node.agent.architecture == architecture
                and node.agent.alive
                and node.agent.schedulable
            )
        return _Kind(
            lane_of(frozenset((architecture,)), frozenset(), wanted),
            {slot: kind_of(slot).quantum for slot in wanted},
            self._fronts[architecture],
            [
                bunch.one.capacity
                for bunch in self._bunches
                if bunch.present
                and bunch.one.agent.architecture == architecture
                and not bunch.one.coarse
            ],
        )


def _within(slots: Amounts, wanted: Iterable[str], nodes: Iterable[Amounts]) -> bool:
    """Whether any of ``nodes`` has all of it."""
    for has in nodes:
        if has[CONTAINERS] < 1:
            continue
        for slot in wanted:
            if has.get(slot, 0) < slots[slot]:
                break
        else:
            return True
    return False


def _front(nodes: Iterable[Amounts]) -> list[Amounts]:
    """Those of ``nodes`` that no other one covers; one that covers all when they are many."""
    found: list[Amounts] = []
    for has in {tuple(sorted(each.items())): each for each in nodes}.values():
        if any(_covers(other, has) for other in found):
            continue
        found = [other for other in found if not _covers(has, other)]
        found.append(dict(has))
        if len(found) > FRONT:
            slots = {slot for each in found for slot in each}
            found = [{slot: max(each.get(slot, 0) for each in found) for slot in slots}]
    return found


def _covers(one: Amounts, other: Amounts) -> bool:
    return all(one.get(slot, 0) >= amount for slot, amount in other.items())
