"""Every built-in plug-in passes the conformance tests that are shipped with the interface."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import pytest

from spawner.accelerators.base import AcceleratorPlugin
from spawner.accelerators.chips import SysfsPlugin
from spawner.accelerators.conformance import AcceleratorConformance
from spawner.accelerators.cpu import CpuPlugin
from spawner.accelerators.cuda import CudaPlugin
from spawner.accelerators.furiosa import FuriosaPlugin
from spawner.accelerators.gaudi import GaudiPlugin
from spawner.accelerators.hyperaccel import HyperaccelPlugin
from spawner.accelerators.ipu import IpuPlugin
from spawner.accelerators.mem import MemPlugin
from spawner.accelerators.mock import MockPlugin
from spawner.accelerators.rebellions import RebellionsPlugin
from spawner.accelerators.rocm import RocmPlugin
from spawner.accelerators.tenstorrent import TenstorrentPlugin
from spawner.accelerators.tpu import TpuPlugin
from tests.unit.accelerators import driver, trees

MOCK = """
[slots."foo.bytes"]
human_name = "Foo memory"
type = "bytes"
[[devices]]
slot = "cuda.shares"
id = "GPU-0"
capacity = "0.9"
links = ["GPU-1"]
numa_node = 0
measures = {cuda_util = {kind = "utilization", unit = "percent", value = 42, capacity = 100}}
[[devices]]
slot = "cuda.shares"
id = "GPU-1"
capacity = 1
links = ["GPU-0"]
[[devices]]
slot = "foo.bytes"
id = "foo"
capacity = "16g"
[[devices]]
slot = "rocm.device"
id = "hidden"
capacity = 1
masked = true
"""


class OfSysfs(AcceleratorConformance):
    kind: ClassVar[type[SysfsPlugin]]
    fill: ClassVar[Callable[[trees.Tree], None]]

    def make(self, folder: Path) -> AcceleratorPlugin:
        type(self).fill(trees.Tree(folder))
        return self._at(folder)

    def absent(self, folder: Path) -> AcceleratorPlugin:
        return self._at(folder)

    def _at(self, folder: Path) -> AcceleratorPlugin:
        plugin = self.kind()
        plugin.configure({"root": str(folder)})
        return plugin


class TestRocm(OfSysfs):
    kind, fill = RocmPlugin, trees.rocm


class TestTpu(OfSysfs):
    kind, fill = TpuPlugin, trees.tpu


class TestIpu(OfSysfs):
    kind, fill = IpuPlugin, trees.ipu


class TestGaudi(OfSysfs):
    kind, fill = GaudiPlugin, trees.gaudi


class TestRebellions(OfSysfs):
    kind, fill = RebellionsPlugin, trees.rebellions


class TestFuriosa(OfSysfs):
    kind, fill = FuriosaPlugin, trees.furiosa


class TestHyperaccel(OfSysfs):
    kind, fill = HyperaccelPlugin, trees.hyperaccel


class TestTenstorrent(OfSysfs):
    kind, fill = TenstorrentPlugin, trees.tenstorrent


class TestCuda(AcceleratorConformance):
    settings: ClassVar[dict[str, object]] = {}

    @pytest.fixture(autouse=True)
    def driver(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("FAKE_NVML", "")

    def make(self, folder: Path) -> AcceleratorPlugin:
        driver.describe(
            folder,
            driver.gpu(0),
            f"link 0 {driver.bus(1)} 0",
            driver.gpu(1),
            f"link 3 {driver.bus(0)} 0",
        )
        return self._plugin()

    def absent(self, folder: Path) -> AcceleratorPlugin:
        return self._plugin()

    def _plugin(self) -> AcceleratorPlugin:
        plugin = CudaPlugin()
        plugin.configure({"library": driver.library(), **self.settings})
        return plugin


class TestCudaShares(TestCuda):
    settings: ClassVar[dict[str, object]] = {"mode": "shares", "reserved": "0.1"}


class TestCudaMig(TestCuda):
    def make(self, folder: Path) -> AcceleratorPlugin:
        instances = [f"mig MIG-{n} NVIDIA_H100_80GB_HBM3_MIG_1g.10gb 9856 1" for n in ("a", "b")]
        driver.describe(folder, driver.gpu(0, mig=1), *instances, driver.gpu(1))
        return self._plugin()


class TestCpu(AcceleratorConformance):
    def make(self, folder: Path) -> AcceleratorPlugin:
        return CpuPlugin()

    def absent(self, folder: Path) -> None:
        return None


class TestMem(AcceleratorConformance):
    def make(self, folder: Path) -> AcceleratorPlugin:
        return MemPlugin()

    def absent(self, folder: Path) -> None:
        return None


class TestMock(AcceleratorConformance):
    def make(self, folder: Path) -> AcceleratorPlugin:
        file = folder / "devices.toml"
        file.write_text(MOCK)
        plugin = MockPlugin()
        plugin.configure({"file": str(file)})
        return plugin

    def absent(self, folder: Path) -> AcceleratorPlugin:
        return MockPlugin()
