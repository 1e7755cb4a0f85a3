"""Agents during a pass: what is free shrinks as sessions are placed, what is kept for others grows."""

from __future__ import annotations

from spawner.scheduler.devices import DeviceStock, stock_of, take
from spawner.scheduler.model import Agent, DeviceShare, KernelPlacement, KernelRequest

CONTAINERS = "*containers"
"""Containers an agent may still run, counted like a slot (one per kernel); no slot is called so."""

UNLIMITED = 2**62

Need = tuple[tuple[str, int], ...]
"""What a session takes from one node: slots and ``CONTAINERS`` with amounts above zero, sorted."""


class Node:
    """One agent within one pass.

    ``capacity`` and ``free`` hold usable base units per slot (``devices.usable``) and ``CONTAINERS``.
    ``kept`` holds what waiting sessions keep later ones from taking: a later session may take a slot
    only down to this amount. Within a pass ``free`` only falls and ``kept`` only rises, so a need
    that does not fit once never fits again in the same pass.
    """

    __slots__ = ("agent", "capacity", "free", "index", "kept", "stock")

    def __init__(self, agent: Agent, index: int) -> None:
        self.agent = agent
        self.index = index
        self.capacity: dict[str, int] = {CONTAINERS: UNLIMITED}
        self.free: dict[str, int] = {CONTAINERS: UNLIMITED}
        self.kept: dict[str, int] = {}
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

    def fits(self, need: Need) -> bool:
        """True when ``need`` can be taken now without touching what is kept for others."""
        free, kept = self.free, self.kept
        for slot, amount in need:  # noqa: SIM110 - a generator costs three times as much here
            if free.get(slot, 0) - kept.get(slot, 0) < amount:
                return False
        return True

    def fits_empty(self, need: Need) -> bool:
        """True when ``need`` is within what this node has in all."""
        capacity = self.capacity
        for slot, amount in need:  # noqa: SIM110 - as above
            if capacity.get(slot, 0) < amount:
                return False
        return True

    def available(self, slot: str) -> int:
        """What a session looked at now could take of ``slot``."""
        return max(0, self.free.get(slot, 0) - self.kept.get(slot, 0))

    def keep(self, need: Need) -> None:
        """Hold back ``need`` from every session looked at later in this pass."""
        kept = self.kept
        for slot, amount in need:
            if kept.get(slot, 0) < amount:
                kept[slot] = amount

    def place(self, kernel: KernelRequest) -> KernelPlacement:
        """Take devices for ``kernel``, whose amounts fit (``fits`` was asked for the whole session)."""
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
