"""The invariants of a plan, checked by replaying it against its snapshot with plain, slow code.

Nothing here is shared with the pass but the value objects, the quantum of a slot and the sequencers, so
that an error in one is not repeated in the other. The list is in the room's README.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from spawner.scheduler.model import (
    Agent,
    Device,
    Explanation,
    KernelPlacement,
    KernelRequest,
    Placement,
    Plan,
    Quota,
    SessionRequest,
    Snapshot,
)
from spawner.scheduler.slots import kind_of

OWN_LIMITS = frozenset({"quota", "concurrency", "not-before", "resource-group"})


class InvalidPlan(AssertionError):
    """The plan breaks invariants; the text lists all of them."""


def validate(snapshot: Snapshot, plan: Plan) -> None:
    """Raise ``InvalidPlan`` unless ``plan`` is a right answer to ``snapshot``."""
    replay = Replay(snapshot)
    replay.everybody_once(plan)
    if not replay.faults:
        replay.in_order(plan)
        replay.run(plan)
    if replay.faults:
        raise InvalidPlan("; ".join(replay.faults))


class Replay:
    """The cluster while a plan is replayed session by session, with every fault found so far."""

    def __init__(self, snapshot: Snapshot) -> None:
        self.faults: list[str] = []
        self._snapshot = snapshot
        self._sessions = {each.session_id: each for each in snapshot.pending}
        self._groups = {each.name: each for each in snapshot.groups}
        self._agents = {each.agent_id: each for each in snapshot.agents}
        self._free = {
            (agent.agent_id, device.slot, device.device_id): device.free
            for agent in snapshot.agents
            for device in agent.devices
        }
        self._containers = {each.agent_id: each.containers for each in snapshot.agents}
        self._held = {(q.scope, q.scope_id): Counter(q.held_slots) for q in snapshot.quotas}
        self._running = {(q.scope, q.scope_id): q.held_sessions for q in snapshot.quotas}
        self._keeping: list[tuple[frozenset[str], Mapping[str, int], int]] = []

    def everybody_once(self, plan: Plan) -> None:
        """Each pending session is placed or explained, once, and the order names each once."""
        pending = Counter(each.session_id for each in self._snapshot.pending)
        answered = Counter(each.session_id for each in plan.placements)
        answered.update(each.session_id for each in plan.waiting)
        if pending != answered:
            self.faults.append(f"pending {dict(pending)} but answered {dict(answered)}")
        if Counter(plan.order) != pending:
            self.faults.append(f"pending {dict(pending)} but ordered {plan.order}")

    def in_order(self, plan: Plan) -> None:
        """Bands descend within a group; inside a band of a fifo group the earlier one comes first."""
        last: dict[str, tuple[int, float, str]] = {}
        for session_id in plan.order:
            session = self._sessions[session_id]
            group = self._groups.get(session.resource_group)
            if group is None:
                continue
            fifo = group.sequencer == "fifo"
            key = (
                -session.priority,
                session.submitted_at if fifo else 0.0,
                session_id if fifo else "",
            )
            if last.get(group.name, key) > key:
                self.faults.append(f"{session_id} was looked at out of order")
            last[group.name] = key

    def run(self, plan: Plan) -> None:
        """Go through the sessions in the order of the plan."""
        placed = {each.session_id: each for each in plan.placements}
        waiting = {each.session_id: each for each in plan.waiting}
        line: Counter[str] = Counter()
        for session_id in plan.order:
            session = self._sessions[session_id]
            if session_id in placed:
                self._start(session, placed[session_id])
            else:
                self._wait(session, waiting[session_id], line)

    def _fault(self, session: SessionRequest, text: str) -> None:
        self.faults.append(f"{session.session_id}: {text}")

    # Waiting sessions.

    def _wait(self, session: SessionRequest, explanation: Explanation, line: Counter[str]) -> None:
        group = self._groups.get(session.resource_group)
        agents = [a for a in self._snapshot.agents if a.resource_group == session.resource_group]
        if group is None:
            agents = []
        capable = [agent for agent in agents if _capable(agent, session)]
        barred = self._barred(session) if group is not None else ["resource-group"]
        impossible = group is not None and (_defective(session) or bool(agents and not capable))
        never = impossible or self._beyond_limits(session)
        if explanation.unsatisfiable != never:
            self._fault(session, f"unsatisfiable is {explanation.unsatisfiable}, should be {never}")
        told = {reason.name for reason in explanation.reasons}
        if told & OWN_LIMITS != set(barred):
            self._fault(session, f"told of {told & OWN_LIMITS}, barred by {barred}")
        if explanation.position != line[session.resource_group] + 1:
            self._fault(session, f"position {explanation.position}, line {dict(line)}")
        if explanation.agents_total != len(agents) or not explanation.message or not told:
            self._fault(session, f"explained by {explanation}")
        if never or barred:
            return
        line[session.resource_group] += 1
        takers = [agent.agent_id for agent in capable if self._has_room(agent, session)]
        if takers:
            self._fault(session, f"waits although {takers} could take it")
        for missing in explanation.missing:
            if not 0 <= missing.available < missing.requested == _amounts(session)[missing.slot]:
                self._fault(session, f"misses {missing}")
        keepers = frozenset(a.agent_id for a in capable if a.alive and a.schedulable)
        self._keeping.append((keepers, _amounts(session), len(session.kernels)))

    def _barred(self, session: SessionRequest) -> list[str]:
        """Names of the session's own limits that keep it from starting."""
        names: list[str] = []
        if session.starts_at is not None and session.starts_at > self._snapshot.now:
            names.append("not-before")
        for quota in self._quotas(session):
            scope = (quota.scope, quota.scope_id)
            if quota.max_sessions is not None and self._running[scope] + 1 > quota.max_sessions:
                names.append("concurrency")
            for slot, amount in _amounts(session).items():
                limit = None if quota.max_slots is None else quota.max_slots.get(slot)
                if limit is not None and self._held[scope][slot] + amount > limit:
                    names.append("quota")
        return names

    def _beyond_limits(self, session: SessionRequest) -> bool:
        if session.resource_group not in self._groups:
            return False
        return any(
            (quota.max_sessions is not None and quota.max_sessions < 1)
            or any(
                amount > quota.max_slots.get(slot, amount)
                for slot, amount in _amounts(session).items()
                if quota.max_slots is not None
            )
            for quota in self._quotas(session)
        )

    def _quotas(self, session: SessionRequest) -> list[Quota]:
        mine = {
            "keypair": session.access_key,
            "user": session.owner_id,
            "project": session.project_id,
            "domain": session.domain,
        }
        return [quota for quota in self._snapshot.quotas if mine.get(quota.scope) == quota.scope_id]

    def _kept(self, agent_id: str, slot: str) -> int:
        """What sessions that wait already keep of ``slot`` on this agent."""
        kept = [needs.get(slot, 0) for keepers, needs, _ in self._keeping if agent_id in keepers]
        return max(kept, default=0)

    def _room(self, agent: Agent) -> int | None:
        if agent.max_containers is None:
            return None
        return agent.max_containers - self._containers[agent.agent_id]

    def _has_room(self, agent: Agent, session: SessionRequest) -> bool:
        if not (agent.alive and agent.schedulable):
            return False
        room = self._room(agent)
        kept = [count for keepers, _, count in self._keeping if agent.agent_id in keepers]
        if room is not None and room - max(kept, default=0) < len(session.kernels):
            return False
        for slot, amount in _amounts(session).items():
            free = _usable(
                slot, [self._free[agent.agent_id, slot, d.device_id] for d in _of(agent, slot)]
            )
            if free - self._kept(agent.agent_id, slot) < amount:
                return False
        return True

    # Sessions that start.

    def _start(self, session: SessionRequest, placement: Placement) -> None:
        names = self._barred(session)
        if names:
            self._fault(session, f"starts although barred by {names}")
        kernels = {kernel.kernel_id: kernel for kernel in session.kernels}
        if sorted(kernels) != sorted(each.kernel_id for each in placement.kernels):
            self._fault(session, "not all of its kernels are placed, each once")
            return
        agent_ids = {each.agent_id for each in placement.kernels}
        agent = self._agents.get(min(agent_ids)) if len(agent_ids) == 1 else None
        if agent is None or agent.resource_group != session.resource_group:
            self._fault(session, f"goes to {agent_ids}")
            return
        if not _capable(agent, session) or not self._has_room(agent, session):
            self._fault(session, f"goes to {agent.agent_id}, which cannot or may not take it")
        for each in placement.kernels:
            self._containers[agent.agent_id] += 1
            self._cut(session, kernels[each.kernel_id], each)
        for quota in self._quotas(session):
            self._held[quota.scope, quota.scope_id].update(_amounts(session))
            self._running[quota.scope, quota.scope_id] += 1

    def _cut(self, session: SessionRequest, kernel: KernelRequest, placed: KernelPlacement) -> None:
        given: Counter[str] = Counter()
        for share in placed.shares:
            place = (placed.agent_id, share.slot, share.device_id)
            if share.amount <= 0 or share.amount % kind_of(share.slot).quantum:
                self._fault(session, f"share {share}")
            if share.amount > self._free.get(place, 0):
                self._fault(session, f"{share} of {self._free.get(place)} free")
            self._free[place] = self._free.get(place, 0) - share.amount
            given[share.slot] += share.amount
        if dict(given) != {slot: amount for slot, amount in kernel.slots.items() if amount}:
            self._fault(session, f"{kernel.kernel_id} gets {dict(given)} for {dict(kernel.slots)}")


