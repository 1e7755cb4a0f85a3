"""Which devices a kernel gets: amounts of a slot cut out of one agent's devices.

Each device gives multiples of its slot's quantum (``slots.SlotKind.quantum``): whole devices for
accelerators counted in devices, tenths of a CPU, bytes of memory. What of a device is not a multiple
is unusable, so the sum of usable amounts says exactly what fits: every multiple of the quantum up to
that sum can be cut, in any order of cuts. That is why a plan is always feasible on the agent.
"""

from __future__ import annotations

from collections.abc import Iterable

from spawner.scheduler.model import Device
from spawner.scheduler.slots import kind_of


class DeviceStock:
    """What one device still gives within a pass, in base units; ``rank`` is its place among its peers."""

    __slots__ = ("capacity", "device_id", "free", "rank")

    def __init__(self, device_id: str, rank: int, capacity: int, free: int) -> None:
        self.device_id = device_id
        self.rank = rank
        self.capacity = capacity
        self.free = free


def usable(slot: str, amount: int) -> int:
    """``amount`` rounded down to the quantum of ``slot``; never negative."""
    quantum = kind_of(slot).quantum
    return max(0, amount) // quantum * quantum


def stock_of(devices: Iterable[Device]) -> dict[str, list[DeviceStock]]:
    """Devices by slot, in a fixed order that counts ``2`` before ``10``."""
    ordered = sorted(devices, key=lambda device: (len(device.device_id), device.device_id))
    stock: dict[str, list[DeviceStock]] = {}
    for device in ordered:
        peers = stock.setdefault(device.slot, [])
        capacity = usable(device.slot, device.capacity)
        free = min(capacity, usable(device.slot, device.free))
        peers.append(DeviceStock(device.device_id, len(peers), capacity, free))
    return stock


def take(devices: list[DeviceStock], amount: int) -> list[tuple[str, int]]:
    """Cut ``amount`` out of ``devices`` and say how much of which.

    As few devices as possible: the emptiest first, and the last part from the tightest one that
    holds it, so that large free devices stay whole. ``amount`` is positive, a multiple of the
    quantum and at most what the devices have free; otherwise ``ValueError``, and nothing is taken.
    """
    if amount <= 0 or amount > sum(device.free for device in devices):
        raise ValueError(f"cannot cut {amount} out of {[device.free for device in devices]}")
    cuts: list[tuple[DeviceStock, int]] = []
    roomy = sorted((d for d in devices if d.free), key=lambda d: (-d.free, d.rank))
    for position, device in enumerate(roomy):
        if device.free >= amount:
            rest = (d for d in roomy[position:] if d.free >= amount)
            cuts.append((min(rest, key=lambda d: (d.free, d.rank)), amount))
            break
        cuts.append((device, device.free))
        amount -= device.free
    for device, part in cuts:
        device.free -= part
    return [(device.device_id, part) for device, part in cuts]
