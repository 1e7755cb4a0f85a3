"""NVIDIA GPUs as the driver's stand-in describes them, through the real ``nvidia-ml-py``."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest

from spawner.accelerators import registry
from spawner.accelerators.base import aside
from spawner.accelerators.cuda import CudaPlugin
from spawner.accelerators.measures import Measure, of_kernel
from spawner.accelerators.registry import Accelerators, PluginError
from spawner.agent.protocol import DeviceReport, Share
from tests.unit.accelerators import driver, trees

MIG = "cuda.device:1g.10gb-mig"
INSTANCES = tuple(f"mig MIG-{n} NVIDIA_H100_80GB_HBM3_MIG_1g.10gb 9856 1" for n in ("a", "b"))


@pytest.fixture(autouse=True)
def no_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_NVML", "")


def plugin(**config: object) -> CudaPlugin:
    made = CudaPlugin()
    made.configure({"library": driver.library(), **config})
    return made


def devices(made: CudaPlugin) -> Sequence[DeviceReport]:
    async def ask() -> Sequence[DeviceReport]:
        return await made.devices()

    return asyncio.run(ask())


def measures(made: CudaPlugin) -> dict[str, Measure]:
    async def ask() -> Sequence[Measure]:
        return await made.measure()

    return {each.name: each for each in asyncio.run(ask())}


def test_gpus_have_links_memory_and_a_numa_node(tmp_path: Path) -> None:
    trees.Tree(tmp_path).pci("0000:1b:00.0", 0x10DE, 0x2330, 1)
    peers = (f"link 0 {driver.bus(1)} 0", driver.gpu(1), f"link 0 {driver.bus(0)} 0", driver.gpu(2))
    driver.describe(tmp_path, driver.gpu(0), *peers)
    first, second, third = devices(plugin(root=str(tmp_path)))
    assert (first.slot, first.device_id, first.numa_node) == ("cuda.device", "GPU-00000000", 1)
    assert first.model == "NVIDIA H100 80GB HBM3"
    assert first.attributes["memory"] == 80 * driver.GIB
    assert (first.links, second.links) == (("GPU-00000001",), ("GPU-00000000",))
    assert third.links == ()


def test_gpus_behind_a_switch_are_all_linked(tmp_path: Path) -> None:
    lines = [
        line
        for n in range(3)
        for line in (driver.gpu(n), f"link 0 00000000:A0:00.0 {driver.SWITCH}")
    ]
    driver.describe(tmp_path, *lines)
    assert [len(device.links) for device in devices(plugin())] == [2, 2, 2]


def test_a_gpu_in_mig_mode_is_its_instances(tmp_path: Path) -> None:
    driver.describe(tmp_path, driver.gpu(0, mig=1), *INSTANCES, driver.gpu(1))
    made = plugin()
    found = devices(made)
    assert [(d.slot, d.device_id) for d in found] == [
        (MIG, "MIG-a"), (MIG, "MIG-b"), ("cuda.device", "GPU-00000001"),
    ]  # fmt: skip
    assert {slot.name: slot.type for slot in made.slots()} == {
        MIG: "unique",
        "cuda.device": "count",
    }
    spec = made.device_spec([Share(MIG, "MIG-a", 10**6)])
    assert spec.enforced["NVIDIA_VISIBLE_DEVICES"] == "MIG-a"
    with pytest.raises(ValueError, match="GPUs and MIG instances at once"):
        made.device_spec([Share(d.slot, d.device_id, 10**6) for d in found[1:]])
    told = measures(made)
    assert set(told["cuda_util"].devices) == {"GPU-00000001"}
    assert told["cuda_mem"].devices["MIG-a"].value == 9856 * 2**20 / 2
    assert told["cuda_temperature"].devices["MIG-b"].value == 61


def test_measures_of_a_gpu(tmp_path: Path) -> None:
    driver.describe(tmp_path, driver.gpu(0), driver.gpu(1, util=80))
    made = plugin()
    devices(made)
    told = measures(made)
    mean = told["cuda_util"].of_node()
    watts = told["cuda_power"].of_node()
    assert mean is not None
    assert watts is not None
    assert (mean.value, watts.value, watts.capacity) == (60, 700, 1400)


def test_holders_of_parts_are_told_of_their_own_use(tmp_path: Path) -> None:
    lines = (f"process 11 {4 * driver.GIB} 30", f"process 12 {6 * driver.GIB} 10")
    driver.describe(tmp_path, driver.gpu(0), *lines, driver.gpu(1))

    async def told(amount: int, *pids: int) -> dict[str, tuple[float, float | None, bool]]:
        accelerators = Accelerators([plugin(mode="shares")])
        shares = [Share(d.slot, d.device_id, amount) for d in await accelerators.devices()][:1]
        found = of_kernel(await accelerators.measure(), accelerators.parts(shares), pids)
        return {
            each.measure.name: (each.reading.value, each.reading.capacity, each.shared)
            for each in found
        }

    assert asyncio.run(told(250_000, 12, 99)) == {
        "cuda_util": (10, 25, False),
        "cuda_mem": (6 * driver.GIB, 20 * driver.GIB, False),
        "cuda_power": (350, 700, True),
        "cuda_temperature": (61, None, True),
    }
    whole = asyncio.run(told(1_000_000))
    assert whole["cuda_util"] == (40, 100, False)
    assert whole["cuda_mem"] == (20 * driver.GIB, 80 * driver.GIB, False)


def test_clients_of_the_multi_process_service_share_its_utilisation(tmp_path: Path) -> None:
    server, clients = (
        f"process 9 {driver.GIB // 16} 95",
        [f"client 1{i} {driver.GIB}" for i in (1, 2)],
    )
    driver.describe(tmp_path, driver.gpu(0), server, *clients)
    made = plugin(mode="shares")
    devices(made)
    told = measures(made)
    assert told["cuda_util"].processes == {}
    [users] = told["cuda_mem"].processes.values()
    assert users == {9: driver.GIB // 16, 11: driver.GIB, 12: driver.GIB}


def test_a_gpu_without_processes_is_used_by_nobody(tmp_path: Path) -> None:
    driver.describe(tmp_path, driver.gpu(0), driver.gpu(1, mig=1))
    made = plugin(mode="shares")
    devices(made)
    told = measures(made)
    assert told["cuda_util"].processes == {"GPU-00000000": {}}
    assert told["cuda_power"].processes == {}


def test_a_lost_gpu_does_not_hide_the_others(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    driver.describe(tmp_path, driver.gpu(0), "lost", driver.gpu(1))
    made = plugin()
    assert [device.device_id for device in devices(made)] == ["GPU-00000001"]
    devices(made)
    assert len(caplog.records) == 1


def faults(made: CudaPlugin) -> dict[str, str]:
    """By device what is wrong with it; what is broken offers nothing."""
    found = devices(made)
    assert all(bool(each.fault) != bool(each.capacity) for each in found)
    return {each.device_id: each.fault for each in found}


def test_a_gpu_that_falls_off_the_bus_is_out_of_order(tmp_path: Path) -> None:
    driver.describe(tmp_path, driver.gpu(0), driver.gpu(1))
    made = plugin()
    assert faults(made) == {"GPU-00000000": "", "GPU-00000001": ""}
    driver.describe(tmp_path, driver.gpu(0), "lost", driver.gpu(1))
    told = faults(made)
    assert told["GPU-00000000"].startswith("it does not answer: ")
    assert told["GPU-00000001"] == ""
    assert set(measures(made)["cuda_mem"].devices) >= {"GPU-00000001"}
    driver.describe(tmp_path, driver.gpu(0), driver.gpu(1))
    assert faults(made) == {"GPU-00000000": "", "GPU-00000001": ""}


def test_errors_of_memory_make_a_gpu_faulty_until_it_is_reset(tmp_path: Path) -> None:
    driver.describe(tmp_path, driver.gpu(0), "ecc 1", driver.gpu(1), "unmappable", driver.gpu(2))
    made = plugin()
    assert faults(made) == {
        "GPU-00000000": "1 uncorrectable error of its memory since it was reset: reset it",
        "GPU-00000001": "rows of its memory cannot be remapped: it is to be replaced",
        "GPU-00000002": "",
    }
    driver.describe(tmp_path, driver.gpu(0))
    assert faults(made) == {"GPU-00000000": ""}


def test_critical_errors_make_a_gpu_or_an_instance_faulty(tmp_path: Path) -> None:
    whole = 0xFFFFFFFF
    made = plugin(ignored_xids=[63])
    driver.describe(tmp_path, driver.gpu(0), driver.gpu(1, mig=1), *INSTANCES)
    assert set(faults(made).values()) == {""}
    of_programs = (f"xid 31 {whole}", f"xid 63 {whole}")
    driver.describe(tmp_path, driver.gpu(0), *of_programs, driver.gpu(1, mig=1), *INSTANCES)
    assert set(faults(made).values()) == {""}
    xids = (*of_programs, f"xid 79 {whole}")
    lines = (driver.gpu(0), *xids, driver.gpu(1, mig=1), *INSTANCES, "xid 94 7")
    driver.describe(tmp_path, *lines)
    told = "the driver reported XID"
    expected = {"GPU-00000000": f"{told} 79", "MIG-a": f"{told} 94", "MIG-b": ""}
    assert faults(made) == expected
    assert faults(made) == expected, "what was reported once stays"
    assert set(faults(plugin()).values()) == {""}, "a new start begins anew"


def test_a_driver_that_was_replaced_is_told_of_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    driver.describe(tmp_path, "mismatch")
    made = plugin()
    for _ in range(2):
        assert devices(made) == []
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    driver.describe(tmp_path, driver.gpu(0))
    assert faults(made) == {"GPU-00000000": ""}


def test_shares_are_limited_by_mps(tmp_path: Path) -> None:
    driver.describe(tmp_path, driver.gpu(0), driver.gpu(1))
    made = plugin(mode="shares", reserved="0.1", mps="/run/mps")
    first, _ = devices(made)
    assert (first.slot, first.capacity, first.reserved) == ("cuda.shares", 900_000, 100_000)
    spec = made.device_spec([Share("cuda.shares", first.device_id, 250_000)])
    assert spec.enforced["CUDA_MPS_ACTIVE_THREAD_PERCENTAGE"] == "25"
    assert spec.enforced["CUDA_MPS_PINNED_DEVICE_MEM_LIMIT"] == f"0={20 * 1024}M"
    assert spec.mounts[0].source == "/run/mps"


def test_three_ways_to_inject(tmp_path: Path) -> None:
    driver.describe(tmp_path, driver.gpu(0))
    tree = trees.Tree(tmp_path)
    tree.node("dev/nvidia0", "dev/nvidiactl", "dev/nvidia-uvm", "dev/nvidia1")
    held = [Share("cuda.device", "GPU-00000000", 10**6)]
    specs = {}
    for inject in ("request", "cdi", "nodes"):
        made = plugin(inject=inject, root=str(tmp_path))
        devices(made)
        specs[inject] = made.device_spec(held)
    assert specs["request"].requests[0].device_ids == ("GPU-00000000",)
    assert specs["cdi"].requests[0].device_ids == ("nvidia.com/gpu=GPU-00000000",)
    nodes = [node.path for node in specs["nodes"].devices]
    assert nodes == ["/dev/nvidia0", "/dev/nvidia-uvm", "/dev/nvidiactl"]


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ({"mode": "half"}, "mode is 'half': one of device, shares"),
        ({"reserved": "0.1"}, "need mode 'shares'"),
        ({"mode": "shares", "reserved": "1"}, "nothing would be left"),
        ({"driver_libraries": "/lib"}, "needs inject 'nodes'"),
        ({"ignored_xids": "63"}, "ignored_xids is '63': give a list of numbers"),
        ({"mode": "shares", "mps": "here"}, "mps is 'here': give an absolute path"),
    ],
)
def test_wrong_settings_are_named(config: dict[str, object], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        plugin(**config)


async def test_a_kernel_without_gpus_sees_none(tmp_path: Path) -> None:
    driver.describe(tmp_path, driver.gpu(0))
    accelerators = Accelerators([plugin()])
    await accelerators.devices()
    assert accelerators.limits((), 0, 1).enforced == {"NVIDIA_VISIBLE_DEVICES": "void"}
    with pytest.raises(PluginError, match=r"'cuda'.*not there any more"):
        accelerators.limits([Share("cuda.device", "GPU-9", 10**6)], 0, 1)


class Broken(CudaPlugin):
    """Measures nothing, in its own way."""

    name = "broken"

    async def devices(self) -> Sequence[DeviceReport]:
        return [DeviceReport("broken.device", "0", 10**6)]

    async def measure(self) -> Sequence[Measure]:
        raise RuntimeError("out of order")


async def test_a_plugin_that_fails_does_not_disturb_the_others(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    driver.describe(tmp_path, driver.gpu(0))
    accelerators = Accelerators([Broken(), plugin()])
    await accelerators.devices()
    for _ in range(2):
        assert {m.name for m in await accelerators.measure()} >= {"cuda_util", "cuda_mem"}
    assert [record.getMessage() for record in caplog.records] == [
        "accelerator plug-in 'broken' cannot measure"
    ]
    assert [slot.name for slot in accelerators.slots()] == ["broken.device", "cuda.device"]


class Stuck(CudaPlugin):
    """Its driver does not return until it is told to."""

    name = "stuck"

    def __init__(self) -> None:
        super().__init__()
        self.free, self.asked = threading.Event(), 0
        self.free.set()

    async def devices(self) -> Sequence[DeviceReport]:
        self.asked += 1
        await aside(self.free.wait)
        return [DeviceReport("stuck.device", "0", 10**6)]


async def test_a_driver_that_hangs_is_asked_once_and_keeps_nobody_waiting(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stuck = Stuck()
    accelerators = Accelerators([stuck, Broken()])
    listed = await accelerators.devices()
    monkeypatch.setattr(registry, "PATIENCE", 0.01)
    stuck.free.clear()
    try:
        for _ in range(50):
            assert await accelerators.devices() == listed, "it is believed to have what it had"
        threads = [thread for thread in threading.enumerate() if thread.name == "accelerators"]
        assert (stuck.asked, len(threads), threads[0].daemon) == (2, 1, True)
    finally:
        stuck.free.set()
        await asyncio.to_thread(threads[0].join)
    await asyncio.sleep(0)
    assert await accelerators.devices() == listed
    assert stuck.asked == 3


async def test_a_driver_that_hangs_is_asked_once_by_many_who_give_up() -> None:
    stuck = Stuck()
    accelerators = Accelerators([stuck])
    listed = await accelerators.devices()
    stuck.free.clear()
    try:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(accelerators.devices(), 0.01)
        assert await accelerators.devices() == listed
        assert stuck.asked == 2
    finally:
        stuck.free.set()
