"""Seating the parts of a cluster on nodes, all or none."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from spawner.scheduler.nodes import Node
from spawner.scheduler.shapes import Shape

ATTEMPTS = 20_000
"""How many steps the search for seats of unequal parts takes."""

Suits = Callable[[Node, Sequence[Shape]], bool]
"""Whether the devices of a node suit these parts together, where sums do not tell."""


@dataclass(frozen=True, slots=True)
class Seating:
    """A node for each part, or None; ``proven``: there is none, not just none was found."""

    seats: tuple[Node, ...] | None
    proven: bool = True


def seat_all(
    parts: Sequence[Shape],
    eligible: Sequence[Sequence[Node]],
    free: Mapping[int, Mapping[str, int]],
    suits: Suits | None = None,
    attempts: int = ATTEMPTS,
) -> Seating:
    """A node for every part when ``free`` (by node index) is there.

    First fit is exact for equal parts. Others are tried in every way that differs, the largest part
    first, up to ``attempts`` steps.
    """
    search = _Search(parts, eligible, free, suits, attempts)
    if all(part is parts[0] for part in parts):
        return Seating(search.first_fit())
    found = search.any_fit()
    return Seating(found, found is not None or search.steps > 0)


class _Search:
    """One search: ``left`` is what remains, ``here`` who was seated where."""

    def __init__(
        self,
        parts: Sequence[Shape],
        eligible: Sequence[Sequence[Node]],
        free: Mapping[int, Mapping[str, int]],
        suits: Suits | None,
        attempts: int,
    ) -> None:
        self._parts = parts
        self._suits = suits
        self._slots = sorted({slot for part in parts for slot, _ in part.need})
        first: dict[Shape, int] = {}
        for number, part in enumerate(parts):
            first.setdefault(part, number)
        self._in_turn = sorted(
            range(len(parts)), key=lambda n: (parts[n].weight, -first[parts[n]]), reverse=True
        )
        self._free = free
        self._left: dict[int, list[int]] = {}
        self._here: dict[int, list[Shape]] = {}
        self._seats: dict[int, Node] = {}
        self._failed: set[object] = set()
        self.steps = attempts
        self._needs = {
            part: [dict(part.need).get(slot, 0) for slot in self._slots]
            for part in dict.fromkeys(parts)
        }
        self._kinds: dict[int, int] = {}
        self._eligible = eligible
        last: object = None
        for nodes in eligible:
            if nodes is last:  # equal parts share one list of nodes
                continue
            last = nodes
            for node in nodes:
                if node.index not in self._left:
                    has = free[node.index]
                    self._left[node.index] = [has.get(slot, 0) for slot in self._slots]

    def first_fit(self) -> tuple[Node, ...] | None:
        part, need = self._parts[0], self._needs[self._parts[0]]
        seats: list[Node] = []
        for node in self._eligible[0]:
            while len(seats) < len(self._parts) and self._may(node, part, need):
                self._sit(node, part, need)
                seats.append(node)
            if len(seats) == len(self._parts):
                return tuple(seats)
        return None

    def any_fit(self) -> tuple[Node, ...] | None:
        self._sort_nodes()
        if not self._enough(0) or not self._seat(0):
            return None
        return tuple(self._seats[number] for number in range(len(self._parts)))

    def _sort_nodes(self) -> None:
        """Nodes that cannot be told apart are of one kind; more of a kind than parts are not needed."""
        where: dict[int, list[int]] = {}
        for number, nodes in enumerate(self._eligible):
            for node in nodes:
                where.setdefault(node.index, []).append(number)
        numbers: dict[object, int] = {}
        counts: dict[int, int] = {}
        useless: set[int] = set()
        for index in sorted(self._left):
            kind: object = (tuple(self._left[index]), tuple(where[index]))
            if self._suits is not None:
                kind = (kind, index)
            number = self._kinds[index] = numbers.setdefault(kind, len(numbers))
            counts[number] = counts.get(number, 0) + 1
            if counts[number] > len(self._parts):
                useless.add(index)
        self._eligible = [
            [node for node in nodes if node.index not in useless] for nodes in self._eligible
        ]
        for index in useless:
            del self._left[index]

    def _may(self, node: Node, part: Shape, need: list[int]) -> bool:
        left = self._left[node.index]
        if any(has < amount for has, amount in zip(left, need, strict=True)):
            return False
        suits = self._suits
        return suits is None or suits(node, [*self._here.get(node.index, ()), part])

    def _sit(self, node: Node, part: Shape, need: list[int], sign: int = 1) -> None:
        left = self._left[node.index]
        for place, amount in enumerate(need):
            left[place] -= sign * amount
        here = self._here.setdefault(node.index, [])
        if sign > 0:
            here.append(part)
        else:
            here.pop()

    def _enough(self, place: int) -> bool:
        """Whether the nodes that take any of the parts that are left have enough together."""
        rest = [self._needs[self._parts[number]] for number in self._in_turn[place:]]
        kinds = [list(need) for need in dict.fromkeys(map(tuple, rest))]
        wanted = [sum(column) for column in zip(*rest, strict=True)]
        for left in self._left.values():
            if any(all(h >= n for h, n in zip(left, need, strict=True)) for need in kinds):
                wanted = [w - max(0, h) for w, h in zip(wanted, left, strict=True)]
                if all(w <= 0 for w in wanted):
                    return True
        return all(w <= 0 for w in wanted)

    def _seat(self, place: int) -> bool:
        if place == len(self._in_turn):
            return True
        number = self._in_turn[place]
        part = self._parts[number]
        need = self._needs[part]
        state = (
            place,
            tuple(
                sorted(
                    (self._kinds[index], tuple(self._left[index]))
                    for index, here in self._here.items()
                    if here
                )
            ),
        )
        if state in self._failed:
            return False
        tried: set[object] = set()
        for node in self._eligible[number]:
            same = (self._kinds[node.index], tuple(self._left[node.index]))
            if same in tried or not self._may(node, part, need):
                continue
            tried.add(same)
            self.steps -= 1
            if self.steps <= 0:
                return False
            self._sit(node, part, need)
            self._seats[number] = node
            if self._enough(place + 1) and self._seat(place + 1):
                return True
            self._sit(node, part, need, -1)
        self._failed.add(state)
        return False
