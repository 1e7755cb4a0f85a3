"""Agents during a pass: what is free shrinks as sessions are placed, what is claimed for others grows."""

from __future__ import annotations

import math
from collections.abc import Iterable

from spawner.scheduler.devices import DeviceStock, stock_of, take
from spawner.scheduler.model import Agent, DeviceShare, KernelPlacement, KernelRequest

CONTAINERS = "*containers"
"""Containers an agent may still run, counted like a slot (one per kernel); no slot is called so."""

UNLIMITED = 2**62
FOREVER = math.inf
"""The end of what nobody knows the end of."""
UNKNOWN = -math.inf
"""The start of a claim of which nobody knows the time: nothing is known to end before."""

Need = tuple[tuple[str, int], ...]
"""What a session takes from one node: slots and ``CONTAINERS`` with amounts above zero, sorted."""


class Claim:
    """What a waiting session will take of one node from ``starts_at`` until ``ends_at`` (seconds).

    ``left`` is what sessions that run beyond ``starts_at`` may still take of each slot that it needs.
    """

    __slots__ = ("ends_at", "left", "need", "session_id", "starts_at")

    def __init__(
        self, session_id: str, need: Need, starts_at: float, ends_at: float, left: dict[str, int]
    ) -> None:
        self.session_id = session_id
        self.need = need
        self.starts_at = starts_at
        self.ends_at = ends_at
        self.left = left

    def spares(self, need: Need) -> bool:
        """True when ``need`` can be taken for good without delaying the claim."""
        left = self.left
        return all(left.get(slot, amount) >= amount for slot, amount in need)


class Node:
    """One agent within one pass.

    ``capacity`` and ``free`` hold usable base units per slot (``devices.usable``) and ``CONTAINERS``.
    ``claims`` are what waiting sessions have reserved here; ``releases`` are (time, need) of all that
    is known to end. Within a pass ``free`` only falls and claims only get more, so what does not fit
    once does not fit again in the same pass, unless it ends sooner.
    """

    __slots__ = ("agent", "capacity", "claims", "free", "index", "releases", "stock", "turn")

    def __init__(self, agent: Agent, index: int) -> None:
        self.agent = agent
        self.index = index
        self.turn = index
        """How many nodes come before it in a round."""
        self.capacity: dict[str, int] = {CONTAINERS: UNLIMITED}
        self.free: dict[str, int] = {CONTAINERS: UNLIMITED}
        self.claims: list[Claim] = []
        self.releases: list[tuple[float, Need]] = []
        self.stock: dict[str, list[DeviceStock]] = stock_of(agent.devices)
        if agent.max_containers is not None:
            self.capacity[CONTAINERS] = agent.max_containers
            self.free[CONTAINERS] = max(0, agent.max_containers - agent.containers)
        for slot, devices in self.stock.items():
            self.capacity[slot] = sum(device.capacity for device in devices)
            self.free[slot] = sum(device.free for device in devices)

    @property
    def agent_id(self) -> str:
        """The agent's id."""
        return self.agent.agent_id

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
        for claim in self.claims:  # noqa: SIM110 - as above
            if ends_at > claim.starts_at and not claim.spares(need):
                return False
        return True

    def fits_empty(self, need: Need) -> bool:
        """True when ``need`` is within what this node has in all."""
        capacity = self.capacity
        for slot, amount in need:  # noqa: SIM110 - as above
            if capacity.get(slot, 0) < amount:
                return False
        return True

    def available(self, slot: str, ends_at: float = FOREVER) -> int:
        """What a session that ends at ``ends_at`` could take of ``slot`` now."""
        left = self.free.get(slot, 0)
        for claim in self.claims:
            if ends_at > claim.starts_at:
                left = min(left, claim.left.get(slot, left))
        return max(0, left)

    def take(
        self, kernels: Iterable[KernelRequest], need: Need, ends_at: float
    ) -> list[KernelPlacement]:
        """Start ``kernels``, which need ``need`` together, until ``ends_at``; ``fits`` was asked."""
        placed = [self._place(kernel) for kernel in kernels]
        for claim in self.claims:
            if ends_at > claim.starts_at:
                for slot, amount in need:
                    if slot in claim.left:
                        claim.left[slot] -= amount
        if ends_at < FOREVER:
            self.releases.append((ends_at, need))
        return placed

    def _place(self, kernel: KernelRequest) -> KernelPlacement:
        shares: list[DeviceShare] = []
        for slot, amount in sorted(kernel.slots.items()):
            if amount > 0:
                shares += [
                    DeviceShare(slot, device_id, part)
                    for device_id, part in take(self.stock[slot], amount)
                ]
                self.free[slot] -= amount
        self.free[CONTAINERS] -= 1
        return KernelPlacement(kernel.kernel_id, self.agent_id, tuple(shares))
