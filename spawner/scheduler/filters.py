"""Named filters: which nodes could ever serve a shape, which can be asked now, which have room now.

Every filter counts the nodes it took out of those that the filters before it let pass, so the counts
of one session never add up to more than the nodes of its group.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from spawner.scheduler.nodes import CONTAINERS, Node
from spawner.scheduler.shapes import Shape


@dataclass(frozen=True, slots=True)
class Filter:
    """A rule that a node passes or not; ``says`` tells a person what the removed nodes lack."""

    name: str
    passes: Callable[[Node, Shape], bool]
    says: str


def _network(node: Node, shape: Shape) -> bool:
    networks = node.agent.networks
    return shape.network is None or networks is None or shape.network in networks


def _capacity(node: Node, shape: Shape) -> bool:
    free = node.free
    for slot, amount in shape.slots:  # noqa: SIM110 - a generator costs three times as much here
        if free.get(slot, 0) < amount:
            return False
    return True


def _unfragmented(node: Node, shape: Shape) -> bool:
    rules = shape.rules
    if not rules.unfragmented or not node.is_picky(shape):
        return True
    return node.suits_now(shape, replace(rules, numa="none"))


CIRCLE_SAYS = "ruled out by its session group"


def circle_filter(members: Mapping[int, int]) -> Filter:
    """What a strict session group forbids, given how many members are on each node (by index)."""

    def passes(node: Node, shape: Shape) -> bool:
        circle = shape.circle
        if circle is None or not circle.group.strict or not members:
            return True
        return (node.index in members) == (circle.group.rule == "pack")

    return Filter("session-group", passes, CIRCLE_SAYS)


KIND = (
    Filter(
        "architecture",
        lambda node, shape: shape.architectures == {node.agent.architecture},
        "of another architecture",
    ),
    Filter("network", _network, "not in one network with the others"),
    Filter(
        "designated",
        lambda node, shape: not shape.designated or node.agent_id in shape.designated,
        "not among the designated ones",
    ),
)
"""What a node is. Never changes while it stays registered."""

SIZE = (
    Filter(
        "total-capacity",
        lambda node, shape: node.fits_empty(shape.need),
        "too small even when empty",
    ),
    Filter("quantum", lambda node, shape: node.steps_suit(shape), "giving it in larger steps only"),
    Filter(
        "device-size",
        lambda node, shape: node.suits_empty(shape, replace(shape.rules, numa="none")),
        "with too small devices",
    ),
    Filter(
        "numa-size", lambda node, shape: node.suits_empty(shape), "with too little on one NUMA node"
    ),
)
"""What a node has in all."""

PRESENCE = (
    Filter("alive", lambda node, shape: node.agent.alive, "not connected"),
    Filter("schedulable", lambda node, shape: node.agent.schedulable, "closed for new sessions"),
)
"""Whether a node takes sessions at the moment; those that do not may come back."""

ROOM = (
    Filter(
        "container-limit",
        lambda node, shape: node.free[CONTAINERS] >= shape.containers,
        "at the limit of containers",
    ),
    Filter("capacity", _capacity, "without enough free"),
    Filter("fragmentation", _unfragmented, "with enough free only in parts of several devices"),
    Filter(
        "numa",
        lambda node, shape: not node.is_picky(shape) or node.suits_now(shape, shape.rules),
        "with enough free only on several NUMA nodes",
    ),
    Filter(
        "queue",
        lambda node, shape: node.fits(shape.need) and node.suits(shape),
        "keeping what is free for earlier sessions",
    ),
)
"""What a node has left in this pass."""


SAYINGS = {
    **{rule.name: rule.says for rule in (*KIND, *SIZE, *PRESENCE)},
    "session-group": CIRCLE_SAYS,
    **{rule.name: rule.says for rule in ROOM},
}
"""What the nodes that each filter removed are, in the order of the filters."""


def sift(
    nodes: Iterable[Node], shape: Shape, filters: Sequence[Filter], removed: dict[str, int]
) -> list[Node]:
    """The nodes that pass all ``filters``; how many each filter took out is added to ``removed``."""
    left: list[Node] = []
    for node in nodes:
        for rule in filters:
            if not rule.passes(node, shape):
                removed[rule.name] = removed.get(rule.name, 0) + 1
                break
        else:
            left.append(node)
    return left
