"""Sentences and structured reasons for every session that was not placed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from spawner.scheduler.census import Bunch
from spawner.scheduler.check import Blocked
from spawner.scheduler.filters import CIRCLE_SAYS, ROOM, SAYINGS, sift
from spawner.scheduler.floor import Floor
from spawner.scheduler.model import Explanation, Missing, Reason, Slots
from spawner.scheduler.nodes import CONTAINERS, UNKNOWN, Node
from spawner.scheduler.reserve import Booking
from spawner.scheduler.seating import seat_all
from spawner.scheduler.shapes import Outline, Shape
from spawner.scheduler.slots import format_amount, human_amount, kind_of

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
NO_NODE = "no node of its resource group is connected yet"
FRAGMENTED = "waiting for devices that are free together"


@dataclass(frozen=True, slots=True)
class Shortage:
    """Why no node takes a shape; shared by all sessions of the shape. ``text``: without the queue."""

    text: str
    reasons: tuple[Reason, ...]
    missing: tuple[Missing, ...] = ()
    largest: Slots | None = None
    never: bool = False
    eligible: tuple[tuple[Node, ...], ...] = ()
    """For each part, the nodes that could serve it when they get free."""
    would_fit: Slots | None = None
    """Of each slot asked for, what the best-fitting node could give now, up to what is asked for."""


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
    booking: Booking | None = None
    """Where and when it is to start, when that is reserved."""
    waits_for: tuple[str, ...] = ()

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
        bars = (self.blocked.never or self.blocked.reasons) if self.blocked else ()
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
        starts_at = self.booking.starts_at if self.booking else UNKNOWN
        return Explanation(
            session_id,
            self.position,
            self.message,
            (*bars, *shortage.reasons),
            missing=shortage.missing,
            agents_total=self.agents_total,
            unsatisfiable=self.never,
            starts_at=None if starts_at == UNKNOWN else starts_at,
            waits_for=self.waits_for,
            largest=shortage.largest,
        )


def never_of(outline: Outline, floor: Floor) -> Shortage | None:
    """Why none of the group's nodes, in whatever state, could ever serve ``outline``, or None."""
    return _never(outline, floor, {})[0]


def shortage_of(
    outline: Outline, floor: Floor, *, exact: bool = True, told: bool = True
) -> Shortage:
    """What keeps ``outline`` from the nodes at this point of the pass, when they do not take it.

    Of several parts the one that is hardest to place is told of. Unless ``exact``, what is missing is
    measured against the best of the nodes with most of one slot only. Unless ``told``, nobody will
    read it: of nodes that may come free it says only which.
    """
    removed: dict[str, int] = {}
    never, capable = _never(outline, floor, removed)
    if never is not None:
        return never
    if not floor.nodes:
        return Shortage(NO_NODE, (Reason("agents", NO_NODE),))
    hardest = _hardest(outline)
    eligible: dict[Shape, tuple[Node, ...]] = {}
    for part, bunches in capable.items():
        counts = removed if part is hardest else {}
        eligible[part] = floor.present(part, bunches, counts)
        if not eligible[part]:
            if part is not hardest:
                removed = {}
                floor.census.capable(floor.census.of_kind(part, removed), part, removed)
                floor.present(part, bunches, removed)
            return Shortage(_absent(bunches, floor.nodes), _reasons(removed))
    parts = tuple(eligible[part] for part in outline.parts)
    if len(parts) > 1 and not _holds_all(outline, parts):
        text = _too_few(capable, eligible)
        return Shortage(text, _reasons(removed) or (Reason("together", text),))
    if not told:
        return Shortage("", (), eligible=parts)
    some = eligible[hardest]
    _count_room(outline, hardest, some, floor, removed)
    best = floor.lacks_least(hardest, capable[hardest], some, exact=exact)
    missing = tuple(
        Missing(slot, amount, best.available(slot), best.agent_id)
        for slot, amount in hardest.slots
        if amount > best.available(slot)
    )
    text = _waits_for(outline, hardest, best, missing)
    reasons = _reasons(removed) or (Reason("together", text),)
    would_fit = None
    if missing and best.available(CONTAINERS) >= hardest.containers:
        would_fit = {slot: min(amount, best.available(slot)) for slot, amount in hardest.slots}
    return Shortage(
        text,
        reasons,
        missing,
        eligible=parts,
        would_fit=would_fit,
    )


