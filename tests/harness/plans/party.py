"""One session's place in the cluster as ``validate`` sees it: every way is tried."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from spawner.scheduler.model import (
    Agent,
    DeviceRules,
    GroupPolicy,
    KernelRequest,
    Reservation,
    RunningSession,
    SessionRequest,
    Snapshot,
)
from spawner.scheduler.slots import kind_of
from tests.harness.plans.recut import can_cut
from tests.harness.plans.replay import FOREVER, ROOM, Cluster, Kept, amounts, needs

Seats = tuple[str, ...]
"""The agent of each part."""
Able = Callable[[str, int], bool]
"""Whether an agent could run a part of this number."""


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
        self.defects = set() if group is None else defects_of(session, group)

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
        everywhere = self.cluster.circles.get((self.session.owner_id, group.name), Counter())
        members = Counter({a: everywhere[a] for a in self.agents if everywhere[a]})
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
        return len(self.parts) > 1 and not self._holds_all(self._capable)

    def _holds_all(self, able: Able) -> bool:
        """Could these agents, empty, run all of its parts at once?"""
        if any(part != self.parts[0] for part in self.parts):
            return self._any_way(able, empty=True)
        return sum(self._count(a, able, empty=True) for a in self.agents) >= len(self.parts)

    def _any_way(self, able: Able, *, empty: bool = False, until: float = FOREVER) -> bool:
        """Is there any way to seat unequal parts? Every one is tried."""
        for seats in itertools.product(self.agents, repeat=len(self.parts)):
            together: dict[str, Counter[str]] = {}
            for agent_id, part in zip(seats, self.parts, strict=True):
                together.setdefault(agent_id, Counter()).update(part)
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

    def _count(
        self, agent_id: str, able: Able, *, empty: bool = False, until: float = FOREVER
    ) -> int:
        """How many of its equal parts the agent could run at once."""
        count = 0
        while count < len(self.parts):
            need = Counter({slot: n * (count + 1) for slot, n in self.parts[0].items()})
            if empty:
                fits = able(agent_id, 0) and all(
                    n <= self.cluster.total(agent_id, s) for s, n in need.items()
                )
            else:
                fits = able(agent_id, 0) and self.cluster.spare(agent_id, need, until)
            room = self._whole(agent_id) if empty else self.cluster.room(agent_id, until)
            fits = fits and self.cuttable(agent_id, list(self.kernels[0]) * (count + 1), room)
            if not fits:
                break
            count += 1
        return count

    def could_start(self) -> bool:
        """Could the agents that take sessions now, empty, run all of it?"""
        each = all(
            any(self.eligible(a, number) for a in self.agents) for number in range(len(self.parts))
        )
        return each and (len(self.parts) == 1 or self._holds_all(self.eligible))

    def takers(self, until: float) -> list[str]:
        """Agents that could take it now, when they can take all of it."""
        if any(part != self.parts[0] for part in self.parts):
            return self.agents if self._any_way(self.eligible, until=until) else []
        counts = {a: self._count(a, self.eligible, until=until) for a in self.agents}
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

    def would_fit(self, ended: Sequence[RunningSession]) -> bool:
        """Could it start if these sessions had ended? Every way of seating it is tried."""
        return any(True for _ in self._ways(self.agents, ended))

    def has_then(self, reservation: Reservation, ended: Sequence[RunningSession]) -> bool:
        """Are there places for all of it where ``reservation`` keeps them, when these have ended?"""
        kept = dict(zip(reservation.agent_ids, reservation.amounts, strict=True))
        for seats in self._ways(sorted(kept), ended):
            parts: dict[str, list[KernelRequest]] = {}
            for agent_id, kernels in zip(seats, self.kernels, strict=True):
                parts.setdefault(agent_id, []).extend(kernels)
            if {a: needs(each) for a, each in parts.items()} == kept:
                return True
        return False

    def waits_at(
        self, victims: Sequence[RunningSession], ending: Sequence[RunningSession]
    ) -> Seats:
        """Where it waits for ``victims``, which are among all that is ``ending``; nowhere: ``()``.

        The first way of seating it: agents with most containers of victims come first, then the smaller id.
        """
        there = Counter(k.agent_id for victim in victims for k in victim.kernels)
        if not any(there[a] and self._any_part(a) for a in self.agents):
            return ()
        order = sorted(self.agents, key=lambda a: (-there[a], a))
        return next(self._ways(order, ending), ())

    def _any_part(self, agent_id: str) -> bool:
        return any(self.eligible(agent_id, number) for number in range(len(self.parts)))

    def _ways(
        self, order: Sequence[str], ended: Sequence[RunningSession], taken: Seats = ()
    ) -> Iterator[Seats]:
        number = len(taken)
        if number == len(self.parts):
            yield taken
            return
        for agent_id in order:
            before = zip(taken, self.kernels, strict=False)
            here = [k for at, each in before if at == agent_id for k in each]
            if self.eligible(agent_id, number) and self._has_then(
                agent_id, [*here, *self.kernels[number]], ended
            ):
                yield from self._ways(order, ended, (*taken, agent_id))

    def _has_then(
        self, agent_id: str, kernels: Sequence[KernelRequest], ended: Iterable[RunningSession]
    ) -> bool:
        """Has the agent room for all of these when these sessions have ended?"""
        ended = list(ended)
        back = self.cluster.back(agent_id, ended)
        room = Counter(self.cluster.room(agent_id, FOREVER))
        room.update(self.cluster.back_devices(agent_id, ended))
        for slot, n in needs(kernels).items():
            kept = [k.left[slot] for k in self.cluster.kept[agent_id] if slot in k.left]
            if min([self.cluster.has(agent_id, slot), *kept]) + back[slot] < n:
                return False
            here = self.cluster.places(agent_id, slot) if slot != ROOM else []
            if slot != ROOM and sum(room[slot, d] for d in here) < n:
                return False
        return self.cuttable(agent_id, kernels, room)

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


def hold_for_preemptors(cluster: Cluster, snapshot: Snapshot) -> dict[str, dict[str, Counter[str]]]:
    """Keep what victims leave for those that preempted them; what is kept where, by session."""
    places: dict[str, dict[str, Counter[str]]] = {}
    groups = {each.name: each for each in snapshot.groups}
    for session in sorted(snapshot.pending, key=lambda each: each.session_id):
        group = groups.get(session.resource_group)
        ending = ending_for(session, snapshot)
        victims = [each for each in ending if each.claimed_by == session.session_id]
        if not victims or group is None or defects_of(session, group):
            continue
        party = Party(session, cluster, group)
        seats = party.waits_at(victims, ending)
        for agent_id in sorted(set(seats)):
            parts = zip(seats, party.kernels, strict=True)
            need = needs([k for at, each in parts if at == agent_id for k in each])
            left = {slot: max(0, cluster.has(agent_id, slot) - n) for slot, n in need.items()}
            kept = Kept(None, FOREVER, need, left, holder=session.session_id)
            if party.picky(agent_id):
                kept.devices = {}
            cluster.kept[agent_id].append(kept)
            places.setdefault(session.session_id, {})[agent_id] = need
    return places


def ending_for(session: SessionRequest, snapshot: Snapshot) -> list[RunningSession]:
    """Sessions of its group that end already, and not for another one."""
    return [
        each
        for each in snapshot.running
        if each.ending
        and each.claimed_by in (None, session.session_id)
        and each.resource_group == session.resource_group
    ]


def parts_of(session: SessionRequest) -> list[tuple[KernelRequest, ...]]:
    """The kernels that start together on one agent."""
    if session.cluster_mode == "multi-node" and len(session.kernels) > 1:
        return [(kernel,) for kernel in session.kernels]
    return [session.kernels]


def families(kernels: Iterable[KernelRequest]) -> frozenset[str]:
    """Families of accelerators asked for."""
    return frozenset(slot.split(".")[0].split(":")[0] for slot in amounts(kernels)) - {"cpu", "mem"}


def defects_of(session: SessionRequest, group: GroupPolicy) -> set[str]:
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
