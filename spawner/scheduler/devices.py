"""An agent's devices as a pass counts them: what is usable of each, and plain cuts out of several.

Each device gives multiples of a quantum (``slots.SlotKind.quantum``, or a coarser one that its agent
names): whole devices for accelerators counted in devices, tenths of a CPU, bytes of memory. What of a
device is not a multiple is unusable, what is reserved is the host's, a masked device is not there, and a
unique one is given as a whole. All devices of a slot on one agent are cut in the same steps, so the sum
of usable amounts says what fits: every multiple of the quantum up to that sum can be cut, in any order
of cuts. That is why a plan is always feasible on the agent. Rules that need more: ``cutting.py``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from spawner.scheduler.model import Device
from spawner.scheduler.slots import MICRO, SlotKind, SlotType, kind_of

NO_LINKS: frozenset[str] = frozenset()


class DeviceStock:
    """What one device still gives within a pass, in base units; ``rank`` is its place among its peers."""

    __slots__ = ("capacity", "debt", "device_id", "free", "links", "numa", "quantum", "rank")

    def __init__(
        self, device_id: str, rank: int, capacity: int, free: int, quantum: int = 1
    ) -> None:
        self.device_id = device_id
        self.rank = rank
        self.capacity = capacity
        self.free = free
        self.quantum = quantum
        self.numa: int | None = None
        self.links = NO_LINKS
        self.debt = 0
        """What is held of it beyond what may be: it must come back before anything is free."""


Parts = list[tuple[DeviceStock, int]]


def usable(slot: str, amount: int, quantum: int | None = None) -> int:
    """``amount`` rounded down to the quantum of ``slot``; never negative."""
    step = quantum or kind_of(slot).quantum
    return amount - amount % step if amount > 0 else 0


def by_slot(devices: Sequence[Device]) -> tuple[dict[str, list[Device]], dict[str, int]]:
    """Devices that are given out, by slot, and the steps of the slots for which any device names one."""
    peers: dict[str, list[Device]] = {}
    steps: dict[str, int] = {}
    for device in devices:
        slot = device.slot
        if device.quantum:
            least = steps.get(slot) or kind_of(slot).quantum
            steps[slot] = math.lcm(least, device.quantum)
        if device.masked:
            continue
        some = peers.get(slot)
        if some is None:
            peers[slot] = [device]
        else:
            some.append(device)
    return peers, steps


def amount_of(device: Device, kind: SlotKind, step: int) -> tuple[int, int]:
    """What is usable of ``device``, which is cut in ``step``: in all, and now."""
    reserved, left = device.reserved, device.free
    given = device.capacity - reserved
    capacity = free = given - given % step if given > 0 else 0
    if left != device.capacity:
        free = min(capacity, usable(device.slot, left - reserved, step))
    if kind.type is SlotType.UNIQUE:
        capacity = min(capacity, MICRO)
        free = capacity if left >= device.capacity else 0
    return capacity, free


def slot_stock(peers: Sequence[Device], step: int | None = None) -> list[DeviceStock]:
    """Devices of one slot, which is cut in ``step`` (None: as its kind says), ``2`` before ``10``."""
    kind = kind_of(peers[0].slot)
    step = step or kind.quantum
    if len(peers) > 1:
        peers = sorted(peers, key=lambda device: (len(device.device_id), device.device_id))
    stock: list[DeviceStock] = []
    for rank, device in enumerate(peers):
        capacity, free = amount_of(device, kind, step)
        one = DeviceStock(device.device_id, rank, capacity, free, step)
        stock.append(one)
        if device.numa_node is not None:
            one.numa = home_of(device)
        if device.links:
            one.links = device.links
        if device.free < device.reserved:
            one.debt = device.reserved - device.free
    return stock


def home_of(device: Device) -> int | None:
    """The NUMA node of ``device``; agents say -1 where it has none."""
    home = device.numa_node
    return None if home is None or home < 0 else home


def take(devices: Sequence[DeviceStock], amount: int) -> list[tuple[str, int]]:
    """Cut ``amount`` out of ``devices`` and say how much of which: as few devices as possible.

    ``amount`` is positive, a multiple of the quantum and at most what the devices have free; otherwise
    ``ValueError``, and nothing is taken.
    """
    best: DeviceStock | None = None
    for device in devices:
        if device.links:
            break
        free = device.free
        if free >= amount and (best is None or free < best.free):
            best = device
    else:
        if (
            best is not None and amount > 0
        ):  # one holds it: the tightest, as ``fewest`` would choose
            best.free -= amount
            return [(best.device_id, amount)]
    cuts = fewest(devices, {device: device.free for device in devices}, amount)
    for device, part in cuts:
        device.free -= part
    return [(device.device_id, part) for device, part in cuts]


def fewest(devices: Sequence[DeviceStock], room: Mapping[DeviceStock, int], amount: int) -> Parts:
    """The fewest devices: the emptiest first, and the last part from the tightest one that holds it,
    so that large free devices stay whole. Of whole devices those that are linked with each other.
    """
    if amount <= 0 or amount > sum(room.get(device, 0) for device in devices):
        raise ValueError(f"cannot cut {amount} out of {[room.get(d, 0) for d in devices]}")
    roomy = [device for device in devices if room.get(device, 0)]
    if any(d.links for d in roomy) and all(room[d] == d.quantum for d in roomy):
        chosen = linked(roomy, amount // roomy[0].quantum)
        return [(device, device.quantum) for device in chosen]
    roomy.sort(key=lambda d: (-room[d], d.rank))
    cuts: Parts = []
    for position, device in enumerate(roomy):
        if room[device] >= amount:
            rest = (d for d in roomy[position:] if room[d] >= amount)
            cuts.append((min(rest, key=lambda d: (room[d], d.rank)), amount))
            break
        cuts.append((device, room[device]))
        amount -= room[device]
    return cuts


def level(devices: Sequence[DeviceStock], room: Mapping[DeviceStock, int], amount: int) -> Parts:
    """As many devices as have something, in shares as equal as what they have allows."""
    if amount <= 0 or amount > sum(room.get(device, 0) for device in devices):
        raise ValueError(f"cannot cut {amount} out of {[room.get(d, 0) for d in devices]}")
    roomy = sorted((d for d in devices if room.get(d, 0)), key=lambda d: (room[d], -d.rank))
    cuts: Parts = []
    for position, device in enumerate(roomy):
        fair = amount // device.quantum // (len(roomy) - position) * device.quantum
        part = min(room[device], fair)
        if part:
            cuts.append((device, part))
            amount -= part
    return sorted(cuts, key=lambda cut: cut[0].rank)


def linked(devices: Sequence[DeviceStock], count: int) -> list[DeviceStock]:
    """``count`` of ``devices`` with the most links among each other; of equal ones the first.

    A single one is that with the fewest links to others that are free, so that linked ones stay together.
    """
    names = {device.device_id for device in devices}
    degree = {device: len(device.links & names) for device in devices}
    if not any(degree.values()):
        return list(devices[:count])
    if count == 1:
        return [min(devices, key=lambda d: degree[d])]
    best: tuple[int, list[DeviceStock]] = (-1, [])
    for seed in devices:
        chosen = [seed]
        score = 0
        while len(chosen) < count:
            mine = {device.device_id for device in chosen}
            rest = [device for device in devices if device not in chosen]
            nearest = max(rest, key=lambda d: len(d.links & mine))
            score += len(nearest.links & mine)
            chosen.append(nearest)
        if score > best[0]:
            best = (score, chosen)
    return best[1]
