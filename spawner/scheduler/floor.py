"""The nodes of one resource group within a pass: where shapes fit, and what is taken there."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from spawner.scheduler.census import Bunch, Census
from spawner.scheduler.devices import DeviceStock
from spawner.scheduler.filters import KIND, PRESENCE, SIZE, Filter, circle_filter, sift
from spawner.scheduler.model import (
    GroupPolicy,
    Placement,
    RunningSession,
    SessionRequest,
    Snapshot,
)
from spawner.scheduler.nodes import FOREVER, Need, Node
from spawner.scheduler.rankings import Ranking
from spawner.scheduler.reserve import expected_end, least_lacking
from spawner.scheduler.seating import seat_all
from spawner.scheduler.select import Key, Selector, idle_accelerators
from spawner.scheduler.shapes import Circle, Outline, Shape, Shapes

Class = tuple[
    tuple[str, ...],
    frozenset[str],
    frozenset[str],
    frozenset[str],
    "str | None",
    "Circle | None",
    frozenset[int],
]
"""What shapes that share a ranking have in common: slots wanted, architectures, designation (strict and
preferred), network, session group, nodes with the image."""

NEAR, ELSEWHERE = 2**20, 2**60
"""How much one member of a session group weighs in the preference for a node, and not to be preferred.
One family of idle accelerators weighs 2 and a missing image 1: each outweighs all that come after it."""


class Floor:
    """Where the sessions of one group can go.

    ``shapes`` are those of all sessions that will be sought a place for: they are known before the first
    of them is, so that rankings can forget nodes that are too full for every one of them.
    """

    def __init__(
        self, policy: GroupPolicy, selector: Selector, snapshot: Snapshot, shapes: Shapes
    ) -> None:
        self._policy = policy
        self._selector = selector
        self._shapes = shapes
        agents = (agent for agent in snapshot.agents if agent.resource_group == policy.name)
        by_id = sorted(agents, key=lambda agent: agent.agent_id)
        self.nodes = [Node(agent, index) for index, agent in enumerate(by_id)]
        self.by_id = {node.agent_id: node for node in self.nodes}
        self._changed: list[Node] = []
        self._members: dict[tuple[str, str], dict[int, int]] = {}
        self._holders: dict[frozenset[str], frozenset[int]] = {}
        self._rankings: dict[Shape, Ranking] = {}
        self._easy: set[Shape] = set()
        """Shapes that any node with enough free suits."""
        self._classes: dict[Class, list[Shape]] = {}
        self._class_of: dict[Shape, Class] = {}
        self._turns = len(self.nodes)
        self.coarse = any(node.coarse for node in self.nodes)
        """Whether any node cuts a slot in larger steps than others."""
        self.apart = any(
            node.divided
            and len({d.numa for peers in node.stock.values() for d in peers} - {None}) > 1
            for node in self.nodes
        )
        """Whether any node has devices on several NUMA nodes."""
        self.limited = any(node.agent.max_containers is not None for node in self.nodes)
        """Whether any node has a limit of containers."""
        self._claimed: dict[int, Node] = {}
        self.census = Census(self.nodes, self.by_id, self._changed)
        self._settle(snapshot.running, snapshot.now)

    # What is there already.

    def _settle(self, running: Sequence[RunningSession], now: float) -> None:
        """Learn what will be released when, where session groups are, and where the round stands."""
        last: tuple[float, str] | None = None
        pointer = 0
        debts: dict[DeviceStock, int] = {}
        for ends_at, session in sorted(
            ((expected_end(each, now), each) for each in running),
            key=lambda each: (each[0], each[1].session_id),
        ):
            for agent_id in dict.fromkeys(kernel.agent_id for kernel in session.kernels):
                node = self.by_id.get(agent_id)
                if node is None:
                    continue
                if ends_at < FOREVER:
                    node.releases.append((ends_at, *node.gives(session.kernels, debts)))
                if session.session_group is not None:
                    circle = Circle(session.owner_id, session.session_group)
                    self._join(circle, node)
                if last is None or (session.started_at, agent_id) > last:
                    last, pointer = (session.started_at, agent_id), node.index + 1
        for node in self.nodes if running else ():
            node.releases.sort(key=lambda each: each[0])
            node.turn = (node.index - pointer) % len(self.nodes)

    def _join(self, circle: Circle, node: Node) -> None:
        members = self._members.setdefault(circle.members, {})
        members[node.index] = members.get(node.index, 0) + 1

    # Where a session could go.

    def find(
        self, session: SessionRequest, outline: Outline, ends_at: float
    ) -> tuple[Node, ...] | None:
        """A node for every part of ``outline``, until ``ends_at``, or None. Takes nothing."""
        if len(outline.parts) == 1:
            part = outline.parts[0]
            if part in self._easy:
                node = self._rankings[part].pick(part.need, ends_at, session.failed_agents)
            else:
                node = self._pick(part, ends_at, session.failed_agents, {}, {})
            return None if node is None else (node,)
        seats: dict[int, Node] = {}
        taken: dict[int, dict[str, int]] = {}
        seated: dict[int, list[Shape]] = {}
        biggest_first = sorted(
            range(len(outline.parts)), key=lambda n: outline.parts[n].weight, reverse=True
        )
        for number in biggest_first:
            part = outline.parts[number]
            node = self._pick(part, ends_at, session.failed_agents, taken, seated)
            if node is None:
                return self._any_way(outline, ends_at)
            seats[number] = node
            seated.setdefault(node.index, []).append(part)
            here = taken.setdefault(node.index, {})
            for slot, amount in part.need:
                here[slot] = here.get(slot, 0) + amount
        return tuple(seats[number] for number in range(len(outline.parts)))

    def _any_way(self, outline: Outline, ends_at: float) -> tuple[Node, ...] | None:
        """Unequal parts that do not all fit when each takes its best node may fit in another way."""
        if all(part is outline.parts[0] for part in outline.parts):
            return None
        eligible = {part: self.eligible(part) for part in dict.fromkeys(outline.parts)}
        slots = {slot for part in eligible for slot, _ in part.need}
        free = {
            node.index: {slot: node.available(slot, ends_at) for slot in slots}
            for nodes in eligible.values()
            for node in nodes
        }
        picky = not all(part.plain for part in outline.parts)
        return seat_all(
            outline.parts,
            [eligible[part] for part in outline.parts],
            free,
            (lambda node, here: node.suits_all(here, ends_at)) if picky else None,
        ).seats

    def _pick(
        self,
        shape: Shape,
        ends_at: float,
        failed: frozenset[str],
        taken: Mapping[int, Mapping[str, int]],
        seated: Mapping[int, Sequence[Shape]],
    ) -> Node | None:
        ranking = self._ranking(shape)
        strict = shape.circle is not None and shape.circle.group.strict
        near = shape.rules.numa == "prefer" and self.apart
        if not (taken or strict or near) and shape.plain and not self.coarse:
            self._easy.add(shape)
            return ranking.pick(shape.need, ends_at, failed)
        rule = self._circle_filter(shape)

        def accept(node: Node) -> bool:
            if not rule.passes(node, shape) or not node.steps_suit(shape):
                return False
            here = taken.get(node.index)
            if here is None:
                return node.suits(shape, ends_at)
            return node.fits(_more(shape.need, here), ends_at) and node.suits_all(
                [*seated[node.index], shape], ends_at
            )

        if near and not taken:
            together = replace(shape.rules, numa="require")
            best = ranking.pick(
                shape.need,
                ends_at,
                failed,
                lambda node: accept(node) and node.suits(shape, ends_at, together),
            )
            if best is not None and best.agent_id not in failed:
                return best

        used: frozenset[str] = frozenset()
        packs = shape.circle is not None and shape.circle.group.rule == "pack"
        if self._policy.selector != "concentrated" and not packs:
            used = frozenset(self.nodes[index].agent_id for index in taken)
        return ranking.pick(shape.need, ends_at, failed | used, accept)

    def eligible(self, shape: Shape) -> tuple[Node, ...]:
        """Nodes that could serve ``shape`` if they were empty, in agent id order."""
        large = self.census.capable(self.census.of_kind(shape, {}), shape, {})
        return self.present(shape, large, {})

    def present(
        self, shape: Shape, bunches: Sequence[Bunch], removed: dict[str, int]
    ) -> tuple[Node, ...]:
        """Nodes of ``bunches`` that can be asked at the moment, in agent id order; others are counted."""
        nodes = self.census.present(bunches, removed)
        if shape.circle is None or not shape.circle.group.strict:
            return nodes
        return tuple(sift(nodes, shape, (self._circle_filter(shape),), removed))

    def lacks_least(
        self, shape: Shape, bunches: Sequence[Bunch], nodes: Sequence[Node], *, exact: bool
    ) -> Node:
        """The node of ``nodes`` (those of ``bunches``) that lacks least of ``shape``, or nearly so."""
        if exact or shape.circle is not None:
            return least_lacking(shape.need, nodes)
        return self.census.roomiest(bunches, nodes, shape.need)

    def claimed(self, shape: Shape) -> list[Node]:
        """Of the nodes with claims those that could serve ``shape`` if they were empty."""
        rules: tuple[Filter, ...] = (*KIND, *SIZE, *PRESENCE)
        if shape.circle is not None:
            rules = (*rules, self._circle_filter(shape))
        return sift(self._claimed.values(), shape, rules, {})

    def claims_on(self, nodes: Iterable[Node]) -> None:
        """Remember that these nodes have claims."""
        self._claimed.update((node.index, node) for node in nodes)

    def _circle_filter(self, shape: Shape) -> Filter:
        return circle_filter(self._members.get(shape.circle.members, {}) if shape.circle else {})

    # What is taken.

    def take(
        self, session: SessionRequest, outline: Outline, nodes: Sequence[Node], ends_at: float
    ) -> Placement:
        """Start ``session`` on ``nodes``, one for each part."""
        part = outline.parts[0]
        if len(nodes) == 1:
            placed = nodes[0].take(session.kernels, part.need, ends_at, part.rules)
            self._took(nodes[0], part.circle)
            return Placement(session.session_id, tuple(placed))
        placed = []
        for node in dict.fromkeys(nodes):
            here = [number for number, each in enumerate(nodes) if each is node]
            kernels = [session.kernels[number] for number in here]
            need: Need = ()
            for number in here:
                need = _added(need, outline.parts[number].need)
            placed += node.take(kernels, need, ends_at, part.rules)
            self._took(node, part.circle)
        order = {kernel.kernel_id: n for n, kernel in enumerate(session.kernels)}
        placed.sort(key=lambda each: order[each.kernel_id])
        return Placement(session.session_id, tuple(placed))

    def _took(self, node: Node, circle: Circle | None) -> None:
        """``node`` got fuller: it is the last in the round, and has one more of ``circle``."""
        node.turn = self._turns
        self._turns += 1
        if circle is not None:
            self._join(circle, node)
        self._changed.append(node)

    # Rankings.

    def _classify(self) -> None:
        for shape in self._shapes:
            of: Class = (
                shape.wanted,
                shape.architectures,
                shape.designated,
                shape.preferred,
                shape.network,
                shape.circle,
                self._with_image(shape),
            )
            self._classes.setdefault(of, []).append(shape)
            self._class_of[shape] = of

    def _ranking(self, shape: Shape) -> Ranking:
        """The ranking of ``shape``; shapes that differ in amounts only have the same one."""
        found = self._rankings.get(shape)
        if found is None:
            if not self._classes:
                self._classify()
            peers = self._classes[self._class_of[shape]]
            columns = zip(*(peer.need for peer in peers), strict=True)
            least: Need = tuple(min(column) for column in columns)
            found = self._rank(shape, least)
            self._rankings.update(dict.fromkeys(peers, found))
        return found

    def _rank(self, shape: Shape, least: Need) -> Ranking:
        wanted, holders, circle = shape.wanted, self._with_image(shape), shape.circle
        nodes = self.census.present(self.census.of_kind(shape, {}), {})
        preference: dict[int, int] = {}
        for bunch in self.census.bunches:
            kept = 2 * idle_accelerators(bunch.one, wanted)
            preference.update(
                (node.index, kept + (node.index not in holders)) for node in bunch.present
            )
        if shape.preferred:
            for node in nodes:
                if node.agent_id not in shape.preferred:
                    preference[node.index] += ELSEWHERE
        toward = 0 if circle is None else NEAR if circle.group.rule == "spread" else -NEAR
        members = self._members.setdefault(circle.members, {}) if circle else {}

        selector, policy = self._selector, self._policy

        def key(node: Node) -> Key:
            index = node.index
            liked = preference[index]
            if toward:
                liked += toward * members.get(index, 0)
            return (liked, *selector(node, wanted, policy), index)

        return Ranking(nodes, key, least, self._changed)

    def _with_image(self, shape: Shape) -> frozenset[int]:
        """Nodes that have all images of ``shape`` already."""
        holders = self._holders.get(shape.images)
        if holders is None:
            holders = self._holders[shape.images] = frozenset(
                node.index for node in self.nodes if shape.images <= node.agent.images
            )
        return holders


def _added(one: Need, other: Need) -> Need:
    total = dict(one)
    for slot, amount in other:
        total[slot] = total.get(slot, 0) + amount
    return tuple(sorted(total.items()))


def _more(need: Need, here: Mapping[str, int]) -> Need:
    return tuple((slot, amount + here.get(slot, 0)) for slot, amount in need)
