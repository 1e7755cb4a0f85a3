"""Which of the fitting nodes is best: strategies, and what accelerators are kept for."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from functools import lru_cache
from typing import Protocol

from spawner.scheduler.model import GroupPolicy
from spawner.scheduler.nodes import CONTAINERS, Node
from spawner.scheduler.slots import family_of, is_accelerator

Key = tuple[int, ...]


class Offer(Protocol):
    """What a strategy may look at: usable base units by slot."""

    @property
    def free(self) -> Mapping[str, int]:
        """What is free now."""

    @property
    def capacity(self) -> Mapping[str, int]:
        """What there is in all."""

    @property
    def turn(self) -> int:
        """How many nodes come before it in a round (``round-robin``)."""


Selector = Callable[[Offer, tuple[str, ...], GroupPolicy], Key]
"""Rates a node for a session that wants these slots: the smallest key wins, equal keys by agent id.

It must be a pure function of its arguments. It does not learn the amounts, so that all requests for
the same slots share one ranking of nodes.
"""


@lru_cache(maxsize=4096)
def by_priority(
    wanted: tuple[str, ...], slot_priority: tuple[str, ...]
) -> tuple[tuple[str, ...], ...]:
    """``wanted`` in groups of descending weight.

    An entry of ``slot_priority`` means the slot of this name or all slots of this family (``cuda``:
    ``cuda.device`` and ``cuda.shares``). Slots that no entry names come last, by name.
    """
    left = sorted(wanted)
    groups: list[tuple[str, ...]] = []
    for entry in slot_priority:
        group = tuple(slot for slot in left if entry in (slot, family_of(slot)))
        if group:
            groups.append(group)
            left = [slot for slot in left if slot not in group]
    return (*groups, *((slot,) for slot in left))


def concentrated(offer: Offer, wanted: tuple[str, ...], policy: GroupPolicy) -> Key:
    """Fill nodes one after another: the least free first, compared by slot priority."""
    free = offer.free
    return tuple(
        [
            free.get(group[0], 0) if len(group) == 1 else sum(free.get(slot, 0) for slot in group)
            for group in by_priority(wanted, policy.slot_priority)
        ]
    )


def dispersed(offer: Offer, wanted: tuple[str, ...], policy: GroupPolicy) -> Key:
    """Spread over nodes: the most free first, compared by slot priority."""
    free = offer.free
    return tuple(
        [
            -free.get(group[0], 0) if len(group) == 1 else -sum(free.get(slot, 0) for slot in group)
            for group in by_priority(wanted, policy.slot_priority)
        ]
    )


def round_robin(offer: Offer, wanted: tuple[str, ...], policy: GroupPolicy) -> Key:
    """One node after another by agent id, beginning after the one where a session started last."""
    return (offer.turn,)


def legacy(offer: Offer, wanted: tuple[str, ...], policy: GroupPolicy) -> Key:
    """As Backend.AI's: fewest kinds of slots free that are not asked for, then the most free.

    Slots are compared one by one in the order of priority, not by family.
    """
    free = offer.free
    unused = 0
    for slot, amount in free.items():
        if amount and slot not in wanted and slot != CONTAINERS:
            unused += 1
    groups = by_priority(wanted, policy.slot_priority)
    return (unused, *[-free.get(slot, 0) for group in groups for slot in group])


def idle_accelerators(node: Node, wanted: Collection[str]) -> int:
    """How many families of accelerators the node has that the session does not want.

    Counted on what the node *has*, not on what is free, and by what is wanted above zero: accelerator
    hosts are kept for accelerator work whether a request says zero or says nothing.
    """
    families = {
        family_of(slot) for slot, has in node.capacity.items() if has and slot != CONTAINERS
    }
    return sum(
        1 for family in families - {family_of(slot) for slot in wanted} if is_accelerator(family)
    )
