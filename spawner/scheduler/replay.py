"""The cluster and one session's place in it as ``validate`` sees them: plain, slow, on its own."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from spawner.scheduler.model import (
    Agent,
    DeviceRules,
    DeviceShare,
    GroupPolicy,
    KernelRequest,
    Reservation,
    RunningSession,
    SessionRequest,
    Snapshot,
)
from spawner.scheduler.recut import can_cut, steps_of, usable_of
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
    devices: dict[tuple[str, str], int] | None = None
    """Where certain devices are kept: what may still be taken of each."""
    cut: Counter[tuple[str, str]] = field(default_factory=Counter)
    holder: str = ""
    """The session that waits for its victims here."""


class Cluster:
    """All agents with what is free, what ends when, what is reserved, and where session groups are."""

    def __init__(self, snapshot: Snapshot) -> None:
        self.now = snapshot.now
        self.agents = {each.agent_id: each for each in snapshot.agents}
        self.steps = {a: steps_of(each.devices) for a, each in self.agents.items()}
        self.capacity: dict[tuple[str, str, str], int] = {}
        self.free: dict[tuple[str, str, str], int] = {}
        self.numa: dict[tuple[str, str, str], int | None] = {}
        for agent in snapshot.agents:
            for device in agent.devices:
                if not device.masked:
                    place = (agent.agent_id, device.slot, device.device_id)
                    step = self.steps[agent.agent_id][device.slot]
                    self.capacity[place], self.free[place] = usable_of(device, step)
                    home = device.numa_node
                    self.numa[place] = None if home is None or home < 0 else home
        self.containers = Counter({each.agent_id: each.containers for each in snapshot.agents})
        self.ends: dict[str, list[tuple[float, Counter[str]]]] = {a: [] for a in self.agents}
        self.gives: dict[str, list[tuple[float, Counter[tuple[str, str]]]]] = {
            a: [] for a in self.agents
        }
        self.kept: dict[str, list[Kept]] = {a: [] for a in self.agents}
        self.circles: dict[tuple[str, str], Counter[str]] = {}
        for session in snapshot.running:
            held = {kernel.agent_id: Counter[str]() for kernel in session.kernels}
            for agent_id, mine in held.items():
                if agent_id in self.agents:
                    mine.update(self.back(agent_id, [session]))
            end = session.ends_at
            if session.ending:
                end = snapshot.now
            for agent_id, mine in held.items():
                if agent_id not in self.agents:
                    continue
                if end is not None and snapshot.now - end <= GRACE:
                    at = max(end, snapshot.now)
                    self.ends[agent_id].append((at, mine))
                    self.gives[agent_id].append((at, self.back_devices(agent_id, [session])))
                if session.session_group is not None:
                    circle = (session.owner_id, session.session_group.name)
                    self.circles.setdefault(circle, Counter())[agent_id] += 1

    def back(self, agent_id: str, sessions: Iterable[RunningSession]) -> Counter[str]:
        """What sessions give back on an agent, by slot."""
        found: Counter[str] = Counter()
        for session in sessions:
            found[ROOM] += sum(kernel.agent_id == agent_id for kernel in session.kernels)
            for (slot, _), amount in self.back_devices(agent_id, [session]).items():
                found[slot] += amount
        return found

    def back_devices(
        self, agent_id: str, sessions: Iterable[RunningSession]
    ) -> Counter[tuple[str, str]]:
        """The same by device; masked ones give nothing back."""
        found: Counter[tuple[str, str]] = Counter()
        for session in sessions:
            for kernel in session.kernels:
                for share in kernel.shares:
                    if (
                        kernel.agent_id == agent_id
                        and (agent_id, share.slot, share.device_id) in self.free
                    ):
                        step = self.steps[agent_id][share.slot]
                        found[share.slot, share.device_id] += share.amount // step * step
        return found

    def places(self, agent_id: str, slot: str) -> list[str]:
        """Devices of a slot that are given out."""
        agent = self.agents[agent_id]
        return [d.device_id for d in agent.devices if d.slot == slot and not d.masked]

    def room(self, agent_id: str, until: float) -> dict[tuple[str, str], int]:
        """What may be taken of each device until ``until``."""
        found = {(slot, d): n for (a, slot, d), n in self.free.items() if a == agent_id}
        for kept in self.kept[agent_id]:
            if kept.devices is not None and (kept.start is None or until > kept.start):
                for place, left in kept.devices.items():
                    found[place] = min(found[place], left)
        return found

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
            kept = Kept(None, FOREVER, need, left, holder=session.session_id)
            if party.picky(agent_id):
                kept.devices = {}
            self.kept[agent_id].append(kept)
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
        return sum(self.capacity[agent_id, slot, d] for d in self.places(agent_id, slot))

    def has(self, agent_id: str, slot: str) -> int:
        """What is free of ``slot`` now."""
        agent = self.agents[agent_id]
        if slot == ROOM:
            if agent.max_containers is None:
                return ENDLESS
            return max(0, agent.max_containers - self.containers[agent_id])
        return sum(self.free[agent_id, slot, d] for d in self.places(agent_id, slot))

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
        room = self.room(agent_id, until)
        return all(
            sum(room[slot, d] for d in self.places(agent_id, slot)) >= n
            for slot, n in need.items()
            if slot != ROOM
        )

    def claim(self, reservation: Reservation, run_time: float) -> None:
        """Note what is kept from sessions that come later."""
        start = reservation.starts_at
        notes: list[tuple[str, Kept]] = []
        cuts = reservation.cuts or ((),) * len(reservation.agent_ids)
        for agent_id, amount, cut in zip(
            reservation.agent_ids, reservation.amounts, cuts, strict=True
        ):
            left: dict[str, int] = {}
            for slot, n in amount.items():
                there = (
                    self.has(agent_id, slot)
                    if start is None
                    else self.for_good(agent_id, slot, start)
                )
                left[slot] = max(0, there - n)
            end = FOREVER if start is None else start + run_time
            kept = Kept(start, end, Counter(amount), left)
            if cut:
                kept.cut = Counter({(each.slot, each.device_id): each.amount for each in cut})
                kept.devices = {
                    (slot, d): max(
                        0,
                        (
                            self.free[agent_id, slot, d]
                            if start is None
                            else self.device_for_good(agent_id, slot, d, start)
                        )
                        - kept.cut[slot, d],
                    )
                    for slot in amount
                    if slot != ROOM
                    for d in self.places(agent_id, slot)
                }
                kept.left = {ROOM: left[ROOM]}
            notes.append((agent_id, kept))
        for agent_id, kept in notes:
            self.kept[agent_id].append(kept)

    def device_for_good(self, agent_id: str, slot: str, device_id: str, at: float) -> int:
        """The least that will be free of one device at ``at`` or later, beside certain devices that are kept."""
        later = [moment for moment in self.moments(agent_id) if moment > at]
        amounts = []
        for moment in (at, *later):
            n = self.free[agent_id, slot, device_id]
            n += sum(held[slot, device_id] for end, held in self.gives[agent_id] if end <= moment)
            for kept in self.kept[agent_id]:
                begins = self.now if kept.start is None else kept.start
                if begins <= moment < kept.end:
                    n -= kept.cut[slot, device_id]
            amounts.append(min(n, self.capacity[agent_id, slot, device_id]))
        return max(0, min(amounts))

    def occupy(
        self,
        agent_id: str,
        kernels: Sequence[KernelRequest],
        until: float,
        session: SessionRequest,
        shares: Iterable[DeviceShare] = (),
    ) -> None:
        """Note that ``kernels`` start on ``shares``, which the caller takes from what is free."""
        devices: Counter[tuple[str, str]] = Counter()
        for share in shares:
            devices[share.slot, share.device_id] += share.amount
        need = needs(kernels)
        self.containers[agent_id] += len(kernels)
        for kept in self.kept[agent_id]:
            if kept.start is None or until > kept.start:
                for slot in set(kept.left) & set(need):
                    kept.left[slot] -= need[slot]
                for place in set(kept.devices or ()) & set(devices):
                    if kept.devices is not None:
                        kept.devices[place] -= devices[place]
        if until < FOREVER:
            self.ends[agent_id].append((until, need))
            self.gives[agent_id].append((until, devices))
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
        self.rules = session.devices or (DeviceRules() if group is None else group.devices)
        self.defects = set() if group is None else _defects(session, group)

    def _capable(self, agent_id: str, number: int) -> bool:
        """Could the agent, alone and empty, run this part?"""
        session, agent = self.session, self.cluster.agents[agent_id]
        strict = session.designation == "strict" and session.designated_agents
        if strict and agent_id not in session.designated_agents:
            return False
        if {kernel.architecture for kernel in self.kernels[number]} != {agent.architecture}:
            return False
        if any(n > self.cluster.total(agent_id, s) for s, n in self.parts[number].items()):
            return False
        return self.cuttable(agent_id, self.kernels[number], self._whole(agent_id))

    def _whole(self, agent_id: str) -> dict[tuple[str, str], int]:
        return {(s, d): n for (a, s, d), n in self.cluster.capacity.items() if a == agent_id}

    def cuttable(
        self,
        agent_id: str,
        kernels: Sequence[KernelRequest],
        room: Mapping[tuple[str, str], int],
    ) -> bool:
        """Can the kernels get their devices within ``room`` by the rules of the session?"""
        return can_cut(self.cluster, agent_id, kernels, room, self.rules)

    def picky(self, agent_id: str) -> bool:
        """Do its rules ask for more than amounts?"""
        return self.rules.unfragmented or self.rules.numa == "require"

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
            if (
                all(able(a, number) for number, a in enumerate(seats))
                and all(
                    all(n <= self.cluster.total(a, slot) for slot, n in need.items())
                    if empty
                    else self.cluster.spare(a, need, until)
                    for a, need in together.items()
                )
                and all(
                    self.cuttable(
                        a,
                        [
                            k
                            for at, each in zip(seats, self.kernels, strict=True)
                            if at == a
                            for k in each
                        ],
                        self._whole(a) if empty else self.cluster.room(a, until),
                    )
                    for a in together
                )
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
            room = self._whole(agent_id) if empty else self.cluster.room(agent_id, until)
            fits = fits and self.cuttable(agent_id, list(self.kernels[0]) * (count + 1), room)
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
        return (
            all(self.eligible(agent_id, n) for n in mine)
            and self.cluster.spare(agent_id, needs(kernels), until)
            and self.cuttable(agent_id, kernels, self.cluster.room(agent_id, until))
        )

    def would_fit(self, agent_id: str, ended: Iterable[RunningSession]) -> bool:
        """Could it start on the agent if these sessions had ended?"""
        ended = list(ended)
        back = self.cluster.back(agent_id, ended)
        room = Counter(self.cluster.room(agent_id, FOREVER))
        room.update(self.cluster.back_devices(agent_id, ended))
        for slot, n in self.parts[0].items():
            kept = [k.left[slot] for k in self.cluster.kept[agent_id] if slot in k.left]
            if max(0, min([self.cluster.has(agent_id, slot), *kept])) + back[slot] < n:
                return False
            here = self.cluster.places(agent_id, slot) if slot != ROOM else []
            if slot != ROOM and sum(room[slot, d] for d in here) < n:
                return False
        return self.cuttable(agent_id, self.kernels[0], room)

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
        for agent_id, cut in zip(reservation.agent_ids, reservation.cuts, strict=False):
            for share in cut:
                place = (agent_id, share.slot, share.device_id)
                if share.amount > (
                    self.cluster.capacity.get(place, 0)
                    if start is None
                    else self.cluster.device_for_good(*place, start)
                ):
                    yield f"reserves {share} on {agent_id}, which will not be there"
        if len(self.parts) > 1 or seized:
            return
        able = [a for a in self.agents if self.eligible(a, 0)]
        soonest = min((self._first(a) for a in able), default=FOREVER)
        if soonest != (FOREVER if start is None else start):
            yield f"reserves for {start}, could start at {soonest}"
        if (
            start is None
            and not self.picky("")
            and self._lack(reservation.agent_ids[0]) > min(map(self._lack, able))
        ):
            yield f"reserves on {reservation.agent_ids[0]}, others lack less"

    def _first(self, agent_id: str) -> float:
        """The first moment from which the agent has room for good: now, where what ends now makes it."""
        for at in (self.cluster.now, *self.cluster.moments(agent_id)):
            if all(
                self.cluster.for_good(agent_id, slot, at) >= n for slot, n in self.parts[0].items()
            ) and (
                not self.picky(agent_id)
                or self.cuttable(
                    agent_id,
                    self.kernels[0],
                    {
                        (s, d): self.cluster.device_for_good(agent_id, s, d, at)
                        for (a, s, d) in self.cluster.capacity
                        if a == agent_id
                    },
                )
            ):
                return at
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
    return frozenset(slot.split(".")[0].split(":")[0] for slot in amounts(kernels)) - {"cpu", "mem"}


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
        ways: dict[str, set[str]] = {}
        for slot, amount in kernel.slots.items():
            if amount and slot not in ("cpu", "mem"):
                how = "mig" if slot.endswith("-mig") else slot.rpartition(".")[2]
                ways.setdefault(slot.split(".")[0], set()).add(how)
        found |= {"exclusive-family" for way in ways.values() if len(way) > 1}
        found |= {"required-slots" for slot in group.required_slots if not kernel.slots.get(slot)}
        if any(kernel.slots.get(slot, 0) < least for slot, least in kernel.minimum.items()):
            found.add("image-minimum")
        if 0 < kernel.shared_memory >= kernel.slots.get("mem", 0):
            found.add("shared-memory")
    return found
