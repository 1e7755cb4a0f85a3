"""The cluster and one session's place in it as ``validate`` sees them: plain, slow, on its own."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from spawner.scheduler.model import (
    Agent,
    GroupPolicy,
    KernelRequest,
    Reservation,
    RunningSession,
    SessionRequest,
    Snapshot,
)
from spawner.scheduler.slots import kind_of

FOREVER = float("inf")
GRACE = 300.0
ROOM = "*containers"
ENDLESS = 2**62


def amounts(kernels: Iterable[KernelRequest]) -> Counter[str]:
    """Summed amounts above zero."""
    total: Counter[str] = Counter()
    for kernel in kernels:
        for slot, amount in kernel.slots.items():
            if amount:
                total[slot] += amount
    return total


def needs(kernels: Sequence[KernelRequest]) -> Counter[str]:
    """The same with the containers."""
    total = amounts(kernels)
    total[ROOM] = len(kernels)
    return total


@dataclass
class Kept:
    """A reservation on one agent: what may still be taken for longer than until ``start``."""

    start: float | None
    end: float
    need: Counter[str]
    left: dict[str, int]
    holder: str = ""
    """The session that waits for its victims here."""


class Cluster:
    """All agents with what is free, what ends when, what is reserved, and where session groups are."""

    def __init__(self, snapshot: Snapshot) -> None:
        self.now = snapshot.now
        self.agents = {each.agent_id: each for each in snapshot.agents}
        self.free = {
            (agent.agent_id, device.slot, device.device_id): min(device.free, device.capacity)
            for agent in snapshot.agents
            for device in agent.devices
        }
        self.containers = Counter({each.agent_id: each.containers for each in snapshot.agents})
        self.ends: dict[str, list[tuple[float, Counter[str]]]] = {a: [] for a in self.agents}
        self.kept: dict[str, list[Kept]] = {a: [] for a in self.agents}
        self.circles: dict[tuple[str, str], Counter[str]] = {}
        for session in snapshot.running:
            held: dict[str, Counter[str]] = {}
            for kernel in session.kernels:
                mine = held.setdefault(kernel.agent_id, Counter())
                mine[ROOM] += 1
                for share in kernel.shares:
                    mine[share.slot] += _whole(share.slot, share.amount)
            end = session.ends_at
            if session.ending:
                end = snapshot.now
            for agent_id, mine in held.items():
                if agent_id not in self.agents:
                    continue
                if end is not None and snapshot.now - end <= GRACE:
                    self.ends[agent_id].append((max(end, snapshot.now), mine))
                if session.session_group is not None:
                    circle = (session.owner_id, session.session_group.name)
                    self.circles.setdefault(circle, Counter())[agent_id] += 1

    def hold_for_preemptors(self, snapshot: Snapshot) -> dict[str, str]:
        """Keep what victims leave for those that preempted them; the agent of each such session."""
        places: dict[str, str] = {}
        groups = {each.name: each for each in snapshot.groups}
        for session in sorted(snapshot.pending, key=lambda each: each.session_id):
            group = groups.get(session.resource_group)
            here = Counter(
                kernel.agent_id
                for victim in snapshot.running
                if victim.claimed_by == session.session_id
                and victim.resource_group == session.resource_group
                for kernel in victim.kernels
                if kernel.agent_id in self.agents
                and self.agents[kernel.agent_id].resource_group == session.resource_group
            )
            if not here or group is None or _defects(session, group) or len(parts_of(session)) > 1:
                continue
            party = Party(session, self, group)
            able = sorted((-count, a) for a, count in here.items() if party.eligible(a, 0))
            if not able:
                continue
            agent_id = able[0][1]
            need = needs(session.kernels)
            left = {slot: max(0, self.has(agent_id, slot) - n) for slot, n in need.items()}
            self.kept[agent_id].append(Kept(None, FOREVER, need, left, session.session_id))
            places[session.session_id] = agent_id
        return places

    def drop_hold(self, session_id: str) -> None:
        """The session itself may have what is kept for it."""
        for kept in self.kept.values():
            kept[:] = [each for each in kept if each.holder != session_id]

    def total(self, agent_id: str, slot: str) -> int:
        """What the agent has of ``slot`` in all."""
        agent = self.agents[agent_id]
        if slot == ROOM:
            return ENDLESS if agent.max_containers is None else agent.max_containers
        return sum(_whole(slot, d.capacity) for d in agent.devices if d.slot == slot)

    def has(self, agent_id: str, slot: str) -> int:
        """What is free of ``slot`` now."""
        agent = self.agents[agent_id]
        if slot == ROOM:
            if agent.max_containers is None:
                return ENDLESS
            return max(0, agent.max_containers - self.containers[agent_id])
        return sum(
            _whole(slot, self.free[agent_id, slot, d.device_id])
            for d in agent.devices
            if d.slot == slot
        )

    def moments(self, agent_id: str) -> list[float]:
        """Every moment after now at which something is known to change."""
        found = {end for end, _ in self.ends[agent_id]}
        for kept in self.kept[agent_id]:
            found |= {kept.end} | ({kept.start} if kept.start is not None else set())
        return sorted(at for at in found if self.now < at < FOREVER)

    def free_at(self, agent_id: str, slot: str, at: float) -> int:
        """What will be free of ``slot`` at ``at`` if nothing more starts."""
        amount = self.has(agent_id, slot)
        amount += sum(held[slot] for end, held in self.ends[agent_id] if end <= at)
        for kept in self.kept[agent_id]:
            begins = self.now if kept.start is None else kept.start
            if begins <= at < kept.end:
                amount -= kept.need[slot]
        return min(amount, self.total(agent_id, slot))

    def for_good(self, agent_id: str, slot: str, at: float) -> int:
        """The least that will be free of ``slot`` at ``at`` or later."""
        later = [moment for moment in self.moments(agent_id) if moment > at]
        return min(self.free_at(agent_id, slot, moment) for moment in (at, *later))

    def spare(self, agent_id: str, need: Mapping[str, int], until: float) -> bool:
        """May ``need`` be taken until ``until``?"""
        if any(self.has(agent_id, slot) < amount for slot, amount in need.items()):
            return False
        for kept in self.kept[agent_id]:
            if kept.start is not None and until <= kept.start:
                continue
            if any(kept.left[slot] < n for slot, n in need.items() if slot in kept.left):
                return False
        return True

    def claim(self, reservation: Reservation, run_time: float) -> None:
        """Note what is kept from sessions that come later."""
        start = reservation.starts_at
        notes: list[tuple[str, Kept]] = []
        for agent_id, amount in zip(reservation.agent_ids, reservation.amounts, strict=True):
            left: dict[str, int] = {}
            for slot, n in amount.items():
                there = (
                    self.has(agent_id, slot)
                    if start is None
                    else self.for_good(agent_id, slot, start)
                )
                left[slot] = max(0, there - n)
            end = FOREVER if start is None else start + run_time
            notes.append((agent_id, Kept(start, end, Counter(amount), left)))
        for agent_id, kept in notes:
            self.kept[agent_id].append(kept)

    def occupy(
        self,
        agent_id: str,
        kernels: Sequence[KernelRequest],
        until: float,
        session: SessionRequest,
    ) -> None:
        """Note that ``kernels`` start; their devices are cut by the caller."""
        need = needs(kernels)
        self.containers[agent_id] += len(kernels)
        for kept in self.kept[agent_id]:
            if kept.start is None or until > kept.start:
                for slot in set(kept.left) & set(need):
                    kept.left[slot] -= need[slot]
        if until < FOREVER:
            self.ends[agent_id].append((until, need))
        if session.session_group is not None:
            circle = (session.owner_id, session.session_group.name)
            self.circles.setdefault(circle, Counter())[agent_id] += 1


class Party:
    """One session with the agents of its group."""

    def __init__(
        self, session: SessionRequest, cluster: Cluster, group: GroupPolicy | None
    ) -> None:
        self.session = session
        self.cluster = cluster
        name = None if group is None else group.name
        self.agents = [a for a, each in cluster.agents.items() if each.resource_group == name]
        self.kernels = parts_of(session)
        self.parts = [needs(kernels) for kernels in self.kernels]
        self.defects = set() if group is None else _defects(session, group)

    def _capable(self, agent_id: str, number: int) -> bool:
        """Could the agent, alone and empty, run this part?"""
        session, agent = self.session, self.cluster.agents[agent_id]
        strict = session.designation == "strict" and session.designated_agents
        if strict and agent_id not in session.designated_agents:
            return False
        if {kernel.architecture for kernel in self.kernels[number]} != {agent.architecture}:
            return False
        return all(n <= self.cluster.total(agent_id, s) for s, n in self.parts[number].items())

    def eligible(self, agent_id: str, number: int) -> bool:
        """Could the agent run this part as soon as enough of it is free?"""
        agent = self.cluster.agents[agent_id]
        return (
            agent.alive
            and agent.schedulable
            and self._capable(agent_id, number)
            and self._in_circle(agent)
        )

    def _in_circle(self, agent: Agent) -> bool:
        group = self.session.session_group
        if group is None or not group.strict:
            return True
        members = self.cluster.circles.get((self.session.owner_id, group.name), Counter())
        here = members[agent.agent_id] > 0
        return here if group.rule == "pack" and members else not (here and group.rule == "spread")

    def hopeless(self) -> bool:
        """There are agents, and no empty ones could ever run it."""
        if not self.agents or not self.parts:
            return False
        if any(
            not any(self._capable(a, number) for a in self.agents)
            for number in range(len(self.parts))
        ):
            return True
        if len(self.parts) == 1:
            return False
        if any(part != self.parts[0] for part in self.parts):
            return not self._any_way(empty=True)
        return sum(self._count(a, empty=True) for a in self.agents) < len(self.parts)

    def _any_way(self, *, empty: bool = False, until: float = FOREVER) -> bool:
        """Is there any way to seat unequal parts? Every one is tried."""
        for seats in itertools.product(self.agents, repeat=len(self.parts)):
            together: dict[str, Counter[str]] = {}
            for agent_id, part in zip(seats, self.parts, strict=True):
                together.setdefault(agent_id, Counter()).update(part)
            able = self._capable if empty else self.eligible
            if all(able(a, number) for number, a in enumerate(seats)) and all(
                all(n <= self.cluster.total(a, slot) for slot, n in need.items())
                if empty
                else self.cluster.spare(a, need, until)
                for a, need in together.items()
            ):
                return True
        return False

    def _count(self, agent_id: str, *, empty: bool = False, until: float = FOREVER) -> int:
        """How many of its equal parts the agent could run at once."""
        count = 0
        while count < len(self.parts):
            need = Counter({slot: n * (count + 1) for slot, n in self.parts[0].items()})
            if empty:
                fits = self._capable(agent_id, 0) and all(
                    n <= self.cluster.total(agent_id, s) for s, n in need.items()
                )
            else:
                fits = self.eligible(agent_id, 0) and self.cluster.spare(agent_id, need, until)
            if not fits:
                break
            count += 1
        return count

    def could_start(self) -> bool:
        """Is there an eligible agent for every part?"""
        return all(
            any(self.eligible(a, number) for a in self.agents) for number in range(len(self.parts))
        )

    def takers(self, until: float) -> list[str]:
        """Agents that could take it now, when they can take all of it."""
        if any(part != self.parts[0] for part in self.parts):
            return self.agents if self._any_way(until=until) else []
        counts = {a: self._count(a, until=until) for a in self.agents}
        if sum(counts.values()) < len(self.parts):
            return []
        return [agent_id for agent_id, count in counts.items() if count]

    def may_take(self, agent_id: str, kernels: Sequence[KernelRequest], until: float) -> bool:
        """May the agent start these kernels now?"""
        mine = [n for n, part in enumerate(self.kernels) if any(k in kernels for k in part)]
        return all(self.eligible(agent_id, n) for n in mine) and self.cluster.spare(
            agent_id, needs(kernels), until
        )

    def would_fit(self, agent_id: str, ended: Iterable[RunningSession]) -> bool:
        """Could it start on the agent if these sessions had ended?"""
        back: Counter[str] = Counter()
        for each in ended:
            for kernel in each.kernels:
                if kernel.agent_id == agent_id:
                    back[ROOM] += 1
                    for share in kernel.shares:
                        back[share.slot] += _whole(share.slot, share.amount)
        for slot, n in self.parts[0].items():
            kept = [k.left[slot] for k in self.cluster.kept[agent_id] if slot in k.left]
            if max(0, min([self.cluster.has(agent_id, slot), *kept])) + back[slot] < n:
                return False
        return True

    def lane(self) -> frozenset[object]:
        """What it waits for in kind."""
        session = self.session
        strict = session.designated_agents if session.designation == "strict" else frozenset()
        return frozenset(
            (frozenset(k.architecture for k in kernels), strict, families(kernels))
            for kernels in self.kernels
        )

    def misreserved(self, reservation: Reservation, *, seized: bool) -> Iterable[str]:
        """What is wrong with the reservation made for it; ``seized``: where its victims are."""
        whole: Counter[str] = Counter()
        for amount in reservation.amounts:
            whole.update(amount)
        if whole != needs(self.session.kernels):
            yield f"reserves {dict(whole)}"
        numbers = range(len(self.parts))
        for agent_id in reservation.agent_ids:
            if agent_id not in self.agents or not any(self.eligible(agent_id, n) for n in numbers):
                yield f"reserves on {agent_id}, which cannot take it"
        start = reservation.starts_at
        if start is not None:
            for agent_id, amount in zip(reservation.agent_ids, reservation.amounts, strict=True):
                for slot, n in amount.items():
                    there = self.cluster.for_good(agent_id, slot, start)
                    if there < n:
                        yield f"reserves {n} of {slot} on {agent_id} where {there} will be"
        if len(self.parts) > 1 or seized:
            return
        able = [a for a in self.agents if self.eligible(a, 0)]
        soonest = min((self._first(a) for a in able), default=FOREVER)
        if soonest != (FOREVER if start is None else start):
            yield f"reserves for {start}, could start at {soonest}"
        if start is None and self._lack(reservation.agent_ids[0]) > min(map(self._lack, able)):
            yield f"reserves on {reservation.agent_ids[0]}, others lack less"

    def _first(self, agent_id: str) -> float:
        """The first moment after now from which the agent has room for good."""
        for at in self.cluster.moments(agent_id):
            if all(
                self.cluster.for_good(agent_id, slot, at) >= n for slot, n in self.parts[0].items()
            ):
                return at
        if all(
            self.cluster.for_good(agent_id, slot, self.cluster.now) >= n
            for slot, n in self.parts[0].items()
        ):
            return self.cluster.now
        return FOREVER

    def _lack(self, agent_id: str) -> tuple[int, float]:
        lacks = []
        for slot, n in self.parts[0].items():
            has = self.cluster.has(agent_id, slot)
            has = min([has, *(k.left[slot] for k in self.cluster.kept[agent_id] if slot in k.left)])
            if has < n:
                lacks.append((n - has) / n)
        return len(lacks), round(sum(lacks), 9)


def parts_of(session: SessionRequest) -> list[tuple[KernelRequest, ...]]:
    """The kernels that start together on one agent."""
    if session.cluster_mode == "multi-node" and len(session.kernels) > 1:
        return [(kernel,) for kernel in session.kernels]
    return [session.kernels]


def families(kernels: Iterable[KernelRequest]) -> frozenset[str]:
    """Families of accelerators asked for."""
    names = {slot.split(".")[0].split(":")[0] for slot in amounts(kernels)}
    return frozenset(names - {"cpu", "mem"})


def _defects(session: SessionRequest, group: GroupPolicy) -> set[str]:
    """Names of everything that is wrong with the request itself."""
    found = set() if session.kernels else {"kernels"}
    if session.cluster_mode not in ("single-node", "multi-node"):
        found.add("cluster-mode")
    for kernel in session.kernels:
        for slot, amount in kernel.slots.items():
            if amount < 0 or amount % kind_of(slot).quantum:
                found.add("amount")
            if amount and group.served_slots is not None and slot not in group.served_slots:
                found.add("slot-kinds")
        if any(not kernel.slots.get(slot) for slot in group.required_slots):
            found.add("required-slots")
        if any(kernel.slots.get(slot, 0) < least for slot, least in kernel.minimum.items()):
            found.add("image-minimum")
        if 0 < kernel.shared_memory >= kernel.slots.get("mem", 0):
            found.add("shared-memory")
    return found


def _whole(slot: str, amount: int) -> int:
    quantum = kind_of(slot).quantum
    return max(0, amount) // quantum * quantum
