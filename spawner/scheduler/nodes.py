"""Agents during a pass: what is free shrinks as sessions are placed, what is claimed for others grows."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from spawner.scheduler.cutting import Cut, cut, is_picky
from spawner.scheduler.devices import (
    DeviceStock,
    Parts,
    amount_of,
    by_slot,
    home_of,
    slot_stock,
    take,
)
from spawner.scheduler.model import (
    Agent,
    DeviceRules,
    DeviceShare,
    KernelPlacement,
    KernelRequest,
)
from spawner.scheduler.slots import kind_of

if TYPE_CHECKING:
    from spawner.scheduler.shapes import Shape

CONTAINERS = "*containers"
"""Containers an agent may still run, counted like a slot (one per kernel); no slot is called so."""

UNLIMITED = 2**62
FOREVER = math.inf
"""The end of what nobody knows the end of."""
UNKNOWN = -math.inf
"""The start of a claim of which nobody knows the time: nothing is known to end before."""

Need = tuple[tuple[str, int], ...]
"""What a session takes from one node: slots and ``CONTAINERS`` with amounts above zero, sorted."""

PLAIN = DeviceRules()
"""No rules but the amounts; shapes without rules have this very object."""
Release = tuple[float, Need, Parts]
"""When something is known to end, and what it gives back: in all, and of which device."""


class Claim:
    """What a waiting session will take of one node from ``starts_at`` until ``ends_at`` (seconds).

    ``left`` is what sessions that run beyond ``starts_at`` may still take of each slot that it needs.
    Where its rules ask for certain devices (``cut``), ``kept`` says the same of each of those.
    """

    __slots__ = ("cut", "ends_at", "kept", "left", "need", "session_id", "starts_at")

    def __init__(
        self, session_id: str, need: Need, starts_at: float, ends_at: float, left: dict[str, int]
    ) -> None:
        self.session_id = session_id
        self.need = need
        self.starts_at = starts_at
        self.ends_at = ends_at
        self.left = left
        self.cut: Parts | None = None
        self.kept: dict[DeviceStock, int] = {}

    def spares(self, need: Need) -> bool:
        """True when ``need`` can be taken for good without delaying the claim, as far as sums tell."""
        left = self.left
        return all(left.get(slot, amount) >= amount for slot, amount in need)


class Node:
    """One agent within one pass.

    ``capacity`` and ``free`` hold usable base units per slot (``devices.usable``) and ``CONTAINERS``.
    ``claims`` are what waiting sessions have reserved here; ``releases`` are what is known to end. Within
    a pass what is free only falls, of each device, and claims only get more, so what does not fit once
    does not fit again in the same pass, unless it ends sooner.
    """

    __slots__ = (
        "_by_id",
        "_peers",
        "_picky",
        "_stock",
        "_suits",
        "agent",
        "agent_id",
        "capacity",
        "claims",
        "coarse",
        "divided",
        "free",
        "guarded",
        "index",
        "releases",
        "turn",
        "version",
    )

    def __init__(self, agent: Agent, index: int) -> None:
        self.agent = agent
        self.agent_id = agent.agent_id
        self.index = index
        self.turn = index
        """How many nodes come before it in a round."""
        self.capacity: dict[str, int] = {CONTAINERS: UNLIMITED}
        self.free: dict[str, int] = {CONTAINERS: UNLIMITED}
        self.claims: list[Claim] = []
        self.guarded = False
        """Whether any claim asks for certain devices."""
        self.releases: list[Release] = []
        self.coarse: dict[str, int] = {}
        """Slots that this agent cuts in larger steps than others do, with the step."""
        self.version = 0
        self._stock: dict[str, list[DeviceStock]] = {}
        self._by_id: dict[tuple[str, str], DeviceStock] | None = None
        self._picky: dict[Shape, bool] = {}
        self._suits: dict[tuple[Shape, DeviceRules], tuple[int, float, bool]] = {}
        if agent.max_containers is not None:
            self.capacity[CONTAINERS] = agent.max_containers
            self.free[CONTAINERS] = agent.max_containers - agent.containers  # may be overdrawn
        self.divided = False
        """Whether sums do not say all: a slot has NUMA nodes, or devices that can be cut."""
        self._count()

    def _count(self) -> None:
        """Add up what the devices give of each slot."""
        capacity, free = self.capacity, self.free
        peers, steps = by_slot(self.agent.devices)
        for slot, devices in peers.items():
            kind = kind_of(slot)
            step = kind.quantum
            if steps and steps.get(slot, step) != step:
                step = self.coarse[slot] = steps[slot]
            most = has = left = 0
            for device in devices:
                mine, now = amount_of(device, kind, step)
                has += mine
                left += now
                most = mine if mine > most else most
                if device.numa_node is not None and home_of(device) is not None:
                    self.divided = True
            capacity[slot], free[slot] = has, left
            if most > step and len(devices) > 1:
                self.divided = True
        self._peers = peers

    @property
    def stock(self) -> dict[str, list[DeviceStock]]:
        """All devices by slot. Most nodes do without: see ``_place``."""
        if len(self._stock) < len(self._peers):
            self._stock = {slot: self._devices(slot) for slot in self._peers}
        return self._stock

    def _devices(self, slot: str) -> list[DeviceStock]:
        devices = self._stock.get(slot)
        if devices is None:
            devices = self._stock[slot] = slot_stock(self._peers[slot], self.coarse.get(slot))
            if len(devices) == 1:
                devices[0].free = self.free[slot]
        return devices

    @property
    def layout(self) -> object:
        """What nodes of equal capacity must have in common to serve the same requests when empty."""
        if not self.divided:
            return ((), tuple(sorted(self.coarse.items()))) if self.coarse else ((), ())
        parts = [
            (slot, tuple(sorted((d.capacity, -1 if d.numa is None else d.numa) for d in devices)))
            for slot, devices in self.stock.items()
            if any(d.numa is not None for d in devices)
            or (len(devices) > 1 and any(d.capacity > d.quantum for d in devices))
        ]
        return (tuple(sorted(parts)), tuple(sorted(self.coarse.items())))

    def has(self, need: Need) -> bool:
        """True when ``need`` is free now, whoever may have a claim to it."""
        free = self.free
        for slot, amount in need:  # noqa: SIM110 - a generator costs three times as much here
            if free.get(slot, 0) < amount:
                return False
        return True

    def fits(self, need: Need, ends_at: float = FOREVER) -> bool:
        """True when ``need`` can be taken now until ``ends_at`` without delaying any claim."""
        free = self.free
        for slot, amount in need:
            if free.get(slot, 0) < amount:
                return False
        for claim in self.claims:
            if ends_at > claim.starts_at and not claim.spares(need):
                return False
        return not self.guarded or self._spares_devices(need, ends_at)

    def _spares_devices(self, need: Need, ends_at: float) -> bool:
        room = self.room((slot for slot, _ in need), ends_at)
        return all(
            sum(room[device] for device in self.stock[slot]) >= amount
            for slot, amount in need
            if slot in self.stock
        )

    def fits_empty(self, need: Need) -> bool:
        """True when ``need`` is within what this node has in all."""
        capacity = self.capacity
        for slot, amount in need:  # noqa: SIM110 - as above
            if capacity.get(slot, 0) < amount:
                return False
        return True

    def steps_suit(self, shape: Shape) -> bool:
        """True when this agent can cut such amounts: they are multiples of its quanta."""
        coarse = self.coarse
        return not coarse or all(
            amount % coarse.get(slot, 1) == 0 for kernel in shape.kernels for slot, amount in kernel
        )

    def is_picky(self, shape: Shape) -> bool:
        """True when sums do not say whether the devices of this node suit ``shape``."""
        if shape.plain:
            return False
        found = self._picky.get(shape)
        if found is None:
            found = self._picky[shape] = is_picky(self.stock, shape.wanted, shape.rules)
        return found

    def suits(
        self, shape: Shape, ends_at: float = FOREVER, rules: DeviceRules | None = None
    ) -> bool:
        """True when devices can be cut for ``shape`` by its rules (or by ``rules``); sums were asked."""
        if rules is None:
            if not self.is_picky(shape):
                return True
            rules = shape.rules
        known = self._suits.get((shape, rules))
        if known is not None and known[:2] == (self.version, ends_at):
            return known[2]
        room = self.room(shape.wanted, ends_at)
        answer = cut(self.stock, shape.kernels, rules, room) is not None
        self._suits[shape, rules] = (self.version, ends_at, answer)
        return answer

    def suits_all(self, shapes: Sequence[Shape], ends_at: float = FOREVER) -> bool:
        """The same of several shapes together."""
        picky = [shape for shape in shapes if self.is_picky(shape)]
        if not picky:
            return True
        kernels = [kernel for shape in shapes for kernel in shape.kernels]
        room = self.room(dict.fromkeys(s for shape in shapes for s in shape.wanted), ends_at)
        return cut(self.stock, kernels, picky[0].rules, room) is not None

    def suits_empty(self, shape: Shape, rules: DeviceRules | None = None) -> bool:
        """True when the devices, all of them free, can be cut for ``shape`` by its rules (or ``rules``)."""
        if not self.is_picky(shape):
            return True
        room = self.whole(shape.wanted)
        return cut(self.stock, shape.kernels, rules or shape.rules, room) is not None

    def suits_whole(self, shapes: Sequence[Shape]) -> bool:
        """True when all devices, free or not, can be cut for ``shapes`` together."""
        picky = [shape for shape in shapes if self.is_picky(shape)]
        if not picky:
            return True
        kernels = [kernel for shape in shapes for kernel in shape.kernels]
        room = self.whole(dict.fromkeys(s for shape in shapes for s in shape.wanted))
        return cut(self.stock, kernels, picky[0].rules, room) is not None

    def suits_now(self, shape: Shape, rules: DeviceRules) -> bool:
        """True when what is free now, whoever may have a claim to it, can be cut by ``rules``."""
        room = {d: d.free for slot in shape.wanted for d in self.stock.get(slot, ())}
        return cut(self.stock, shape.kernels, rules, room) is not None

    def whole(self, slots: Iterable[str]) -> dict[DeviceStock, int]:
        """What each device of ``slots`` has in all."""
        return {d: d.capacity for slot in slots for d in self.stock.get(slot, ())}

    def room(self, slots: Iterable[str], ends_at: float = FOREVER) -> dict[DeviceStock, int]:
        """What a session that ends at ``ends_at`` could take of each device of ``slots``."""
        found = {d: d.free for slot in slots for d in self.stock.get(slot, ())}
        if self.guarded:
            for claim in self.claims:
                if ends_at > claim.starts_at:
                    for device, left in claim.kept.items():
                        if found.get(device, 0) > left:
                            found[device] = left
        return found

    def available(self, slot: str, ends_at: float = FOREVER) -> int:
        """What a session that ends at ``ends_at`` could take of ``slot`` now."""
        return max(0, self.left(slot, ends_at))

    def left(self, slot: str, ends_at: float = FOREVER) -> int:
        """The same; below zero where more containers run than may."""
        left = self.free.get(slot, 0)
        for claim in self.claims:
            if ends_at > claim.starts_at:
                left = min(left, claim.left.get(slot, left))
        if self.guarded and slot in self.stock:
            left = min(left, sum(self.room((slot,), ends_at).values()))
        return left

    def device(self, slot: str, device_id: str) -> DeviceStock | None:
        """One device that is given out, or None."""
        if self._by_id is None:
            self._by_id = {
                (name, each.device_id): each for name, peers in self.stock.items() for each in peers
            }
        return self._by_id.get((slot, device_id))

    def gives(
        self, kernels: Iterable[KernelPlacement], debts: dict[DeviceStock, int] | None = None
    ) -> tuple[Need, Parts]:
        """What gets free here when ``kernels`` end: in all, and of which device.

        What is held beyond what may be is paid first; ``debts`` notes how much of that is still open.
        """
        total: dict[str, int] = {CONTAINERS: 0}
        parts: Parts = []
        for kernel in kernels:
            if kernel.agent_id != self.agent_id:
                continue
            total[CONTAINERS] += 1
            for share in kernel.shares:
                device = self.device(share.slot, share.device_id)
                if device is None:
                    continue
                owed = device.debt if debts is None else debts.get(device, device.debt)
                if debts is not None:
                    debts[device] = max(0, owed - share.amount)
                amount = max(0, share.amount - owed) // device.quantum * device.quantum
                total[share.slot] = total.get(share.slot, 0) + amount
                if amount:
                    parts.append((device, amount))
        return tuple(sorted(total.items())), parts

    def take(
        self,
        kernels: Sequence[KernelRequest],
        need: Need,
        ends_at: float,
        rules: DeviceRules = PLAIN,
    ) -> list[KernelPlacement]:
        """Start ``kernels``, which need ``need`` together, until ``ends_at``; ``fits`` was asked."""
        self.version += 1
        if rules is PLAIN and not self.guarded:
            if len(kernels) == 1:
                placed = [self._place(kernels[0], need[1:])]  # the first are the containers
            else:
                placed = [
                    self._place(k, [s for s in sorted(k.slots.items()) if s[1]]) for k in kernels
                ]
        else:
            placed = self._place_by(rules, kernels, need, ends_at)
        for claim in self.claims:
            if ends_at > claim.starts_at:
                for slot, amount in need:
                    if slot in claim.left:
                        claim.left[slot] -= amount
                if claim.kept:
                    for device, part in self._parts(placed):
                        if device in claim.kept:
                            claim.kept[device] -= part
        if ends_at < FOREVER:
            self.releases.append((ends_at, need, self._parts(placed)))
        return placed

    def _parts(self, placed: Iterable[KernelPlacement]) -> Parts:
        parts: Parts = []
        for kernel in placed:
            for share in kernel.shares:
                device = self.device(share.slot, share.device_id)
                if device is not None:
                    parts.append((device, share.amount))
        return parts

    def _place(self, kernel: KernelRequest, amounts: Iterable[tuple[str, int]]) -> KernelPlacement:
        """Cut ``amounts`` (of ``kernel``, above zero, by slot name) by no rules."""
        shares: list[DeviceShare] = []
        free = self.free
        for slot, amount in amounts:
            peers = self._peers[slot]
            if len(peers) == 1 and slot not in self._stock and amount <= free[slot]:
                shares.append(DeviceShare(slot, peers[0].device_id, amount))  # its only device
            else:
                for device_id, part in take(self._devices(slot), amount):
                    shares.append(DeviceShare(slot, device_id, part))
            free[slot] -= amount
        free[CONTAINERS] -= 1
        return KernelPlacement(kernel.kernel_id, self.agent_id, tuple(shares))

    def _place_by(
        self, rules: DeviceRules, kernels: Sequence[KernelRequest], need: Need, ends_at: float
    ) -> list[KernelPlacement]:
        """The same by rules, or beside claims to certain devices."""
        amounts = [
            tuple(sorted((slot, n) for slot, n in kernel.slots.items() if n)) for kernel in kernels
        ]
        room = self.room((slot for slot, _ in need), ends_at)
        cuts = cut(self.stock, amounts, rules, room)
        if cuts is None:
            raise ValueError(f"{self.agent_id} cannot give {dict(need)}")
        placed: list[KernelPlacement] = []
        for kernel, mine in zip(kernels, cuts, strict=True):
            shares: list[DeviceShare] = []
            for slot in sorted(mine):
                for device, part in mine[slot]:
                    device.free -= part
                    self.free[slot] -= part
                    shares.append(DeviceShare(slot, device.device_id, part))
            self.free[CONTAINERS] -= 1
            placed.append(KernelPlacement(kernel.kernel_id, self.agent_id, tuple(shares)))
        return placed

    def lay(
        self, claim: Claim, room: Mapping[DeviceStock, int], cuts: Sequence[Cut] | None
    ) -> None:
        """Lay ``claim``; with ``cuts`` it is to these devices, of which there will be ``room``."""
        self.version += 1
        self.claims.append(claim)
        if cuts is None:
            return
        self.guarded = True
        claim.cut = [each for mine in cuts for parts in mine.values() for each in parts]
        claim.kept = dict(room)
        for device, part in claim.cut:
            claim.kept[device] -= part
        claim.kept = {device: max(0, left) for device, left in claim.kept.items()}
        for slot in [slot for slot in claim.left if slot in self.stock]:
            del claim.left[slot]

    def release(self, session_id: str) -> None:
        """Drop the claims of ``session_id``."""
        self.version += 1
        self.claims[:] = [each for each in self.claims if each.session_id != session_id]
        self.guarded = any(each.cut is not None for each in self.claims)
