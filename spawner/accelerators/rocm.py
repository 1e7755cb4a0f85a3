"""AMD GPUs of the ROCm stack, from the kernel's topology in ``/sys/class/kfd``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from spawner.accelerators.chips import Chip, Model, Sensor, SysfsPlugin, counted, hwmon, numbers
from spawner.accelerators.measures import MeasureKind
from spawner.accelerators.specification import DeviceSpec
from spawner.accelerators.sysfs import entries, number, properties, text

GPU = Model("rocm.device", "AMD GPU", "AMD GPU", "rocm")
KFD = "/dev/kfd"
XGMI = 11
"""The link type of Infinity Fabric between GPUs in the topology."""


class RocmPlugin(SysfsPlugin):
    """Slot ``rocm.device``."""

    name = "rocm"
    sensors = (
        Sensor("util", MeasureKind.UTILIZATION, "percent", ("device/gpu_busy_percent",)),
        Sensor(
            "mem",
            MeasureKind.USAGE,
            "bytes",
            ("device/mem_info_vram_used",),
            limits=("device/mem_info_vram_total",),
        ),
        *hwmon(),
    )

    def find(self) -> Iterable[Chip]:
        """Nodes of the topology that compute (``simd_count``) and have a render node."""
        topology = self.sysfs.sys / "class/kfd/kfd/topology/nodes"
        gpus: dict[int, tuple[Path, dict[str, int]]] = {}
        for match, folder in entries(topology, r"\d+"):
            facts = properties(folder / "properties")
            if facts.get("simd_count") and facts.get("drm_render_minor"):
                gpus[int(match.string)] = (folder, facts)
        times = Counter(facts.get("unique_id") for _, facts in gpus.values())
        for _, facts in gpus.values():
            if times[facts.get("unique_id")] > 1:
                facts["unique_id"] = 0  # partitions of one GPU, which have it from the GPU
        ids = {node: self._id(facts) for node, (_, facts) in gpus.items()}
        for place, (node, (folder, facts)) in enumerate(gpus.items()):
            linked = frozenset(ids[peer] for peer in _peers(folder) if peer in ids and peer != node)
            yield self._chip(place, folder, facts, linked)

    def environment(self, chips: Sequence[Chip]) -> DeviceSpec:
        """Devices by UUID where they have one: it is the same inside a container and outside."""
        visible = ",".join(str(chip.attributes["uuid"]) for chip in chips)
        every = all(chip.attributes["uuid"] for chip in chips)
        ours = ",".join(str(place) for place in range(len(chips)))
        return DeviceSpec(
            environ=counted(self.name, chips) | {"HIP_VISIBLE_DEVICES": ours},
            enforced={"ROCR_VISIBLE_DEVICES": visible} if every else {},
            host_environ={} if every else {"ROCR_VISIBLE_DEVICES": numbers(chips)},
        )

    def _id(self, facts: dict[str, int]) -> str:
        unique = facts.get("unique_id", 0)
        return f"GPU-{unique:016x}" if unique else f"renderD{facts['drm_render_minor']}"

    def _chip(
        self, place: int, folder: Path, facts: dict[str, int], linked: frozenset[str]
    ) -> Chip:
        render = f"renderD{facts['drm_render_minor']}"
        drm = self.sysfs.sys / "class/drm" / render
        unique = facts.get("unique_id", 0)
        target = facts.get("gfx_target_version", 0)
        banks = entries(folder / "mem_banks", r"\d+")
        memory = sum(properties(bank / "properties").get("size_in_bytes", 0) for _, bank in banks)
        memory = memory or number(drm / "device/mem_info_vram_total") or 0
        return Chip(
            device_id=self._id(facts),
            number=place,
            model=GPU,
            product=text(drm / "device/product_name") or text(folder / "name") or "AMD GPU",
            nodes=(KFD, f"/dev/dri/{render}"),
            function=self.sysfs.function(drm / "device"),
            folder=drm,
            memory_bytes=memory or None,
            links=linked,
            attributes={
                "uuid": f"GPU-{unique:016x}" if unique else "",
                "target": f"gfx{target // 10000}{target // 100 % 100:x}{target % 100:x}",
            },
        )


def _peers(folder: Path) -> list[int]:
    """Topology nodes at the other end of this one's fabric links."""
    links = [properties(link / "properties") for _, link in entries(folder / "io_links", r"\d+")]
    return [link["node_to"] for link in links if link.get("type") == XGMI and "node_to" in link]
