"""Tenstorrent cards, from the class of the vendor's kernel driver."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from spawner.accelerators.chips import Chip, Model, SysfsPlugin, counted, hwmon, numbers
from spawner.accelerators.specification import DeviceSpec, HostMount
from spawner.accelerators.sysfs import entries, text

HUGE_PAGES = "/dev/hugepages-1G"
BY_PCI = {0xFACA: "grayskull", 0x401E: "wormhole", 0xB140: "blackhole"}


class TenstorrentPlugin(SysfsPlugin):
    """Slots by card: ``tt-n150.device``, ``tt-n300.device``, ``tt-p150.device``."""

    name = "tenstorrent"
    sensors = hwmon()
    mounts = (HostMount(HUGE_PAGES, HUGE_PAGES, read_only=False),)
    locked_memory = True

    def find(self) -> Iterable[Chip]:
        """Cards with a node ``/dev/tenstorrent/N``."""
        for match, folder in entries(self.sysfs.sys / "class/tenstorrent", r"tenstorrent!(\d+)"):
            nodes = self.sysfs.nodes(match.group(1), "tenstorrent")
            function = self.sysfs.function(folder / "device")
            if not nodes or function is None:
                continue
            card = text(folder / "tt_card_type") or BY_PCI.get(function.device, "card")
            named = re.match(r"[a-z]+\d*", card.lower())
            kind = named[0] if named else "card"
            yield Chip(
                device_id=function.address,
                number=int(match.group(1)),
                model=Model(f"tt-{kind}.device", f"Tenstorrent {kind}", kind, "tenstorrent"),
                product=f"Tenstorrent {card}",
                nodes=nodes,
                function=function,
                folder=folder,
                attributes={"serial": text(folder / "tt_serial") or ""},
            )

    def environment(self, chips: Sequence[Chip]) -> DeviceSpec:
        """In a container the vendor's software takes the cards whose nodes are there."""
        return DeviceSpec(
            environ=counted(self.name, chips), host_environ={"TT_VISIBLE_DEVICES": numbers(chips)}
        )
