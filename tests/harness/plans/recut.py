"""Devices as ``validate`` sees them: every way of cutting is tried, one after another."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

from spawner.scheduler.model import Device, DeviceRules, KernelRequest
from spawner.scheduler.slots import SlotType, kind_of


class Cluster(Protocol):
    """What is asked of the replayed cluster."""

    steps: dict[str, dict[str, int]]
    capacity: dict[tuple[str, str, str], int]
    numa: dict[tuple[str, str, str], int | None]

    def places(self, agent_id: str, slot: str) -> list[str]:
        """Devices of a slot that are given out."""


def steps_of(devices: Iterable[Device]) -> dict[str, int]:
    """In which steps an agent cuts each slot."""
    found: dict[str, int] = {}
    for device in devices:
        both = (found.get(device.slot, kind_of(device.slot).quantum), device.quantum or 1)
        found[device.slot] = math.lcm(*both)
    return found


def usable_of(device: Device, step: int) -> tuple[int, int]:
    """What can be given of a device in all, and now."""
    capacity = max(0, device.capacity - device.reserved) // step * step
    if kind_of(device.slot).type is SlotType.UNIQUE:
        whole = min(capacity, step)
        return whole, whole if device.free >= device.capacity else 0
    return capacity, min(capacity, max(0, device.free - device.reserved) // step * step)


def can_cut(
    cluster: Cluster,
    agent_id: str,
    kernels: Sequence[KernelRequest],
    room: Mapping[tuple[str, str], int],
    rules: DeviceRules,
) -> bool:
    """Try every NUMA node for every kernel, and every choice of devices for shares that must be whole."""
    steps = cluster.steps[agent_id]
    for kernel in kernels:
        if any(n and n % steps.get(slot, 1) for slot, n in kernel.slots.items()):
            return False
    if not rules.unfragmented and rules.numa != "require":
        return True
    wants = [sorted((s, n) for s, n in kernel.slots.items() if n) for kernel in kernels]
    homes: set[int | None] = {
        cluster.numa[agent_id, s, d]
        for want in wants
        for s, _ in want
        for d in cluster.places(agent_id, s)
    } - {None}
    choices: list[int | None] = [*sorted(h for h in homes if h is not None)] or [None]
    if rules.numa != "require":
        choices = [None]
    slots = sorted({s for want in wants for s, _ in want})
    return any(
        all(
            _slot_cuts(
                cluster,
                agent_id,
                slot,
                [(dict(w).get(slot, 0), h) for w, h in zip(wants, chosen, strict=True)],
                {d: room.get((slot, d), 0) for d in cluster.places(agent_id, slot)},
                rules,
            )
            for slot in slots
        )
        for chosen in itertools.product(choices, repeat=len(kernels))
    )


def _slot_cuts(
    cluster: Cluster,
    agent_id: str,
    slot: str,
    wants: list[tuple[int, int | None]],
    room: dict[str, int],
    rules: DeviceRules,
) -> bool:
    wants = [want for want in wants if want[0]]
    if not wants:
        return True
    step = cluster.steps[agent_id][slot]
    sizes = {d: cluster.capacity[agent_id, slot, d] for d in room}
    divisible = (
        slot not in ("cpu", "mem") and len(room) > 1 and any(n > step for n in sizes.values())
    )

    def near(device: str, home: int | None) -> bool:
        there = cluster.numa[agent_id, slot, device]
        return home is None or there is None or there == home

    if not (rules.unfragmented and divisible):
        homes = {home for _, home in wants}
        for count in range(1, len(homes) + 1):
            for some in itertools.combinations(sorted(homes, key=str), count):
                asked = sum(n for n, home in wants if home in some)
                if asked > sum(n for d, n in room.items() if any(near(d, h) for h in some)):
                    return False
        return True
    amount, home = wants[0]
    for count in range(1, len(room) + 1):
        share, more = divmod(amount // step, count)
        parts = [(share + 1) * step] * more + [share * step] * (count - more)
        possible = sorted(sizes.values(), reverse=True)[:count]
        if share and all(p <= n for p, n in zip(parts, possible, strict=True)):
            break
    else:
        return False
    for devices in itertools.permutations(room, count):
        if all(room[d] >= p and near(d, home) for d, p in zip(devices, parts, strict=True)):
            left = dict(room)
            for d, p in zip(devices, parts, strict=True):
                left[d] -= p
            if _slot_cuts(cluster, agent_id, slot, wants[1:], left, rules):
                return True
    return False
