"""Preemption: which running sessions end for the sake of one that waits, where the group allows it.

Only single-node sessions preempt. Victims have strictly lower priority; the lowest priority goes first,
then as the rules say. No victim is taken that is not needed: what is ending already is waited for.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from spawner.scheduler.cutting import cut
from spawner.scheduler.devices import DeviceStock
from spawner.scheduler.model import PreemptionRules, RunningSession, SessionRequest
from spawner.scheduler.nodes import Node
from spawner.scheduler.reserve import Seat, aim
from spawner.scheduler.shapes import Shape

Scope = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Hold:
    """Where a session waits for the end of its victims."""

    seat: Seat
    shape: Shape

    @property
    def node(self) -> Node:
        """The node."""
        return self.seat.node


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
        self._here: dict[str, list[RunningSession]] = {}
        self._gave: dict[tuple[str, int], tuple[dict[str, int], list[tuple[DeviceStock, int]]]] = {}
        for each in running:
            for agent_id in dict.fromkeys(kernel.agent_id for kernel in each.kernels):
                self._here.setdefault(agent_id, []).append(each)
        self._taken: set[str] = set()
        self._fruitless: set[tuple[Shape, int, Scope]] = set()

    def victims(
        self, session: SessionRequest, shape: Shape, eligible: Sequence[Node]
    ) -> tuple[Node, tuple[RunningSession, ...]] | None:
        """A node and the sessions that end there for ``session``; None: there are none, or none is needed."""
        key = (shape, session.priority, self._scope(session))
        if key in self._fruitless:
            return None
        best: tuple[tuple[int, int, float, int], Node, list[RunningSession]] | None = None
        for node in eligible:
            chosen = self._on(node, session, shape)
            if chosen is None:
                continue
            if not chosen:
                return None
            size = sum(self._share(each) for each in chosen)
            rank = (max(e.priority for e in chosen), len(chosen), size, node.index)
            if best is None or rank < best[0]:
                best = (rank, node, chosen)
        if best is None:
            self._fruitless.add(key)
            return None
        self._taken.update(each.session_id for each in best[2])
        return best[1], tuple(best[2])

    def _on(self, node: Node, session: SessionRequest, shape: Shape) -> list[RunningSession] | None:
        """The victims that ``session`` needs on ``node``, or None when they would not do."""
        here = self._here.get(node.agent_id, [])
        back = [
            each for each in here if each.ending and each.claimed_by in (None, session.session_id)
        ]
        chosen: list[RunningSession] = []
        for each in sorted((e for e in here if self._may_end(e, session)), key=self._rank):
            if self._enough(node, shape, [*back, *chosen]):
                break
            chosen.append(each)
        if not self._enough(node, shape, [*back, *chosen]):
            return None
        for each in reversed(tuple(chosen)):
            rest = [other for other in chosen if other is not each]
            if self._enough(node, shape, [*back, *rest]):
                chosen = rest
        return chosen

    def _enough(self, node: Node, shape: Shape, ended: Sequence[RunningSession]) -> bool:
        """Whether ``shape`` has its place on ``node`` when these have ended."""
        lacks = Counter({slot: n - node.available(slot) for slot, n in shape.need})
        gifts = [self._gives(each, node) for each in ended]
        for gives, _ in gifts:
            lacks.subtract(gives)
        if any(lacks[slot] > 0 for slot, _ in shape.need):
            return False
        if not node.is_picky(shape):
            return True
        room = node.room(shape.wanted)
        for _, parts in gifts:
            for device, part in parts:
                if device in room:
                    room[device] += part
        return cut(node.stock, shape.kernels, shape.rules, room) is not None

    def soon(
        self, node: Node, session_id: str, chosen: Sequence[RunningSession]
    ) -> dict[DeviceStock, int]:
        """What comes back of each device for a session that preempts ``chosen``."""
        found: dict[DeviceStock, int] = {}
        here = self._here.get(node.agent_id, [])
        waits = [e for e in here if e.ending and e.claimed_by in (None, session_id)]
        for each in (*waits, *chosen):
            for device, part in self._gives(each, node)[1]:
                found[device] = found.get(device, 0) + part
        return found

    def _gives(
        self, session: RunningSession, node: Node
    ) -> tuple[dict[str, int], list[tuple[DeviceStock, int]]]:
        key = (session.session_id, node.index)
        found = self._gave.get(key)
        if found is None:
            need, parts = node.gives(session.kernels)
            found = self._gave[key] = (dict(need), parts)
        return found

    def _may_end(self, victim: RunningSession, session: SessionRequest) -> bool:
        return (
            victim.priority < session.priority
            and victim.preemptible
            and not victim.ending
            and victim.claimed_by is None
            and victim.session_id not in self._taken
            and self._now - victim.started_at >= self._rules.minimum_run_time
            and self._scope(victim) == self._scope(session)
        )

    def _scope(self, session: SessionRequest | RunningSession) -> Scope:
        whose: dict[str, Scope] = {
            "user": (session.owner_id,),
            "project": (session.project_id,),
            "domain": (session.domain,),
            "group": (),
        }
        return whose[self._rules.scope]

    def _share(self, session: RunningSession) -> float:
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
                by = self._share(session) * (1 if order == "smallest-resources" else -1)
            return session.priority, by, session.session_id

        return rank


def held_for(
    sessions: Mapping[str, Shape],
    running: Sequence[RunningSession],
    nodes: Mapping[str, Node],
    eligible: Callable[[Shape], Sequence[Node]],
) -> dict[str, Hold]:
    """Where each of ``sessions`` waits for victims: the eligible node with most of their containers."""
    counts: dict[str, Counter[str]] = {}
    for each in running:
        if each.claimed_by in sessions:
            here = counts.setdefault(str(each.claimed_by), Counter())
            here.update(k.agent_id for k in each.kernels if k.agent_id in nodes)
    found: dict[str, Hold] = {}
    for session_id, here in counts.items():
        able = {node.agent_id for node in eligible(sessions[session_id])}
        places = [agent_id for agent_id in here if agent_id in able]
        if places:
            most = min(places, key=lambda agent_id: (-here[agent_id], agent_id))
            shape, node = sessions[session_id], nodes[most]
            soon: dict[DeviceStock, int] = {}
            for each in running:
                if each.claimed_by == session_id:
                    for device, part in node.gives(each.kernels)[1]:
                        soon[device] = soon.get(device, 0) + part
            found[session_id] = Hold(aim(node, (shape,), soon), shape)
    return found
