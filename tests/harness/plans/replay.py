"""The cluster as ``validate`` sees it: plain, slow, on its own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from spawner.scheduler.model import (
    DeviceShare,
    KernelRequest,
    Reservation,
    RunningSession,
    SessionRequest,
    Snapshot,
)
from tests.harness.plans.recut import steps_of, usable_of

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
            return agent.max_containers - self.containers[agent_id]
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
