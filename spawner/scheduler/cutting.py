"""Which devices kernels get: amounts cut out of the devices of one agent, by the rules of the request.

Without rules every multiple of the quantum up to the sum can be cut, so the sum says exactly what fits.
Two rules break that: shares of accelerators that may not be scattered (``unfragmented``) and one NUMA
node for all devices of a kernel (``require``). For those a cut is sought device by device. One kernel
is decided exactly; several on one agent are tried in every way, ``ATTEMPTS`` at most.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence

from spawner.scheduler.devices import DeviceStock, fewest, level, linked
from spawner.scheduler.model import DeviceRules
from spawner.scheduler.slots import is_accelerator

ATTEMPTS = 2000
"""How many ways of cutting several kernels out of one agent are tried."""

Amounts = tuple[tuple[str, int], ...]
Stock = Mapping[str, Sequence[DeviceStock]]
Room = Mapping[DeviceStock, int]
Cut = dict[str, list[tuple[DeviceStock, int]]]
"""For one kernel: by slot, how much of which device."""


def portions(amount: int, capacities: Sequence[int], quantum: int) -> tuple[int, int, int] | None:
    """The fewest devices that hold ``amount`` in equal shares: their number, the share, and how many
    of them give one quantum more because it cannot be divided evenly; None when none do.
    """
    largest_first = sorted(capacities, reverse=True)
    for count in range(1, len(largest_first) + 1):
        share = amount // quantum // count * quantum
        more = (amount - share * count) // quantum
        if not share:
            return None
        if largest_first[count - 1] >= share and (
            not more or largest_first[more - 1] >= share + quantum
        ):
            return count, share, more
    return None


def is_picky(stock: Stock, wanted: Sequence[str], rules: DeviceRules) -> bool:
    """True when the sums of what is free do not say whether ``rules`` can be kept on these devices."""
    if rules.unfragmented and any(_divisible(stock, slot) for slot in wanted):
        return True
    return rules.numa == "require" and len(homes(stock, wanted)) > 1


def homes(stock: Stock, wanted: Sequence[str]) -> list[int]:
    """NUMA nodes of the devices of ``wanted``; devices without one are near to all."""
    found = {d.numa for slot in wanted for d in stock.get(slot, ()) if d.numa is not None}
    return sorted(found)


def _divisible(stock: Stock, slot: str) -> bool:
    peers = stock.get(slot, ())
    return is_accelerator(slot) and len(peers) > 1 and any(d.capacity > d.quantum for d in peers)


def cut(
    stock: Stock,
    kernels: Sequence[Amounts],
    rules: DeviceRules,
    room: Room,
    have: Room | None = None,
) -> list[Cut] | None:
    """A cut for each of ``kernels`` within ``room``, or None. Takes nothing.

    With ``have``, what is free now of ``room``, the devices that lack least are chosen.
    """
    return _Cutter(stock, rules, room, have).all(kernels)


class _Cutter:
    """One search."""

    def __init__(self, stock: Stock, rules: DeviceRules, room: Room, have: Room | None) -> None:
        self._stock = stock
        self._rules = rules
        self._room = dict(room)
        self._have = None if have is None else dict(have)
        self._attempts = ATTEMPTS

    def all(self, kernels: Sequence[Amounts]) -> list[Cut] | None:
        in_turn = sorted(range(len(kernels)), key=lambda n: _weight(kernels[n]), reverse=True)
        found: dict[int, Cut] = {}

        def place(position: int) -> bool:
            if position == len(in_turn):
                return True
            number = in_turn[position]
            for option in self._options(kernels[number]):
                self._move(option, -1)
                found[number] = option
                if place(position + 1):
                    return True
                self._move(option, 1)
                self._attempts -= 1
                if self._attempts <= 0:
                    return False
            return False

        return [found[number] for number in range(len(kernels))] if place(0) else None

    def _move(self, option: Cut, sign: int) -> None:
        for parts in option.values():
            for device, part in parts:
                self._room[device] += sign * part
                if self._have is not None:
                    self._have[device] += sign * part

    def _options(self, kernel: Amounts) -> Iterator[Cut]:
        """Ways of cutting one kernel, the best first; without choices that matter only one."""
        for home in self._homes(kernel):
            by_slot = [list(self._slot_options(slot, n, home)) for slot, n in kernel]
            for choice in itertools.product(*by_slot):
                yield {slot: parts for (slot, _), parts in zip(kernel, choice, strict=True)}

    def _homes(self, kernel: Amounts) -> list[int | None]:
        """NUMA nodes in the order in which they are tried, the fullest first; None: all of them."""
        rules = self._rules
        if rules.numa == "none":
            return [None]
        wanted = [slot for slot, _ in kernel]
        there = homes(self._stock, wanted)
        if len(there) < 2:
            return [None]

        def rank(home: int) -> tuple[float, int, int]:
            lack = 0.0
            free = 0
            for slot, amount in kernel:
                near = [d for d in self._stock.get(slot, ()) if d.numa in (home, None)]
                has = sum(max(0, self._now(d)) for d in near)
                lack += max(0, amount - has) / amount
                free += sum(max(0, self._now(d)) // d.quantum for d in near if d.numa == home)
            return lack, free, home

        found: list[int | None] = [*sorted(there, key=rank)]
        return found if rules.numa == "require" else [*found, None]

    def _now(self, device: DeviceStock) -> int:
        return (self._room if self._have is None else self._have).get(device, 0)

    def _slot_options(
        self, slot: str, amount: int, home: int | None
    ) -> Iterator[list[tuple[DeviceStock, int]]]:
        every = self._stock.get(slot, ())
        peers = [d for d in every if home is None or d.numa in (home, None)]
        if sum(self._room.get(d, 0) for d in peers) < amount:
            return
        if self._rules.unfragmented and _divisible(self._stock, slot):
            yield from self._equal_shares(peers, amount, [d.capacity for d in every])
            return
        specific = [d for d in peers if d.numa == home] if home is not None else peers
        rest = [d for d in peers if d not in specific]
        parts: list[tuple[DeviceStock, int]] = []
        for some in (specific, rest):
            left = amount - sum(part for _, part in parts)
            some_room = sum(self._room.get(d, 0) for d in some)
            if left and some_room:
                parts += self._plain(some, min(left, some_room))
        yield parts

    def _plain(self, peers: list[DeviceStock], amount: int) -> list[tuple[DeviceStock, int]]:
        """Any multiple of the quantum up to the sum."""
        how = level if self._rules.fill == "evenly" else fewest
        if self._have is None:
            return how(peers, self._room, amount)
        have = {d: min(max(0, self._have.get(d, 0)), self._room.get(d, 0)) for d in peers}
        now = min(amount, sum(have.values()))
        given = dict(how(peers, have, now)) if now else {}
        if amount > now:
            left = {d: self._room.get(d, 0) - given.get(d, 0) for d in peers}
            for device, part in how(peers, left, amount - now):
                given[device] = given.get(device, 0) + part
        return list(given.items())

    def _equal_shares(
        self, peers: list[DeviceStock], amount: int, capacities: list[int]
    ) -> Iterator[list[tuple[DeviceStock, int]]]:
        quantum = peers[0].quantum
        found = portions(amount, capacities, quantum)
        if found is None:
            return
        count, share, more = found
        room = self._room
        fit = [d for d in peers if room.get(d, 0) >= share]
        large = [d for d in fit if room.get(d, 0) >= share + quantum]
        if len(fit) < count or len(large) < more:
            return
        roomy_last = self._rules.fill != "evenly"

        def rank(device: DeviceStock) -> tuple[int, int, int]:
            lack = max(0, share - self._now(device)) if self._have is not None else 0
            free = room[device]
            return lack, free if roomy_last else -free, device.rank

        fit.sort(key=rank)
        seen: set[tuple[tuple[int, int | None], ...]] = set()
        for chosen in itertools.chain((linked(fit, count),), itertools.combinations(fit, count)):
            kinds = tuple(sorted((room[d], -1 if d.numa is None else d.numa) for d in chosen))
            if kinds in seen:
                continue
            seen.add(kinds)
            by_room = sorted(chosen, key=lambda d: (-room[d], d.rank))
            if more and room[by_room[more - 1]] < share + quantum:
                continue
            yield [(d, share + quantum * (n < more)) for n, d in enumerate(by_room)]
            if len(seen) >= ATTEMPTS:
                return


def _weight(kernel: Amounts) -> tuple[int, int]:
    scarce = sum(amount for slot, amount in kernel if is_accelerator(slot))
    return scarce, sum(amount for slot, amount in kernel if slot == "cpu")
