"""Shapes: what makes requests equal for placement, so that equal ones are worked out once per pass."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from spawner.scheduler.model import Reason, SessionRequest
from spawner.scheduler.nodes import CONTAINERS, Need
from spawner.scheduler.slots import example, format_amount, kind_of


@dataclass(frozen=True, slots=True, eq=False)
class Shape:
    """What one node must give: all kernels of a session together. Compared by identity, see ``Shapes``."""

    slots: tuple[tuple[str, int], ...]
    """Summed amounts above zero, by slot name; a slot asked for with zero is not asked for."""
    need: Need
    """``slots`` and the containers."""
    architectures: frozenset[str]
    images: frozenset[str]
    designated: frozenset[str]
    defect: Reason | None = None
    """Why no node whatever could run it: the request itself is wrong, or of a kind not offered."""

    @property
    def wanted(self) -> tuple[str, ...]:
        """Names of the slots asked for."""
        return tuple(slot for slot, _ in self.slots)

    @property
    def containers(self) -> int:
        """How many containers it is."""
        return self.need[0][1]


class Shapes:
    """The shapes of a pass: sessions that can start on the same nodes get the same object."""

    def __init__(self) -> None:
        self._known: dict[object, Shape] = {}

    def __iter__(self) -> Iterator[Shape]:
        return iter(self._known.values())

    def of(self, session: SessionRequest) -> Shape:
        """The shape of ``session``."""
        key = (
            tuple((tuple(k.slots.items()), k.architecture, k.image) for k in session.kernels),
            session.designated_agents,
            session.cluster_mode,
        )
        shape = self._known.get(key)
        if shape is None:
            shape = self._known[key] = _shape(session)
        return shape


def _shape(session: SessionRequest) -> Shape:
    total: dict[str, int] = {}
    for kernel in session.kernels:
        for slot, amount in kernel.slots.items():
            if amount:
                total[slot] = total.get(slot, 0) + amount
    slots = tuple(sorted(total.items()))
    return Shape(
        slots,
        ((CONTAINERS, len(session.kernels)), *slots),
        frozenset(kernel.architecture for kernel in session.kernels),
        frozenset(kernel.image for kernel in session.kernels),
        session.designated_agents,
        _defect(session),
    )


def _defect(session: SessionRequest) -> Reason | None:
    if not session.kernels:
        return Reason("kernels", "it has no containers")
    if len(session.kernels) > 1 and session.cluster_mode != "single-node":
        return Reason(
            "cluster-mode",
            f"cluster mode {session.cluster_mode!r} with {len(session.kernels)} containers is not "
            "offered: only 'single-node' is",
        )
    for kernel in session.kernels:
        for slot, amount in kernel.slots.items():
            quantum = kind_of(slot).quantum
            if amount < 0 or amount % quantum:
                return Reason(
                    "amount",
                    f"{slot} is {amount} base units: it must be a non-negative multiple of "
                    f"{format_amount(slot, quantum)}, such as {example(slot)}",
                    data={"slot": slot, "requested": amount},
                )
    return None
