"""What one would write first: first come, first served, as reference for the simulator.

``fifo_stop`` waits at the first session that does not fit, ``fifo_continue`` goes on past it. Both look
at one container on one node, take the fullest node that fits, and keep accelerator nodes for
accelerator work; they know no quotas, reservations, fairness or explanations.
"""

from __future__ import annotations

from collections.abc import Mapping

from spawner.scheduler.model import (
    Agent,
    DeviceShare,
    KernelPlacement,
    Placement,
    Plan,
    SessionRequest,
    Snapshot,
)
from spawner.scheduler.slots import is_accelerator


class Host:
    """What is left of an agent."""

    def __init__(self, agent: Agent) -> None:
        self.agent_id = agent.agent_id
        self.devices: dict[str, dict[str, int]] = {}
        self.free: dict[str, int] = {}
        for device in agent.devices:
            self.devices.setdefault(device.slot, {})[device.device_id] = device.free
            self.free[device.slot] = self.free.get(device.slot, 0) + device.free
        self.special = any(is_accelerator(slot) for slot in self.free)

    def fits(self, slots: Mapping[str, int]) -> bool:
        """Whether the sums are there; devices here are whole or shared by everybody."""
        return all(self.free.get(slot, 0) >= amount for slot, amount in slots.items() if amount)

    def take(self, session: SessionRequest) -> Placement:
        """Take devices in their order."""
        kernel = session.kernels[0]
        shares: list[DeviceShare] = []
        for slot, amount in kernel.slots.items():
            left = amount
            devices = self.devices.get(slot, {})
            for device_id, free in devices.items():
                part = min(left, free)
                if part:
                    devices[device_id] -= part
                    left -= part
                    shares.append(DeviceShare(slot, device_id, part))
            self.free[slot] = self.free.get(slot, 0) - amount
        placed = KernelPlacement(kernel.kernel_id, self.agent_id, tuple(shares))
        return Placement(session.session_id, (placed,))


def fifo_stop(snapshot: Snapshot) -> Plan:
    """First come, first served; the first that does not fit holds up everybody behind it."""
    return _fifo(snapshot, goes_on=False)


def fifo_continue(snapshot: Snapshot) -> Plan:
    """First come, first served; who does not fit is passed over."""
    return _fifo(snapshot, goes_on=True)


def _fifo(snapshot: Snapshot, *, goes_on: bool) -> Plan:
    hosts = [Host(agent) for agent in snapshot.agents]
    placements: list[Placement] = []
    refused: set[tuple[tuple[str, int], ...]] = set()
    line = sorted(snapshot.pending, key=lambda s: (-s.priority, s.submitted_at, s.session_id))
    for session in line:
        wants = session.kernels[0].slots
        shape = tuple(sorted(wants.items()))
        special = any(is_accelerator(slot) and amount for slot, amount in shape)
        fitting = [] if shape in refused else [host for host in hosts if host.fits(wants)]
        if fitting:
            best = min(fitting, key=lambda h: (h.special and not special, h.free["cpu"]))
            placements.append(best.take(session))
        elif goes_on:
            refused.add(shape)
        else:
            break
    return Plan(tuple(placements), ())