def _hardest(outline: Outline) -> Shape:
    if len(outline.parts) == 1:
        return outline.parts[0]
    return max(outline.parts, key=lambda part: part.weight)


def _count_room(
    outline: Outline, shape: Shape, nodes: Sequence[Node], floor: Floor, removed: dict[str, int]
) -> None:
    """Why none of ``nodes`` has room: only a few have to be asked when nothing but amounts counts."""
    simple = len(outline.parts) == 1 and shape.plain
    if not simple or floor.limited:
        sift(nodes, shape, ROOM, removed)
        return
    apart = floor.claimed(shape)
    counts: dict[str, int] = {}
    sift(apart, shape, ROOM, counts)
    counts["capacity"] = counts.get("capacity", 0) + len(nodes) - len(apart)
    for name, number in counts.items():
        if number:
            removed[name] = removed.get(name, 0) + number


def _never(
    outline: Outline, floor: Floor, removed: dict[str, int]
) -> tuple[Shortage | None, dict[Shape, list[Bunch]]]:
    """Why no nodes could ever serve ``outline``, or None and those that could serve each part."""
    if outline.defects:
        text = "; ".join(reason.message for reason in outline.defects)
        return Shortage(text, outline.defects, never=True), {}
    nodes, census = floor.nodes, floor.census
    capable: dict[Shape, list[Bunch]] = {}
    hardest = _hardest(outline)
    for part in dict.fromkeys(outline.parts):
        counts = removed if part is hardest else {}
        of_kind = census.of_kind(part, counts)
        capable[part] = census.capable(of_kind, part, counts)
        if capable[part] or not nodes:
            continue
        if not of_kind:
            return Shortage(_wrong_kind(part, nodes), _reasons(counts), never=True), {}
        examples = [bunch.one for bunch in of_kind]
        best = _largest(part, examples)
        largest = {slot: best.capacity.get(slot, 0) for slot in part.wanted}
        text = _too_big(part, examples)
        return Shortage(text, _reasons(counts), largest=largest, never=True), {}
    if nodes and len(outline.parts) > 1:
        able = {
            part: sorted((n for b in bunches for n in b.nodes), key=lambda node: node.index)
            for part, bunches in capable.items()
        }
        if not _holds_all(outline, [able[part] for part in outline.parts]):
            return _too_many(outline, nodes), {}
    return None, capable


def _holds_all(outline: Outline, able: Sequence[Sequence[Node]]) -> bool:
    """Whether these nodes, when they are empty, hold all parts at once; True when nobody knows."""
    empty = {node.index: node.capacity for nodes in able for node in nodes}
    apart = not all(part.plain for part in outline.parts)
    suits = (lambda node, here: node.suits_whole(here)) if apart else None
    seating = seat_all(outline.parts, able, empty, suits)
    return seating.seats is not None or not seating.proven


def _too_many(outline: Outline, nodes: Sequence[Node]) -> Shortage:
    """Each part has a node, and there are not enough nodes for all of them at once."""
    text = f"the nodes cannot hold all {len(outline.parts)} containers at once"
    slots = dict.fromkeys(slot for part in outline.parts for slot in part.wanted)
    largest = {slot: sum(node.capacity.get(slot, 0) for node in nodes) for slot in slots}
    return Shortage(text, (Reason("cluster", text),), largest=largest, never=True)


