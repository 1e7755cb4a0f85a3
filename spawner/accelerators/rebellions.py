"""Rebellions ATOM and REBEL, from the class of the vendor's driver."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from spawner.accelerators.chips import Chip, Model, Sensor, SysfsPlugin, counted, hwmon, numbers
from spawner.accelerators.measures import MeasureKind
from spawner.accelerators.specification import DeviceSpec
from spawner.accelerators.sysfs import entries, number, text

ATOM = Model("atom.device", "ATOM", "ATOM", "rebel")
MODELS = {
    "CA22": Model("atom-plus.device", "ATOM+", "ATOM+", "rebel"),
    "CA25": Model("atom-max.device", "ATOM Max", "ATOM Max", "rebel"),
    "CR": Model("rebel.device", "REBEL", "REBEL", "rebel"),
}
"""By what follows ``RBLN-`` in the card's name; all others are ATOMs."""


class RebellionsPlugin(SysfsPlugin):
    """Slots ``atom.device``, ``atom-plus.device``, ``atom-max.device``, ``rebel.device``."""

    name = "rebellions"
    sensors = (
        Sensor("mem", MeasureKind.USAGE, "bytes", ("dram_used",), limits=("dram_total",)),
        *hwmon(),
    )
    locked_memory = True

    def find(self) -> Iterable[Chip]:
        """Cards with their node ``/dev/rblnN``; ``/dev/rsd0`` joins several and goes with each."""
        for match, folder in entries(self.sysfs.sys / "class/rebellions", r"rbln(\d+)"):
            own = self.sysfs.nodes(match.string)
            if not own:
                continue
            card = text(folder / "card_name") or "Rebellions ATOM"
            function = self.sysfs.function(folder / "device")
            yield Chip(
                device_id=function.address if function else match.string,
                number=int(match.group(1)),
                model=_model(card),
                product=card,
                nodes=(*own, *self.sysfs.nodes("rsd0")),
                function=function,
                folder=folder,
                memory_bytes=number(folder / "dram_total"),
            )

    def names_within(self, chips: Sequence[Chip]) -> Mapping[str, str]:
        """The vendor's software counts the cards of a container from 0."""
        return {f"/dev/rbln{chip.number}": f"/dev/rbln{n}" for n, chip in enumerate(chips)}

    def environment(self, chips: Sequence[Chip]) -> DeviceSpec:
        """In a container the vendor's software takes the cards whose nodes are there."""
        return DeviceSpec(
            environ=counted("atom", chips), host_environ={"RBLN_DEVICES": numbers(chips)}
        )


def _model(card: str) -> Model:
    kind = card.upper().removeprefix("RBLN-")
    return next((model for prefix, model in MODELS.items() if kind.startswith(prefix)), ATOM)
