"""Reservations: when and where a session that waits is to start, and what later ones leave for it.

This is backfilling with reservations (EASY: Lifka 1995; Mu'alem and Feitelson 2001) on several slots.
A node's *timeline* is what will be free of each slot from a moment on, for good: what is free now, plus
what is known to end, minus what earlier reservations take. What has no known end stays.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from spawner.scheduler.model import Reservation, RunningSession
from spawner.scheduler.nodes import CONTAINERS, FOREVER, UNKNOWN, Claim, Need, Node
from spawner.scheduler.shapes import Outline, Shape
from spawner.scheduler.slots import kind_of

ATTEMPTS = 2000
"""How many ways of seating unequal parts are tried."""
GRACE = 300.0
"""Seconds that a session may be past its known end and still be expected to end at any moment."""


@dataclass(frozen=True, slots=True)
class Booking:
    """A reservation made: ``seats`` are the nodes with what is claimed there."""

    starts_at: float
    """``UNKNOWN`` when nobody knows."""
    seats: tuple[tuple[Node, Need], ...]

    def reservation(self, session_id: str) -> Reservation:
        """The same for the plan."""
        at = None if self.starts_at == UNKNOWN else self.starts_at
        seats = sorted(
            ((node.agent_id, dict(need)) for node, need in self.seats), key=lambda seat: seat[0]
        )
        agent_ids, amounts = zip(*seats, strict=True)
        return Reservation(session_id, at, agent_ids, amounts)


def expected_end(session: RunningSession, now: float) -> float:
    """When ``session`` gives back what it holds: at once when told so, else as known, else ``FOREVER``.

    One that is past its known end by more than ``GRACE`` has no known end any more.
    """
    if session.ending:
        return now
    if session.ends_at is None or session.ends_at < now - GRACE:
        return FOREVER
    return max(now, session.ends_at)


def holdings(session: RunningSession) -> dict[str, Need]:
    """What ``session`` gives back at its end, by agent."""
    held: dict[str, Counter[str]] = {}
    for kernel in session.kernels:
        mine = held.setdefault(kernel.agent_id, Counter())
        mine[CONTAINERS] += 1
        for share in kernel.shares:
            mine[share.slot] += (
                share.amount // kind_of(share.slot).quantum * kind_of(share.slot).quantum
            )
    return {agent_id: tuple(sorted(mine.items())) for agent_id, mine in held.items()}


class Timeline:
    """What one node has free of the slots of ``need``, from each of its ``times`` on for good."""

    __slots__ = ("_least", "times")

    def __init__(self, node: Node, need: Need, now: float) -> None:
        changes: dict[float, Counter[str]] = {now: Counter()}
        wanted = [slot for slot, _ in need]
        for at, gives in node.releases:
            changes.setdefault(max(at, now), Counter()).update(dict(gives))
        for claim in node.claims:
            takes = dict(claim.need)
            changes.setdefault(max(claim.starts_at, now), Counter()).subtract(takes)
            if claim.ends_at < FOREVER:
                changes.setdefault(claim.ends_at, Counter()).update(takes)
        self.times = sorted(changes)
        has = [node.free.get(slot, 0) for slot in wanted]
        rows: list[list[int]] = []
        for at in self.times:
            has = [n + changes[at][slot] for n, slot in zip(has, wanted, strict=True)]
            most = [node.capacity.get(slot, 0) for slot in wanted]
            rows.append([min(n, top) for n, top in zip(has, most, strict=True)])
        for later, row in zip(reversed(rows), list(reversed(rows))[1:], strict=False):
            row[:] = [min(n, then) for n, then in zip(row, later, strict=True)]
        self._least = [dict(zip(wanted, row, strict=True)) for row in rows]

    def at(self, moment: float) -> dict[str, int]:
        """What there is from ``moment`` on for good."""
        index = bisect_left(self.times, moment)
        if index < len(self.times) and self.times[index] == moment:
            return self._least[index]
        return self._least[max(0, index - 1)]

    def first(self, need: Need) -> float:
        """The first moment from which ``need`` is there for good, or ``FOREVER``."""
        for at, has in zip(self.times, self._least, strict=True):
            if all(has[slot] >= amount for slot, amount in need):
                return at
        return FOREVER


def earliest(outline: Outline, eligible: Sequence[Sequence[Node]], now: float) -> Booking | None:
    """When and where a session that found no room can start first; nothing is reserved.

    ``eligible`` are the nodes for each part of ``outline``, in the order of preference among equals;
    with no node for a part there is no answer. When no time is known the nodes lack least.
    """
    if not eligible or not all(eligible):
        return None
    if len(outline.parts) == 1:
        return _one(outline.parts[0], eligible[0], now)
    return _several(outline.parts, eligible, now)


def reserve(booking: Booking, session_id: str, now: float, run_time: float) -> None:
    """Lay claims on all nodes of ``booking`` for a session that runs ``run_time`` seconds."""
    ends_at = FOREVER if booking.starts_at == UNKNOWN else booking.starts_at + run_time
    for node, need in booking.seats:
        claim(node, session_id, need, booking.starts_at, ends_at, now)


def holders_of(booking: Booking, running: Iterable[RunningSession], now: float) -> tuple[str, ...]:
    """Running sessions that hold what is lacking where ``booking`` is, and that end until it starts."""
    lacks = {
        node.agent_id: {slot for slot, n in need if node.free.get(slot, 0) < n}
        for node, need in booking.seats
    }
    until = FOREVER if booking.starts_at == UNKNOWN else booking.starts_at
    return tuple(
        sorted(
            each.session_id
            for each in running
            if expected_end(each, now) <= until
            and any(
                slot in lacks.get(agent_id, ())
                for agent_id, need in holdings(each).items()
                for slot, _ in need
            )
        )
    )


def claim(
    node: Node, session_id: str, need: Need, starts_at: float, ends_at: float, now: float
) -> None:
    """Lay a claim on ``node``: from now on later sessions leave ``need`` for it at ``starts_at``."""
    if starts_at == UNKNOWN:
        has = {slot: node.free.get(slot, 0) for slot, _ in need}
    else:
        has = Timeline(node, need, now).at(starts_at)
    left = {slot: max(0, has[slot] - amount) for slot, amount in need}
    node.claims.append(Claim(session_id, need, starts_at, ends_at, left))


def first_start(node: Node, need: Need, now: float) -> float:
    """When ``need``, which does not fit now, is first free on ``node`` for good, or ``FOREVER``."""
    if not node.claims:
        lacks = {s: n - node.free.get(s, 0) for s, n in need if n > node.free.get(s, 0)}
        if not lacks and node.releases:
            return min(max(at, now) for at, _ in node.releases)
        for at, gives in sorted(node.releases):
            for slot, amount in gives:
                if slot in lacks:
                    lacks[slot] -= amount
                    if lacks[slot] <= 0:
                        del lacks[slot]
            if not lacks:
                return max(at, now)
        return FOREVER
    line = Timeline(node, need, now)
    first = line.first(need)
    if first > now:
        return first
    return min((at for at in line.times if at > now), default=FOREVER)


def _one(shape: Shape, nodes: Sequence[Node], now: float) -> Booking:
    need = shape.need
    starts = [(first_start(node, need, now), place) for place, node in enumerate(nodes)]
    at, place = min(starts)
    if at < FOREVER:
        return Booking(at, ((nodes[place], need),))
    return Booking(UNKNOWN, ((least_lacking(need, nodes), need),))


def least_lacking(need: Need, nodes: Iterable[Node]) -> Node:
    """The node that lacks the fewest slots now, and of them the smallest part of what is asked."""

    def lack(node: Node) -> tuple[int, float, int]:
        count, part = 0, 0.0
        for slot, amount in need:
            has = node.available(slot)
            if has < amount:
                count += 1
                part += (amount - has) / amount
        return count, part, node.index

    return min(nodes, key=lack)


def _several(parts: Sequence[Shape], eligible: Sequence[Sequence[Node]], now: float) -> Booking:
    needs = tuple(sorted({entry for part in parts for entry in part.need}))
    slots: Need = tuple((slot, 0) for slot in sorted({slot for slot, _ in needs}))
    lines = {node.index: Timeline(node, slots, now) for nodes in eligible for node in nodes}
    moments = sorted({at for line in lines.values() for at in line.times if at > now})
    low, high = 0, len(moments)
    while low < high:
        middle = (low + high) // 2
        here = {index: line.at(moments[middle]) for index, line in lines.items()}
        if seat_all(parts, eligible, here) is None:
            low = middle + 1
        else:
            high = middle
    if low < len(moments):
        here = {index: line.at(moments[low]) for index, line in lines.items()}
        seats = seat_all(parts, eligible, here)
        if seats is not None:
            return Booking(moments[low], _together(parts, seats))
    free = {
        index: {slot: node.available(slot) for slot, _ in slots}
        for index, node in {n.index: n for nodes in eligible for n in nodes}.items()
    }
    return Booking(UNKNOWN, _together(parts, _least_lacking_all(parts, eligible, free)))


def seat_all(
    parts: Sequence[Shape],
    eligible: Sequence[Sequence[Node]],
    free: Mapping[int, Mapping[str, int]],
) -> list[Node] | None:
    """A node for every part when ``free`` (by node index) is there, the largest part first; or None.

    First fit is exact for equal parts. Others are tried in every way, ``ATTEMPTS`` at most.
    """
    in_turn = sorted(range(len(parts)), key=lambda n: parts[n].weight, reverse=True)
    left = {index: dict(has) for index, has in free.items()}
    seats: dict[int, Node] = {}
    attempts = ATTEMPTS

    def seat(place: int) -> bool:
        nonlocal attempts
        if place == len(in_turn):
            return True
        number = in_turn[place]
        need = parts[number].need
        for node in eligible[number]:
            has = left[node.index]
            if attempts <= 0 or any(has.get(slot, 0) < amount for slot, amount in need):
                continue
            for slot, amount in need:
                has[slot] -= amount
            seats[number] = node
            if seat(place + 1):
                return True
            attempts -= 1
            for slot, amount in need:
                has[slot] += amount
            if alike:
                return False
        return False

    alike = all(part is parts[0] for part in parts)
    return [seats[number] for number in range(len(parts))] if seat(0) else None


def _least_lacking_all(
    parts: Sequence[Shape], eligible: Sequence[Sequence[Node]], free: dict[int, dict[str, int]]
) -> list[Node]:
    seats: list[Node] = []
    for part, nodes in zip(parts, eligible, strict=True):
        fitting = [
            node for node in nodes if all(n <= node.capacity.get(s, 0) for s, n in part.need)
        ]

        def lack(node: Node, part: Shape = part) -> tuple[float, int]:
            has = free[node.index]
            return sum(max(0.0, (n - has[s]) / n) for s, n in part.need), node.index

        node = min(fitting or nodes, key=lack)
        for slot, amount in part.need:
            free[node.index][slot] -= amount
        seats.append(node)
    return seats


def _together(parts: Sequence[Shape], seats: Sequence[Node]) -> tuple[tuple[Node, Need], ...]:
    """The needs on each node as one, for nodes that seat several parts."""
    sums: dict[int, Counter[str]] = {}
    nodes: dict[int, Node] = {}
    for part, node in zip(parts, seats, strict=True):
        nodes[node.index] = node
        sums.setdefault(node.index, Counter()).update(dict(part.need))
    return tuple((nodes[index], tuple(sorted(needs.items()))) for index, needs in sums.items())