def _reasons(removed: Mapping[str, int]) -> tuple[Reason, ...]:
    return tuple(
        Reason(name, f"{_nodes(removed[name])} {says}", removed[name])
        for name, says in SAYINGS.items()
        if name in removed
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


def _largest(shape: Shape, nodes: Sequence[Node]) -> Node:
    """The node that in all lacks the fewest slots, and of them the smallest part of what is asked."""

    def lack(node: Node) -> tuple[int, float, int]:
        has = node.capacity
        parts = [(n - has.get(s, 0)) / n for s, n in shape.need if has.get(s, 0) < n]
        return len(parts), sum(parts), node.index

    return min(nodes, key=lack)


def _wrong_kind(shape: Shape, nodes: Sequence[Node]) -> str:
    there = {node.agent.architecture for node in nodes}
    if len(shape.architectures) > 1:
        return f"no node has {len(shape.architectures)} architectures ({_and(sorted(shape.architectures))})"
    if not shape.architectures & there:
        asked = next(iter(shape.architectures))
        return f"no node has the architecture {asked} (there is {_and(sorted(there))})"
    if shape.network is not None and not any(
        node.agent.networks is None or shape.network in node.agent.networks for node in nodes
    ):
        return "no node can connect the containers of a session with each other"
    if not shape.designated & {node.agent_id for node in nodes}:
        return f"no node of the resource group is called {' or '.join(sorted(shape.designated))}"
    return (
        f"none of the nodes {_and(sorted(shape.designated))} has the right architecture and network"
    )


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
    large = [node for node in nodes if node.fits_empty(shape.need)]
    if large:
        return _wrong_devices(shape, large)
    together = _and(human_amount(slot, amount) for slot, amount in shape.slots)
    return f"no node has {together} together"


def _wrong_devices(shape: Shape, large: Sequence[Node]) -> str:
    """Nodes that are large enough have devices that the rules of the request do not suit."""
    asked = _and(human_amount(slot, amount) for slot, amount in shape.slots)
    if not any(node.steps_suit(shape) for node in large):
        steps = {slot: step for node in large for slot, step in sorted(node.coarse.items())}
        named = _and(format_amount(slot, step) + " of " + slot for slot, step in steps.items())
        return f"the nodes give it in steps of {named} only (asked for {asked})"
    if not any(node.suits_empty(shape, replace(shape.rules, numa="none")) for node in large):
        return f"no node has {asked} on the fewest devices in equal shares"
    return f"no node has {asked} on one NUMA node"


def _absent(capable: Sequence[Bunch], nodes: Sequence[Node]) -> str:
    if not any(node.agent.alive for node in nodes):
        return f"no node is connected ({_nodes(len(nodes))} lost)"
    ruled_out = sum(len(bunch.present) for bunch in capable)
    return f"waiting for a suitable node ({_away(capable, ruled_out)})"


def _too_few(
    capable: Mapping[Shape, Sequence[Bunch]], eligible: Mapping[Shape, Sequence[Node]]
) -> str:
    """Each part has a node, and not enough nodes for all of them take sessions at the moment."""
    bunches = list({bunch.number: bunch for some in capable.values() for bunch in some}.values())
    there = {node.index for nodes in eligible.values() for node in nodes}
    ruled_out = sum(node.index not in there for bunch in bunches for node in bunch.present)
    return f"waiting for nodes for all containers at once ({_away(bunches, ruled_out)})"


def _away(bunches: Iterable[Bunch], ruled_out: int) -> str:
    bunches = list(bunches)
    lost = sum(bunch.lost for bunch in bunches)
    closed = sum(bunch.closed for bunch in bunches)
    parts = [f"{lost} not connected"] if lost else []
    parts += [f"{closed} closed for new sessions"] if closed else []
    parts += [f"{ruled_out} {CIRCLE_SAYS}"] if ruled_out else []
    return ", ".join(parts)


def _waits_for(outline: Outline, shape: Shape, best: Node, missing: Sequence[Missing]) -> str:
    amounts = [human_amount(each.slot, each.requested - each.available) for each in missing]
    if best.available(CONTAINERS) < shape.containers:
        amounts.append("room for one more container")
    if not amounts:
        count = len(outline.parts)
        return f"waiting for nodes for all {count} containers at once" if count > 1 else FRAGMENTED
    needs_more = any(best.free.get(slot, 0) < amount for slot, amount in shape.need)
    turn = "" if needs_more else " kept for a session ahead of it"
    return f"waiting for {_and(amounts)}{turn}"