def _amounts(session: SessionRequest) -> Counter[str]:
    total: Counter[str] = Counter()
    for kernel in session.kernels:
        for slot, amount in kernel.slots.items():
            if amount:
                total[slot] += amount
    return total


def _of(agent: Agent, slot: str) -> list[Device]:
    return [device for device in agent.devices if device.slot == slot]


def _usable(slot: str, amounts: Sequence[int]) -> int:
    quantum = kind_of(slot).quantum
    return sum(max(0, amount) // quantum * quantum for amount in amounts)


def _defective(session: SessionRequest) -> bool:
    return (
        not session.kernels
        or (len(session.kernels) > 1 and session.cluster_mode != "single-node")
        or any(
            amount < 0 or amount % kind_of(slot).quantum
            for kernel in session.kernels
            for slot, amount in kernel.slots.items()
        )
    )


def _capable(agent: Agent, session: SessionRequest) -> bool:
    """Could ``agent``, alone and empty, run ``session``?"""
    if session.designated_agents and agent.agent_id not in session.designated_agents:
        return False
    if {kernel.architecture for kernel in session.kernels} != {agent.architecture}:
        return False
    if agent.max_containers is not None and len(session.kernels) > agent.max_containers:
        return False
    return all(
        amount <= _usable(slot, [device.capacity for device in _of(agent, slot)])
        for slot, amount in _amounts(session).items()
    )
