"""A group's nodes counted by what they are, so that explaining a request does not ask every node."""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence

from spawner.scheduler.filters import KIND, SIZE
from spawner.scheduler.nodes import Need, Node
from spawner.scheduler.reserve import least_lacking
from spawner.scheduler.shapes import Shape

BEST = 16
"""How many nodes with the most of a slot stand for all when exactness is not asked for."""
FRESH = 64
"""After how many changed nodes those are looked up again."""


class Bunch:
    """Nodes of the same architecture and networks, with the same slots in devices that serve the same requests."""

    __slots__ = ("closed", "lost", "nodes", "number", "present")

    def __init__(self, number: int, nodes: Sequence[Node]) -> None:
        self.number = number
        self.nodes = tuple(nodes)
        alive = [node for node in nodes if node.agent.alive]
        self.present = tuple(node for node in alive if node.agent.schedulable)
        self.lost = len(nodes) - len(alive)
        self.closed = len(alive) - len(self.present)

    @property
    def one(self) -> Node:
        """A node that stands for all: the one with the smallest agent id."""
        return self.nodes[0]


class Census:
    """All nodes of a group, bunched. ``changed`` is the pass's list of nodes that got fuller."""

    def __init__(
        self, nodes: Sequence[Node], by_id: Mapping[str, Node], changed: Sequence[Node]
    ) -> None:
        self._nodes = nodes
        self._by_id = by_id
        self._changed = changed
        kinds: dict[object, list[Node]] = {}
        alike: dict[object, list[Node]] = {}
        """The same lists by capacities in the order in which the agent names them: that is not sorted."""
        for node in nodes:
            agent = node.agent
            total = tuple(node.capacity.items())
            key = (agent.architecture, agent.networks, node.layout)
            peers = alike.get((key, total))
            if peers is None:
                peers = alike[key, total] = kinds.setdefault((key, tuple(sorted(total))), [])
            peers.append(node)
        self.bunches = [Bunch(number, some) for number, some in enumerate(kinds.values())]
        self._single: dict[str, Bunch] = {}
        self._present: dict[tuple[int, ...], tuple[Node, ...]] = {}
        self._best: dict[tuple[tuple[int, ...], str], tuple[int, tuple[Node, ...]]] = {}

    def of_kind(self, shape: Shape, removed: dict[str, int]) -> list[Bunch]:
        """Bunches that pass the filters of kind; how many nodes each took out is added to ``removed``."""
        *plain, designated = KIND
        right, left = self.bunches, len(self._nodes)
        for rule in plain:
            right = [b for b in right if rule.passes(b.one, shape)]
            before, left = left, sum(len(b.nodes) for b in right)
            _count(removed, rule.name, before - left)
        if not shape.designated:
            return right
        named = [
            self._alone(agent_id)
            for agent_id in sorted(shape.designated)
            if agent_id in self._by_id
            and all(rule.passes(self._by_id[agent_id], shape) for rule in plain)
        ]
        _count(removed, designated.name, left - len(named))
        return named

    def capable(
        self, bunches: Sequence[Bunch], shape: Shape, removed: dict[str, int]
    ) -> list[Bunch]:
        """Those of ``bunches`` that are large enough."""
        large = list(bunches)
        for rule in SIZE:
            before = sum(len(b.nodes) for b in large)
            large = [b for b in large if rule.passes(b.one, shape)]
            _count(removed, rule.name, before - sum(len(b.nodes) for b in large))
        return large

    def present(self, bunches: Sequence[Bunch], removed: dict[str, int]) -> tuple[Node, ...]:
        """Nodes of ``bunches`` that take sessions at the moment, in agent id order."""
        _count(removed, "alive", sum(b.lost for b in bunches))
        _count(removed, "schedulable", sum(b.closed for b in bunches))
        key = tuple(b.number for b in bunches)
        found = self._present.get(key)
        if found is None:
            found = tuple(
                sorted((n for b in bunches for n in b.present), key=lambda node: node.index)
            )
            self._present[key] = found
        return found

    def roomiest(self, bunches: Sequence[Bunch], nodes: Sequence[Node], need: Need) -> Node:
        """A node that lacks little of ``need``: the best of those that had most of one of its slots."""
        key = tuple(b.number for b in bunches)
        some: dict[int, Node] = {}
        for slot, _ in need:
            since, best = self._best.get((key, slot), (-1, ()))
            if since < 0 or len(self._changed) - since > FRESH:
                since = len(self._changed)
                best = tuple(
                    heapq.nsmallest(BEST, nodes, key=lambda n: (-n.available(slot), n.index))
                )
                self._best[key, slot] = (since, best)
            some.update((node.index, node) for node in best)
        return least_lacking(need, some.values())

    def _alone(self, agent_id: str) -> Bunch:
        found = self._single.get(agent_id)
        if found is None:
            number = len(self.bunches) + len(self._single)
            found = self._single[agent_id] = Bunch(number, (self._by_id[agent_id],))
        return found


def _count(removed: dict[str, int], name: str, number: int) -> None:
    if number:
        removed[name] = removed.get(name, 0) + number
