"""Reservations: when and where a session that waits is to start, and what later ones leave for it.

This is backfilling with reservations (EASY: Lifka 1995; Mu'alem and Feitelson 2001) on several slots.
A node's *timeline* is what will be free of each slot from a moment on, for good: what is free now, plus
what is known to end, minus what earlier reservations take. What has no known end stays.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from spawner.scheduler.cutting import Amounts, Cut, cut
from spawner.scheduler.devices import DeviceStock
from spawner.scheduler.forecast import Forecast, Timeline
from spawner.scheduler.model import DeviceRules, DeviceShare, Reservation, RunningSession
from spawner.scheduler.nodes import CONTAINERS, FOREVER, UNKNOWN, Claim, Need, Node
from spawner.scheduler.seating import Suits, seat_all
from spawner.scheduler.shapes import Outline, Shape

GRACE = 300.0
"""Seconds that a session may be past its known end and still be expected to end at any moment."""


@dataclass(frozen=True, slots=True)
class Seat:
    """What is claimed of one node; ``cuts`` where the rules of ``parts`` ask for certain devices."""

    node: Node
    need: Need
    cuts: tuple[Cut, ...] | None = None
    room: Mapping[DeviceStock, int] | None = None
    """What of each device will be free when it starts."""

    @property
    def shares(self) -> tuple[DeviceShare, ...]:
        """The devices claimed, one entry for each."""
        found: Counter[tuple[str, str]] = Counter()
        for mine in self.cuts or ():
            for slot, parts in mine.items():
                found.update({(slot, device.device_id): part for device, part in parts})
        return tuple(DeviceShare(*which, part) for which, part in sorted(found.items()))


@dataclass(frozen=True, slots=True)
class Booking:
    """A reservation made: ``seats`` are the nodes with what is claimed there."""

    starts_at: float
    """``UNKNOWN`` when nobody knows."""
    seats: tuple[Seat, ...]

    def reservation(self, session_id: str) -> Reservation:
        """The same for the plan."""
        at = None if self.starts_at == UNKNOWN else self.starts_at
        seats = sorted(self.seats, key=lambda seat: seat.node.agent_id)
        cuts = tuple(seat.shares for seat in seats)
        return Reservation(
            session_id,
            at,
            tuple(seat.node.agent_id for seat in seats),
            tuple(dict(seat.need) for seat in seats),
            cuts if any(cuts) else (),
        )


def expected_end(session: RunningSession, now: float) -> float:
    """When ``session`` gives back what it holds: at once when told so, else as known, else ``FOREVER``.

    One that is past its known end by more than ``GRACE`` has no known end any more.
    """
    if session.ending:
        return now
    if session.ends_at is None or session.ends_at < now - GRACE:
        return FOREVER
    return max(now, session.ends_at)


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
    for seat in booking.seats:
        claim(seat, session_id, booking.starts_at, ends_at, now)


def holders_of(booking: Booking, running: Iterable[RunningSession], now: float) -> tuple[str, ...]:
    """Running sessions that hold what is lacking where ``booking`` is, and that end until it starts."""
    lacks = {seat.node.agent_id: _lacking(seat) for seat in booking.seats}
    until = FOREVER if booking.starts_at == UNKNOWN else booking.starts_at
    return tuple(
        sorted(
            each.session_id
            for each in running
            if expected_end(each, now) <= until
            and any(
                CONTAINERS in lacks.get(kernel.agent_id, ())
                or any(
                    share.slot in lacks.get(kernel.agent_id, ())
                    or (share.slot, share.device_id) in lacks.get(kernel.agent_id, ())
                    for share in kernel.shares
                )
                for kernel in each.kernels
            )
        )
    )


def _lacking(seat: Seat) -> set[object]:
    """Slots of which the node has too little now, and devices that are claimed and not free."""
    found: set[object] = {slot for slot, n in seat.need if seat.node.free.get(slot, 0) < n}
    for mine in seat.cuts or ():
        for slot, parts in mine.items():
            found |= {(slot, device.device_id) for device, part in parts if device.free < part}
    return found


def claim(seat: Seat, session_id: str, starts_at: float, ends_at: float, now: float) -> None:
    """Lay a claim: from now on later sessions leave what ``seat`` needs for it at ``starts_at``."""
    node, need = seat.node, seat.need
    if starts_at == UNKNOWN:
        has = {slot: node.free.get(slot, 0) for slot, _ in need}
    else:
        has = Timeline(node, need, now).at(starts_at)
    left = {slot: max(0, has[slot] - amount) for slot, amount in need}
    node.lay(Claim(session_id, need, starts_at, ends_at, left), seat.room or {}, seat.cuts)


def seat_at(node: Node, shapes: Sequence[Shape], at: float, now: float) -> Seat:
    """The place of ``shapes`` on ``node`` from ``at`` on, where they fit then."""
    if at == UNKNOWN:
        return aim(node, shapes, {})
    need, rules = _sum(shapes), _rules(node, shapes)
    if rules is None:
        return Seat(node, need)
    slots, kernels = _asked(shapes)
    room = Forecast(node, slots, now).at(at)
    cuts = cut(node.stock, kernels, rules, room)
    return Seat(node, need, None if cuts is None else tuple(cuts), room)


def aim(node: Node, shapes: Sequence[Shape], soon: Mapping[DeviceStock, int]) -> Seat:
    """The place of ``shapes`` on ``node``, whose devices are to be waited for.

    ``soon`` is what of its devices comes back for them. Those that lack least are chosen.
    """
    need, rules = _sum(shapes), _rules(node, shapes)
    if rules is None:
        return Seat(node, need)
    slots, kernels = _asked(shapes)
    room = node.room(slots)
    have = {device: n + soon.get(device, 0) for device, n in room.items()}
    cuts = cut(node.stock, kernels, rules, have)
    if cuts is None:
        cuts = cut(node.stock, kernels, rules, node.whole(slots), have)
    return Seat(node, need, None if cuts is None else tuple(cuts), room)


def _rules(node: Node, shapes: Sequence[Shape]) -> DeviceRules | None:
    """The rules of ``shapes`` where they ask for certain devices of ``node``."""
    return next((shape.rules for shape in shapes if node.is_picky(shape)), None)


def _asked(shapes: Sequence[Shape]) -> tuple[list[str], list[Amounts]]:
    """The slots that ``shapes`` ask for, and what each of their kernels does."""
    slots = dict.fromkeys(slot for shape in shapes for slot in shape.wanted)
    return list(slots), [kernel for shape in shapes for kernel in shape.kernels]


def first_start(node: Node, need: Need, now: float) -> float:
    """When ``need``, which does not fit now, is first free on ``node`` for good, or ``FOREVER``."""
    if not node.claims:
        if not node.releases:
            return FOREVER
        lacks = {s: n - node.free.get(s, 0) for s, n in need if n > node.free.get(s, 0)}
        if not lacks:
            return min(max(at, now) for at, _, _ in node.releases)
        for at, gives, _ in sorted(node.releases, key=lambda each: each[0]):
            for slot, amount in gives:
                if slot in lacks:
                    lacks[slot] -= amount
                    if lacks[slot] <= 0:
                        del lacks[slot]
            if not lacks:
                return max(at, now)
        return FOREVER
    return Timeline(node, need, now).first(need)


def first_cut(node: Node, shape: Shape, now: float) -> float:
    """The same where the rules of ``shape`` ask for certain devices."""
    line = Timeline(node, shape.need, now)
    cast: Forecast | None = None
    for at in line.times:
        has = line.at(at)
        if any(has[slot] < amount for slot, amount in shape.need):
            continue
        cast = cast or Forecast(node, shape.wanted, now)
        if cut(node.stock, shape.kernels, shape.rules, cast.at(at)) is not None:
            return at
    return FOREVER


def _one(shape: Shape, nodes: Sequence[Node], now: float) -> Booking:
    need = shape.need
    starts = [
        (
            first_cut(node, shape, now) if node.is_picky(shape) else first_start(node, need, now),
            place,
        )
        for place, node in enumerate(nodes)
    ]
    at, place = min(starts)
    if at < FOREVER:
        return Booking(at, (seat_at(nodes[place], (shape,), at, now),))
    return Booking(UNKNOWN, (aim(least_lacking(need, nodes), (shape,), {}),))


def least_lacking(need: Need, nodes: Iterable[Node]) -> Node:
    """The node that lacks the fewest slots now, and of them the smallest part of what is asked."""

    def lack(node: Node) -> tuple[int, float, int]:
        count, part = 0, 0.0
        free, claimed = node.free, node.claims
        for slot, amount in need:
            has = node.available(slot) if claimed else free.get(slot, 0)
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
    casts: dict[int, Forecast] = {}

    def suits_at(moment: float) -> Suits | None:
        def suits(node: Node, here: Sequence[Shape]) -> bool:
            picky = [shape for shape in here if node.is_picky(shape)]
            if not picky:
                return True
            cast = casts.get(node.index)
            if cast is None:
                cast = casts[node.index] = Forecast(node, [s for s, _ in slots], now)
            kernels = [kernel for shape in here for kernel in shape.kernels]
            return cut(node.stock, kernels, picky[0].rules, cast.at(moment)) is not None

        return None if all(part.plain for part in parts) else suits

    low, high = 0, len(moments)
    while low < high:
        middle = (low + high) // 2
        here = {index: line.at(moments[middle]) for index, line in lines.items()}
        if seat_all(parts, eligible, here, suits_at(moments[middle])).seats is None:
            low = middle + 1
        else:
            high = middle
    if low < len(moments):
        here = {index: line.at(moments[low]) for index, line in lines.items()}
        seats = seat_all(parts, eligible, here, suits_at(moments[low])).seats
        if seats is not None:
            return Booking(moments[low], _together(parts, seats, moments[low], now))
    free = {
        index: {slot: node.available(slot) for slot, _ in slots}
        for index, node in {n.index: n for nodes in eligible for n in nodes}.items()
    }
    return Booking(
        UNKNOWN, _together(parts, _least_lacking_all(parts, eligible, free), UNKNOWN, now)
    )


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


def together(parts: Sequence[Shape], seats: Sequence[Node]) -> list[tuple[Node, list[Shape]]]:
    """Each of the nodes ``seats``, one for each of ``parts``, with all that it seats."""
    found: dict[int, tuple[Node, list[Shape]]] = {}
    for part, node in zip(parts, seats, strict=True):
        found.setdefault(node.index, (node, []))[1].append(part)
    return list(found.values())


def _together(
    parts: Sequence[Shape], seats: Sequence[Node], at: float, now: float
) -> tuple[Seat, ...]:
    """The needs on each node as one, for nodes that seat several parts."""
    return tuple(seat_at(node, some, at, now) for node, some in together(parts, seats))


def _sum(shapes: Sequence[Shape]) -> Need:
    if len(shapes) == 1:
        return shapes[0].need
    total: Counter[str] = Counter()
    for shape in shapes:
        total.update(dict(shape.need))
    return tuple(sorted(total.items()))
