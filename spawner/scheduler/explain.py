"""Sentences and structured reasons for every session that was not placed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from spawner.scheduler.check import Blocked
from spawner.scheduler.filters import KIND, PRESENCE, ROOM, SIZE, sift
from spawner.scheduler.model import Explanation, Missing, Reason, Slots
from spawner.scheduler.nodes import CONTAINERS, Node
from spawner.scheduler.shapes import Shape
from spawner.scheduler.slots import human_amount, kind_of

ORDINALS = (
    "first",
    "second",
    "third",
    "fourth",
    "fifth",
    "sixth",
    "seventh",
    "eighth",
    "ninth",
    "tenth",
    "eleventh",
    "twelfth",
)
NO_NODE = "no node is connected yet"


@dataclass(frozen=True, slots=True)
class Shortage:
    """Why no node takes a shape; shared by all sessions of the shape. ``text``: without the queue."""

    text: str
    reasons: tuple[Reason, ...]
    missing: tuple[Missing, ...] = ()
    largest: Slots | None = None
    never: bool = False
    keepers: tuple[Node, ...] = ()
    """Nodes that could serve it when they get free: there it must not lose ground to later ones."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """What a session lacks (``shortage``) and what it may not (``blocked``); at least one of them.

    Its sentence: a session that can never start says so first; one that its own limits hold back says
    only that, as no resources are sought for it; any other says its place in the line and what it
    waits for.
    """

    position: int
    agents_total: int
    shortage: Shortage | None
    blocked: Blocked | None

    @property
    def never(self) -> bool:
        """As things are, no wait will help."""
        return bool(
            (self.shortage and self.shortage.never) or (self.blocked and self.blocked.never)
        )

    @property
    def queues(self) -> bool:
        """It waits for resources, and has its place in the line."""
        return self.blocked is None and not self.never

    @property
    def message(self) -> str:
        """The sentence."""
        bars = self.blocked.reasons if self.blocked else ()
        barred = "; ".join(dict.fromkeys(reason.message for reason in bars))
        if self.shortage is not None and self.shortage.never:
            return f"cannot ever start: {self.shortage.text}"
        if self.blocked is not None:
            return f"cannot ever start: {barred}" if self.never else f"waiting: {barred}"
        text = self.shortage.text if self.shortage else ""
        return f"queued, {ordinal(self.position)} in line: {text}"

    def explanation(self, session_id: str) -> Explanation:
        """The whole answer for ``session_id``."""
        shortage = self.shortage or Shortage("", ())
        bars = self.blocked.reasons if self.blocked else ()
        return Explanation(
            session_id,
            self.position,
            self.message,
            (*bars, *shortage.reasons),
            missing=shortage.missing,
            agents_total=self.agents_total,
            unsatisfiable=self.never,
            largest=shortage.largest,
        )


def never_of(shape: Shape, nodes: Sequence[Node]) -> Shortage | None:
    """Why none of ``nodes`` (all of a group, in whatever state) could ever serve ``shape``, or None."""
    return _never(shape, nodes, {})[0]


def shortage_of(shape: Shape, nodes: Sequence[Node]) -> Shortage:
    """What keeps ``shape`` from each of ``nodes`` at this point of the pass, when none takes it."""
    removed: dict[str, int] = {}
    never, capable = _never(shape, nodes, removed)
    if never is not None:
        return never
    if not nodes:
        return Shortage(NO_NODE, (Reason("agents", NO_NODE),))
    eligible = sift(capable, shape, PRESENCE, removed)
    if not eligible:
        return Shortage(_absent(capable, nodes), _reasons(removed))
    sift(eligible, shape, ROOM, removed)
    best = _best_fit(shape, eligible, total=False)
    missing = tuple(
        Missing(slot, amount, best.available(slot), best.agent_id)
        for slot, amount in shape.slots
        if amount > best.available(slot)
    )
    text = _waits_for(shape, best, missing)
    return Shortage(text, _reasons(removed), missing, keepers=tuple(eligible))


def _never(
    shape: Shape, nodes: Sequence[Node], removed: dict[str, int]
) -> tuple[Shortage | None, list[Node]]:
    """Why no node could ever serve ``shape``, or None and those that could."""
    if shape.defect is not None:
        return Shortage(shape.defect.message, (shape.defect,), never=True), []
    of_kind = sift(nodes, shape, KIND, removed)
    capable = sift(of_kind, shape, SIZE, removed)
    if capable or not nodes:
        return None, capable
    if not of_kind:
        return Shortage(_wrong_kind(shape, nodes), _reasons(removed), never=True), []
    best = _best_fit(shape, of_kind, total=True)
    largest = {slot: best.capacity.get(slot, 0) for slot in shape.wanted}
    text = _too_big(shape, of_kind)
    return Shortage(text, _reasons(removed), largest=largest, never=True), []


def _reasons(removed: Mapping[str, int]) -> tuple[Reason, ...]:
    return tuple(
        Reason(rule.name, f"{_nodes(removed[rule.name])} {rule.says}", removed[rule.name])
        for rule in (*KIND, *SIZE, *PRESENCE, *ROOM)
        if rule.name in removed
    )


def ordinal(number: int) -> str:
    """``first`` ... ``twelfth``, ``13th``, ``21st``."""
    if 1 <= number <= len(ORDINALS):
        return ORDINALS[number - 1]
    teen = number % 100 in (11, 12, 13)
    return f"{number}{'th' if teen else {1: 'st', 2: 'nd', 3: 'rd'}.get(number % 10, 'th')}"


def _nodes(count: int) -> str:
    return "1 node" if count == 1 else f"{count} nodes"


def _and(parts: Iterable[str]) -> str:
    words = list(parts)
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def _best_fit(shape: Shape, nodes: Sequence[Node], *, total: bool) -> Node:
    """The node that lacks the fewest slots, and of them the smallest part of what is asked."""

    def lack(node: Node) -> tuple[int, float, int]:
        count, part = 0, 0.0
        for slot, amount in shape.need:
            has = node.capacity.get(slot, 0) if total else node.available(slot)
            if has < amount:
                count += 1
                part += (amount - has) / amount
        return count, part, node.index

    return min(nodes, key=lack)


def _wrong_kind(shape: Shape, nodes: Sequence[Node]) -> str:
    there = {node.agent.architecture for node in nodes}
    if len(shape.architectures) > 1:
        return f"no node has {len(shape.architectures)} architectures ({_and(sorted(shape.architectures))})"
    if not shape.architectures & there:
        asked = next(iter(shape.architectures))
        return f"no node has the architecture {asked} (there is {_and(sorted(there))})"
    if not shape.designated & {node.agent_id for node in nodes}:
        return f"no node of the resource group is called {' or '.join(sorted(shape.designated))}"
    return f"none of the nodes {_and(sorted(shape.designated))} has the right architecture"


def _too_big(shape: Shape, nodes: Sequence[Node]) -> str:
    lines: list[str] = []
    for slot, amount in shape.need:
        most = max(node.capacity.get(slot, 0) for node in nodes)
        if amount <= most:
            continue
        if slot == CONTAINERS:
            lines.append(f"no node runs more than {most} containers (asked for {amount})")
        elif most:
            lines.append(
                f"no node has more than {human_amount(slot, most)} "
                f"(asked for {human_amount(slot, amount)})"
            )
        else:
            lines.append(
                f"no node has any {kind_of(slot).unit} (asked for {human_amount(slot, amount)})"
            )
    if lines:
        return "; ".join(lines)
    together = _and(human_amount(slot, amount) for slot, amount in shape.slots)
    return f"no node has {together} together"


def _absent(capable: Sequence[Node], nodes: Sequence[Node]) -> str:
    if not any(node.agent.alive for node in nodes):
        return f"no node is connected ({_nodes(len(nodes))} lost)"
    lost = sum(not node.agent.alive for node in capable)
    closed = len(capable) - lost
    parts = [f"{lost} not connected"] if lost else []
    parts += [f"{closed} closed for new sessions"] if closed else []
    return f"waiting for a node that is large enough ({', '.join(parts)})"


def _waits_for(shape: Shape, best: Node, missing: Sequence[Missing]) -> str:
    amounts = [human_amount(each.slot, each.requested - each.available) for each in missing]
    if best.available(CONTAINERS) < shape.containers:
        amounts.append("room for one more container")
    needs_more = any(best.free.get(slot, 0) < amount for slot, amount in shape.need)
    turn = "" if needs_more else " kept for a session ahead of it"
    return f"waiting for {_and(amounts)}{turn}"
