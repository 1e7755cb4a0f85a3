"""Which of the fitting nodes is best: preferences common to all strategies, strategies, rankings."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Protocol

from spawner.scheduler.model import GroupPolicy
from spawner.scheduler.nodes import Need, Node
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
        sum(free.get(slot, 0) for slot in group)
        for group in by_priority(wanted, policy.slot_priority)
    )


def dispersed(offer: Offer, wanted: tuple[str, ...], policy: GroupPolicy) -> Key:
    """Spread over nodes: the most free first, compared by slot priority."""
    return tuple(-amount for amount in concentrated(offer, wanted, policy))


def idle_accelerators(node: Node, wanted: Collection[str]) -> int:
    """How many families of accelerators the node has that the session does not want.

    Counted on what the node *has*, not on what is free, and by what is wanted above zero: accelerator
    hosts are kept for accelerator work whether a request says zero or says nothing.
    """
    families = {
        family_of(slot) for slot, has in node.capacity.items() if has and slot in node.stock
    }
    return sum(
        1 for family in families - {family_of(slot) for slot in wanted} if is_accelerator(family)
    )


class Ranking:
    """The nodes that may serve one class of requests, best first, kept in order as a pass goes on.

    A class is all requests that want the same slots with the same architecture, designation and
    image preference; they differ in amounts only. ``log`` is the pass's list of changed nodes: a
    ranking catches up when it is used. Nodes that cannot serve even ``least`` (the least that any
    request of the class wants of each slot) leave for good, because nodes only get fuller in a pass.
    The cost of a placement is thus a search in a sorted list, not a walk over all nodes.
    """

    __slots__ = ("_cursor", "_entries", "_key", "_keys", "_least", "_log", "_nodes")

    def __init__(
        self, nodes: Iterable[Node], key: Callable[[Node], Key], least: Need, log: Sequence[Node]
    ) -> None:
        self._key = key
        self._least = least
        self._log = log
        self._cursor = len(log)
        self._nodes = {node.index: node for node in nodes if node.fits(least)}
        self._keys = {index: key(node) for index, node in self._nodes.items()}
        self._entries = sorted((rank, index) for index, rank in self._keys.items())

    def pick(self, need: Need, avoid: Collection[str] = ()) -> Node | None:
        """The best node that fits ``need`` now, one outside ``avoid`` (agent ids) if there is any."""
        self._catch_up()
        spare: Node | None = None
        chosen: Node | None = None
        gone: list[int] = []
        for _, index in self._entries:
            node = self._nodes[index]
            if not node.fits(need):
                if need is self._least or not node.fits(self._least):
                    gone.append(index)
            elif node.agent_id not in avoid:
                chosen = node
                break
            elif spare is None:
                spare = node
        if gone:
            for index in gone:
                del self._keys[index]
            self._entries = [entry for entry in self._entries if entry[1] in self._keys]
        return chosen or spare

    def _catch_up(self) -> None:
        if self._cursor == len(self._log):
            return
        for index in {node.index for node in self._log[self._cursor :]}:
            rank = self._keys.pop(index, None)
            if rank is None:
                continue
            del self._entries[bisect_left(self._entries, (rank, index))]
            node = self._nodes[index]
            if node.fits(self._least):
                self._keys[index] = rank = self._key(node)
                insort(self._entries, (rank, index))
        self._cursor = len(self._log)
