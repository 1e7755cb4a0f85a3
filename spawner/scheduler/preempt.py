"""Preemption: which running sessions end for the sake of one that waits, where the group allows it.

Victims have strictly lower priority; the lowest priority goes first, then as the rules say. No victim is
taken that is not needed: what is ending already is waited for. A multi-node session takes all of its
places at once, or none: a victim on several nodes gives back on each of them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from spawner.scheduler import seating
from spawner.scheduler.cutting import cut
from spawner.scheduler.devices import DeviceStock
from spawner.scheduler.model import PreemptionRules, RunningSession, SessionRequest
from spawner.scheduler.nodes import Node
from spawner.scheduler.reserve import Seat, aim, together
from spawner.scheduler.seating import seat_all
from spawner.scheduler.shapes import Outline, Shape

ATTEMPTS = 300
"""How many steps it takes at most to find out whether unequal parts have their places without a victim."""

Eligible = Sequence[Sequence[Node]]
"""For each part of an outline the nodes that could serve it if they were empty."""
Found = tuple[tuple[Node, ...], list[RunningSession]]
"""A node for each part, and who ends for that."""
Gifts = dict[tuple[str, int], tuple[dict[str, int], list[tuple[DeviceStock, int]]]]


SCOPES: dict[str, Callable[[SessionRequest | RunningSession], str]] = {
    "user": lambda session: session.owner_id,
    "project": lambda session: session.project_id,
    "domain": lambda session: session.domain,
    "group": lambda session: "",
}
"""What victims must have in common with the session that they end for."""


class Ending:
    """What nodes will have when certain running sessions have ended."""

    def __init__(self, attempts: int = ATTEMPTS) -> None:
        self._attempts = attempts
        self._gifts: Gifts = {}

    def enough(self, node: Node, shapes: Sequence[Shape], ended: Iterable[RunningSession]) -> bool:
        """Whether ``shapes`` have their place together on ``node`` when these have ended."""
        need: dict[str, int] = {}
        for shape in shapes:
            for slot, amount in shape.need:
                need[slot] = need.get(slot, 0) + amount
        gifts = [self.gives(each, node) for each in ended]
        for slot, amount in need.items():
            has = node.left(slot)
            for gives, _ in gifts:
                has += gives.get(slot, 0)
            if has < amount:
                return False
        picky = [shape for shape in shapes if node.is_picky(shape)]
        if not picky:
            return True
        room = node.room(dict.fromkeys(slot for shape in shapes for slot in shape.wanted))
        for _, parts in gifts:
            for device, part in parts:
                if device in room:
                    room[device] += part
        kernels = [kernel for shape in shapes for kernel in shape.kernels]
        return cut(node.stock, kernels, picky[0].rules, room) is not None

    def gives(
        self, session: RunningSession, node: Node
    ) -> tuple[dict[str, int], list[tuple[DeviceStock, int]]]:
        """What ``session`` gives back on ``node``: in all, and of which device."""
        key = (session.session_id, node.index)
        found = self._gifts.get(key)
        if found is None:
            need, parts = node.gives(session.kernels)
            found = self._gifts[key] = (dict(need), parts)
        return found

    def seats(
        self,
        parts: Sequence[Shape],
        eligible: Eligible,
        ended: Sequence[RunningSession],
        seated: Mapping[int, Sequence[Shape]] | None = None,
    ) -> tuple[Node, ...] | None:
        """A node for each of ``parts``, beside what is ``seated`` by then, or None."""
        slots = {slot for part in parts for slot, _ in part.need}
        here = _by_agent(ended)
        free: dict[int, dict[str, int]] = {}
        for node in {node.index: node for nodes in eligible for node in nodes}.values():
            has = {slot: node.left(slot) for slot in slots}
            for each in here.get(node.agent_id, ()):
                for slot, amount in self.gives(each, node)[0].items():
                    if slot in has:
                        has[slot] += amount
            for shape in (seated or {}).get(node.index, ()):
                for slot, amount in shape.need:
                    if slot in has:
                        has[slot] -= amount
            free[node.index] = has

        def suits(node: Node, shapes: Sequence[Shape]) -> bool:
            there = [*(seated or {}).get(node.index, ()), *shapes]
            return self.enough(node, there, here.get(node.agent_id, ()))

        plain = all(part.plain for part in parts)
        return seat_all(parts, eligible, free, None if plain else suits, self._attempts).seats

    def aims(
        self, parts: Sequence[Shape], nodes: Sequence[Node], ended: Sequence[RunningSession]
    ) -> tuple[Seat, ...]:
        """What is to be kept on ``nodes``, one for each of ``parts``, until these have ended."""
        found: list[Seat] = []
        here = _by_agent(ended)
        for node, shapes in together(parts, nodes):
            soon: dict[DeviceStock, int] = {}
            for each in here.get(node.agent_id, ()):
                for device, part in self.gives(each, node)[1]:
                    soon[device] = soon.get(device, 0) + part
            found.append(aim(node, shapes, soon))
        return tuple(found)


@dataclass(frozen=True, slots=True)
class Eviction:
    """Who ends for a session, and what is kept for it from then on."""

    seats: tuple[Seat, ...]
    victims: tuple[RunningSession, ...]


class Preemptor:
    """Finds victims among the running sessions of one group; each ends for one session only."""

    def __init__(
        self,
        rules: PreemptionRules,
        running: Sequence[RunningSession],
        capacity: Mapping[str, int],
        now: float,
    ) -> None:
        self._rules = rules
        self._now = now
        self._capacity = capacity
        self._rank = self._order()
        self._same = SCOPES[rules.scope]
        self._running = running
        self._leaving = [each for each in running if each.ending]
        self._here = _by_agent(running)
        self._ending = Ending()
        self._taken: set[str] = set()
        self._fruitless: set[tuple[Outline, int, str]] = set()
        self._served: set[Outline] = set()
        """For whom enough was ending already."""

    def victims(
        self, session: SessionRequest, outline: Outline, eligible: Eligible
    ) -> Eviction | None:
        """The sessions that end for ``session``; None: they would not do, or what is ending already does."""
        key = (outline, session.priority, self._same(session))
        if key in self._fruitless or outline in self._served:
            return None
        parts = outline.parts
        back = coming(self._leaving, session.session_id)
        if self._ending.seats(parts, eligible, back) is not None:
            if all(each.claimed_by is None for each in back):
                self._served.add(outline)
            return None
        search = _Search(self, session, parts, eligible, back)
        found = search.best_nodes() or search.any_nodes()
        if found is None:
            self._fruitless.add(key)
            return None
        nodes, chosen = search.spare(found)
        self._taken.update(each.session_id for each in chosen)
        return Eviction(self._ending.aims(parts, nodes, [*back, *chosen]), tuple(chosen))

    def more(
        self,
        node: Node,
        shapes: Sequence[Shape],
        session: SessionRequest,
        ended: Sequence[RunningSession],
    ) -> list[RunningSession] | None:
        """Who else must end besides ``ended`` for ``shapes`` on ``node``; None: nobody could help."""
        here = self._here.get(node.agent_id, ())
        gone = {each.session_id for each in ended}
        back = [each for each in here if each.session_id in gone]
        chosen: list[RunningSession] = []
        may = (e for e in here if e.session_id not in gone and self.may_end(e, session))
        for each in sorted(may, key=self._rank):
            if self._ending.enough(node, shapes, [*back, *chosen]):
                break
            chosen.append(each)
        if not self._ending.enough(node, shapes, [*back, *chosen]):
            return None
        for each in reversed(tuple(chosen)):
            rest = [other for other in chosen if other is not each]
            if self._ending.enough(node, shapes, [*back, *rest]):
                chosen = rest
        return chosen

    def seats(
        self, parts: Sequence[Shape], eligible: Eligible, ended: Sequence[RunningSession]
    ) -> tuple[Node, ...] | None:
        """A node for each of ``parts`` when these have ended, or None."""
        return self._ending.seats(parts, eligible, ended)

    def candidates(self, session: SessionRequest) -> list[RunningSession]:
        """All who may end for ``session``, those who go first at the front."""
        may = (each for each in self._running if self.may_end(each, session))
        return sorted(may, key=self._rank)

    def in_turn(self, victims: Iterable[RunningSession]) -> list[RunningSession]:
        """``victims`` in the order in which they go."""
        return sorted(victims, key=self._rank)

    def may_end(self, victim: RunningSession, session: SessionRequest) -> bool:
        """Whether ``victim`` may end for ``session``."""
        return (
            victim.priority < session.priority
            and victim.preemptible
            and not victim.ending
            and victim.claimed_by is None
            and victim.session_id not in self._taken
            and self._now - victim.started_at >= self._rules.minimum_run_time
            and self._same(victim) == self._same(session)
        )

    def share(self, session: RunningSession) -> float:
        """The largest part of any slot of the group that ``session`` holds."""
        total: Counter[str] = Counter()
        for kernel in session.kernels:
            for share in kernel.shares:
                total[share.slot] += share.amount
        parts = (n / self._capacity[slot] for slot, n in total.items() if self._capacity.get(slot))
        return max(parts, default=0.0)

    def _order(self) -> Callable[[RunningSession], tuple[float, float, str]]:
        """Lowest priority first, then as the rules say."""
        order = self._rules.order

        def rank(session: RunningSession) -> tuple[float, float, str]:
            if order == "oldest":
                by = session.started_at
            elif order == "newest":
                by = -session.started_at
            else:
                by = self.share(session) * (1 if order == "smallest-resources" else -1)
            return session.priority, by, session.session_id

        return rank


class _Search:
    """The victims for one session."""

    def __init__(
        self,
        preemptor: Preemptor,
        session: SessionRequest,
        parts: Sequence[Shape],
        eligible: Eligible,
        back: Sequence[RunningSession],
    ) -> None:
        self._preemptor = preemptor
        self._session = session
        self._parts = parts
        self._eligible = eligible
        self._back = back

    def best_nodes(self) -> Found | None:
        """Part for part, the hardest first, the node where the least must end for it.

        That is the lowest highest priority, then the fewest, then the smallest victims.
        """
        nodes: dict[int, Node] = {}
        chosen: list[RunningSession] = []
        seated: dict[int, list[Shape]] = {}
        known: dict[tuple[Shape, int], list[RunningSession] | None] = {}
        in_turn = sorted(range(len(self._parts)), key=lambda n: self._parts[n].weight, reverse=True)
        for number in in_turn:
            part = self._parts[number]
            best: tuple[tuple[int, int, float, int], Node, list[RunningSession]] | None = None
            for node in self._eligible[number]:
                key = (part, node.index)
                if key not in known:
                    there = [*seated.get(node.index, ()), part]
                    ended = [*self._back, *chosen]
                    known[key] = self._preemptor.more(node, there, self._session, ended)
                more = known[key]
                if more is None:
                    continue
                rank = (*self._cost(more), node.index)
                if best is None or rank < best[0]:
                    best = (rank, node, more)
            if best is None:
                return None
            _, node, more = best
            nodes[number] = node
            seated.setdefault(node.index, []).append(part)
            chosen += more
            stale = {kernel.agent_id for each in more for kernel in each.kernels}
            for key in [k for k in known if k[1] == node.index]:
                del known[key]
            if stale - {node.agent_id}:
                known.clear()
        return tuple(nodes[number] for number in range(len(self._parts))), chosen

    def _cost(self, victims: Sequence[RunningSession]) -> tuple[int, int, float]:
        size = sum(self._preemptor.share(each) for each in victims)
        return max((e.priority for e in victims), default=-1), len(victims), size

    def any_nodes(self) -> Found | None:
        """Places that all parts have when everybody ended who may, and who must end there."""
        if all(part is self._parts[0] for part in self._parts):
            return None  # part for part misses no way of seating equal parts
        everybody = [*self._back, *self._preemptor.candidates(self._session)]
        nodes = self._preemptor.seats(self._parts, self._eligible, everybody)
        if nodes is None:
            return None
        chosen: list[RunningSession] = []
        for node, shapes in together(self._parts, nodes):
            more = self._preemptor.more(node, shapes, self._session, [*self._back, *chosen])
            if more is None:
                return None
            chosen += more
        return nodes, chosen

    def spare(self, found: Found) -> Found:
        """``found`` without victims that are not needed when the parts may sit elsewhere."""
        nodes, chosen = found
        if len(self._parts) == 1 and all(len(_agents(each)) == 1 for each in chosen):
            return found
        where = {agent_id for each in (*self._back, *chosen) for agent_id in _agents(each)}
        some = [
            [
                node
                for node in able
                if node.agent_id in where
                or all(node.available(slot) >= amount for slot, amount in part.need)
            ]
            for part, able in zip(self._parts, self._eligible, strict=True)
        ]
        for each in reversed(self._preemptor.in_turn(chosen)):
            rest = [other for other in chosen if other is not each]
            seats = self._preemptor.seats(self._parts, some, [*self._back, *rest])
            if seats is not None:
                nodes, chosen = seats, rest
        return nodes, chosen


def coming(running: Iterable[RunningSession], session_id: str) -> list[RunningSession]:
    """What ends already, and not for another session than this one."""
    return [e for e in running if e.ending and e.claimed_by in (None, session_id)]


def kept_for(
    session_id: str, outline: Outline, eligible: Eligible, running: Sequence[RunningSession]
) -> tuple[Seat, ...]:
    """What is kept for a session until its victims are gone; nothing where that would not help any more.

    Its parts, one after another, go to the first node on which it leaves room for the others, in the
    order of how many containers of its victims are there, then of agent ids.
    """
    ended = coming(running, session_id)
    count = Counter(k.agent_id for e in ended if e.claimed_by == session_id for k in e.kernels)
    by_part = {
        part: sorted(able, key=lambda n: (-count[n.agent_id], n.index))
        for part, able in zip(outline.parts, eligible, strict=True)
    }
    orders = [by_part[part] for part in outline.parts]
    if not any(count[node.agent_id] for able in eligible for node in able):
        return ()
    view = Ending(seating.ATTEMPTS)
    nodes: list[Node] = []
    seated: dict[int, list[Shape]] = {}
    here = _by_agent(ended)
    parts = outline.parts
    if view.seats(parts, orders, ended) is None:
        return ()
    for number, part in enumerate(parts):
        rest, others = parts[number + 1 :], orders[number + 1 :]
        for node in orders[number]:
            there = [*seated.get(node.index, ()), part]
            if not view.enough(node, there, here.get(node.agent_id, ())):
                continue
            seated[node.index] = there
            if not rest or view.seats(rest, others, ended, seated) is not None:
                nodes.append(node)
                break
            seated[node.index] = there[:-1]
        else:
            return ()
    return view.aims(parts, nodes, ended)


def _by_agent(sessions: Iterable[RunningSession]) -> dict[str, list[RunningSession]]:
    found: dict[str, list[RunningSession]] = {}
    for each in sessions:
        for agent_id in _agents(each):
            found.setdefault(agent_id, []).append(each)
    return found


def _agents(session: RunningSession) -> set[str]:
    return {kernel.agent_id for kernel in session.kernels}
