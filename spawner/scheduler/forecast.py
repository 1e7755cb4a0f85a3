"""What a node will have free: sums by slot, and where rules ask for certain devices, each device."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable

from spawner.scheduler.devices import DeviceStock, fewest
from spawner.scheduler.nodes import FOREVER, Need, Node


class Timeline:
    """What one node has free of the slots of ``need``, from each of its ``times`` on for good."""

    __slots__ = ("_least", "times")

    def __init__(self, node: Node, need: Need, now: float) -> None:
        changes: dict[float, Counter[str]] = {now: Counter()}
        wanted = [slot for slot, _ in need]
        for at, gives, _ in node.releases:
            changes.setdefault(max(at, now), Counter()).update(dict(gives))
        for claim in node.claims:
            takes = dict(claim.need)
            changes.setdefault(max(claim.starts_at, now), Counter()).subtract(takes)
            if claim.ends_at < FOREVER:
                changes.setdefault(claim.ends_at, Counter()).update(takes)
        self.times = sorted(changes)
        has = [node.free.get(slot, 0) for slot in wanted]
        rows: list[list[int]] = []
        for at in self.times:
            has = [n + changes[at][slot] for n, slot in zip(has, wanted, strict=True)]
            most = [node.capacity.get(slot, 0) for slot in wanted]
            rows.append([min(n, top) for n, top in zip(has, most, strict=True)])
        for later, row in zip(reversed(rows), list(reversed(rows))[1:], strict=False):
            row[:] = [min(n, then) for n, then in zip(row, later, strict=True)]
        self._least = [dict(zip(wanted, row, strict=True)) for row in rows]

    def at(self, moment: float) -> dict[str, int]:
        """What there is from ``moment`` on for good."""
        index = bisect_left(self.times, moment)
        if index < len(self.times) and self.times[index] == moment:
            return self._least[index]
        return self._least[max(0, index - 1)]

    def first(self, need: Need) -> float:
        """The first moment from which ``need`` is there for good, or ``FOREVER``."""
        for at, has in zip(self.times, self._least, strict=True):
            if all(has[slot] >= amount for slot, amount in need):
                return at
        return FOREVER


class Forecast:
    """The same of each device of some slots.

    Claims that ask for no certain devices are cut as ``fewest`` would then.
    """

    __slots__ = ("_least", "_rows", "_times")

    def __init__(self, node: Node, slots: Iterable[str], now: float) -> None:
        by_slot = {slot: node.stock.get(slot, []) for slot in slots}
        devices = [device for peers in by_slot.values() for device in peers]
        self._times = [now]
        self._rows: list[dict[DeviceStock, int]] = [{d: d.free for d in devices}]
        for at, _, parts in node.releases:
            for device, part in parts:
                if device in self._rows[0]:
                    self._change(device, part, max(at, now), FOREVER)
        for claim in node.claims:
            begin = max(claim.starts_at, now)
            parts = claim.cut or []
            if claim.cut is None:
                room = self._within(begin, claim.ends_at)
                for slot, amount in claim.need:
                    peers = by_slot.get(slot, [])
                    most = min(amount, sum(max(0, room[d]) for d in peers))
                    if most > 0:
                        parts += fewest(peers, {d: max(0, room[d]) for d in peers}, most)
            for device, part in parts:
                if device in self._rows[0]:
                    self._change(device, -part, begin, claim.ends_at)
        least = [dict(row) for row in self._rows]
        for row in least:
            for device in row:
                row[device] = min(row[device], device.capacity)
        for later, row in zip(reversed(least), list(reversed(least))[1:], strict=False):
            for device in row:
                row[device] = min(row[device], later[device])
        self._least = least

    def at(self, moment: float) -> dict[DeviceStock, int]:
        """What there is of each device from ``moment`` on for good; never negative."""
        index = bisect_left(self._times, moment)
        if not (index < len(self._times) and self._times[index] == moment):
            index = max(0, index - 1)
        return {device: max(0, n) for device, n in self._least[index].items()}

    def _cutoff(self, at: float) -> int:
        """The index of the row that begins at ``at``, which is made when there is none."""
        index = bisect_left(self._times, at)
        if index == len(self._times) or self._times[index] != at:
            self._times.insert(index, at)
            self._rows.insert(index, dict(self._rows[max(0, index - 1)]))
        return index

    def _change(self, device: DeviceStock, amount: int, begin: float, end: float) -> None:
        first = self._cutoff(begin)
        last = len(self._rows) if end == FOREVER else self._cutoff(end)
        for row in self._rows[first:last]:
            row[device] += amount

    def _within(self, begin: float, end: float) -> dict[DeviceStock, int]:
        first = self._cutoff(begin)
        last = len(self._rows) if end == FOREVER else max(first + 1, self._cutoff(end))
        rows = self._rows[first:last]
        return {device: min(row[device] for row in rows) for device in rows[0]}
