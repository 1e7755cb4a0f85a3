"""What each vendor's plug-in finds in a tree and gives to a kernel."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from spawner.accelerators.chips import SysfsPlugin
from spawner.accelerators.furiosa import FuriosaPlugin
from spawner.accelerators.gaudi import GaudiPlugin
from spawner.accelerators.hyperaccel import HyperaccelPlugin
from spawner.accelerators.ipu import IpuPlugin
from spawner.accelerators.measures import Measure
from spawner.accelerators.rebellions import RebellionsPlugin
from spawner.accelerators.rocm import RocmPlugin
from spawner.accelerators.specification import HostMount
from spawner.accelerators.tenstorrent import TenstorrentPlugin
from spawner.accelerators.tpu import TpuPlugin
from spawner.agent.protocol import DeviceReport, Share
from tests.unit.accelerators import trees


def found(
    plugin: SysfsPlugin, fill: Callable[[trees.Tree], None], root: Path, **config: object
) -> list[DeviceReport]:
    fill(trees.Tree(root))
    plugin.configure({"root": str(root), **config})
    return list(asyncio.run(plugin_devices(plugin)))


async def plugin_devices(plugin: SysfsPlugin) -> list[DeviceReport]:
    return list(await plugin.devices())


def share(device: DeviceReport) -> Share:
    return Share(device.slot, device.device_id, device.capacity)


FOUND: list[
    tuple[type[SysfsPlugin], Callable[[trees.Tree], None], list[tuple[str, int | None]]]
] = [
    (RocmPlugin, trees.rocm, [("rocm.device", 0), ("rocm.device", 1)]),
    (TpuPlugin, trees.tpu, [("tpu.device", 0), ("tpu.device", 1), ("tpu.device", 0)]),
    (IpuPlugin, trees.ipu, [("ipu.device", 0), ("ipu.device", 1)]),
    (GaudiPlugin, trees.gaudi, [("gaudi2.device", 1), ("gaudi.device", 0)]),
    (
        RebellionsPlugin,
        trees.rebellions,
        [("atom.device", 0), ("atom-plus.device", 0), ("atom-max.device", 0)],
    ),
    (FuriosaPlugin, trees.furiosa, [("warboy.device", 0), ("rngd.device", 1), ("rngd.device", 1)]),
    (HyperaccelPlugin, trees.hyperaccel, [("hyperaccel-lpu.device", 1)]),
    (TenstorrentPlugin, trees.tenstorrent, [("tt-n300.device", 0), ("tt-p150.device", 1)]),
]


@pytest.mark.parametrize(
    ("kind", "fill", "slots"), FOUND, ids=lambda each: getattr(each, "name", "")
)
def test_devices_are_found_with_slot_and_numa_node(
    kind: type[SysfsPlugin],
    fill: Callable[[trees.Tree], None],
    slots: list[tuple[str, int | None]],
    tmp_path: Path,
) -> None:
    devices = found(kind(), fill, tmp_path)
    assert [(device.slot, device.numa_node) for device in devices] == slots


GIVEN: list[
    tuple[type[SysfsPlugin], Callable[[trees.Tree], None], int, list[str], dict[str, str]]
] = [
    (
        RocmPlugin, trees.rocm, 1, ["/dev/kfd", "/dev/dri/renderD129"],
        {"ROCR_VISIBLE_DEVICES": "GPU-0000000000000def", "HIP_VISIBLE_DEVICES": "0"},
    ),
    (
        TpuPlugin, trees.tpu, 1, ["/dev/accel1"],
        {"TPU_VISIBLE_CHIPS": "1", "TPU_CHIPS_PER_PROCESS_BOUNDS": "1,1,1"},
    ),
    (TpuPlugin, trees.tpu, 2, ["/dev/vfio/9", "/dev/vfio/vfio"], {"TPU_VISIBLE_CHIPS": "2"}),
    (IpuPlugin, trees.ipu, 1, ["/dev/ipu1"], {"GPU_COUNT": "1"}),
    (
        GaudiPlugin, trees.gaudi, 0, ["/dev/accel/accel0", "/dev/accel/accel_controlD0"],
        {"HABANA_VISIBLE_DEVICES": "0", "HABANA_VISIBLE_MODULES": "5"},
    ),
    (RebellionsPlugin, trees.rebellions, 2, ["/dev/rbln2", "/dev/rsd0"], {"RBLN_DEVICES": "2"}),
    (
        FuriosaPlugin, trees.furiosa, 1,
        [f"/dev/rngd/npu1{n}" for n in ("bar0", "ch0", "ch0r", "dmar", "mgmt", "pe0", "pe0-3")],
        {"FURIOSA_DEVICES": "npu:1"},
    ),
    (
        HyperaccelPlugin, trees.hyperaccel, 0,
        ["/dev/xfpga/xvc_pri.m45312.0", "/dev/dri/renderD130"], {"GPU_TYPE": "hyperaccel"},
    ),
    (TenstorrentPlugin, trees.tenstorrent, 1, ["/dev/tenstorrent/1"], {"TT_VISIBLE_DEVICES": "1"}),
]  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "fill", "place", "nodes", "variables"), GIVEN, ids=lambda e: getattr(e, "name", "")
)
def test_a_kernel_gets_its_nodes_and_variables(
    kind: type[SysfsPlugin],
    fill: Callable[[trees.Tree], None],
    place: int,
    nodes: list[str],
    variables: dict[str, str],
    tmp_path: Path,
) -> None:
    plugin = kind()
    spec = plugin.device_spec([share(found(plugin, fill, tmp_path)[place])])
    assert sorted(node.path for node in spec.devices) == sorted(nodes)
    given = {**spec.environ, **spec.enforced, **spec.host_environ}
    assert variables.items() <= given.items()


def test_partitions_of_one_amd_gpu_are_told_apart(tmp_path: Path) -> None:
    def partitioned(tree: trees.Tree) -> None:
        trees.rocm(tree)
        for each in (tree.root / "sys/class/kfd/kfd/topology/nodes").glob("*/properties"):
            each.write_text(each.read_text().replace(f"unique_id {0xDEF}", f"unique_id {0xABC}"))

    plugin = RocmPlugin()
    first, second = found(plugin, partitioned, tmp_path)
    assert (first.device_id, second.device_id) == ("renderD128", "renderD129")
    assert first.links == (second.device_id,)
    spec = plugin.device_spec([share(second)])
    assert [node.path for node in spec.devices] == ["/dev/kfd", "/dev/dri/renderD129"]
    assert spec.host_environ["ROCR_VISIBLE_DEVICES"] == "1"
    assert "ROCR_VISIBLE_DEVICES" not in spec.enforced


def test_links_and_measures_of_amd_gpus(tmp_path: Path) -> None:
    plugin = RocmPlugin()
    first, second = found(plugin, trees.rocm, tmp_path)
    assert first.links == (second.device_id,)
    measures = {m.name: m for m in asyncio.run(measured(plugin))}
    assert measures["rocm_util"].devices[second.device_id].value == 60
    total = measures["rocm_mem"].of_node()
    assert total is not None
    assert (total.value, total.capacity) == (2**31, 2**37)
    assert measures["rocm_power"].devices[first.device_id].value == 60
    assert measures["rocm_temperature"].devices[first.device_id].value == 45


async def measured(plugin: SysfsPlugin) -> list[Measure]:
    return list(await plugin.measure())


def test_folders_of_the_vendor_are_mounted_where_they_are(tmp_path: Path) -> None:
    plugin = HyperaccelPlugin()
    (card,) = found(plugin, trees.hyperaccel, tmp_path)
    assert plugin.device_spec([share(card)]).mounts == (
        HostMount("/opt/hyperdex", "/opt/hyperdex"),
    )
    (tmp_path / "opt/hyperdex").rmdir()
    assert not asyncio.run(plugin_devices(plugin)), "another FPGA card is no LPU"


@pytest.mark.parametrize(
    "mask", [{"exclude": ["0000:c1:00.0"]}, {"include": [1]}, {"exclude": ["GPU-0000000000000abc"]}]
)
def test_masked_devices_are_seen_and_not_given(mask: dict[str, object], tmp_path: Path) -> None:
    devices = found(RocmPlugin(), trees.rocm, tmp_path, **mask)
    assert [(device.masked, device.capacity) for device in devices] == [(True, 0), (False, 10**6)]


def test_a_mask_that_names_nothing_is_told_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    plugin = RocmPlugin()
    with caplog.at_level(logging.WARNING):
        found(plugin, trees.rocm, tmp_path, exclude=["0000:ff:00.0"])
        asyncio.run(plugin_devices(plugin))
    assert [r.getMessage() for r in caplog.records] == [
        "accelerator plug-in rocm: no device is called '0000:ff:00.0'"
    ]


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ({"exclude": "0"}, "exclude is '0': give a list"),
        ({"include": [0], "exclude": [0]}, "both name 0"),
        ({"root": "/no/such"}, "root is '/no/such'"),
    ],
)
def test_wrong_settings_are_named(config: dict[str, object], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        RocmPlugin().configure(config)


def test_a_device_that_went_away_is_refused(tmp_path: Path) -> None:
    plugin = RocmPlugin()
    found(plugin, trees.rocm, tmp_path)
    with pytest.raises(ValueError, match=r"rocm\.device GPU-1 is not there any more"):
        plugin.device_spec([Share("rocm.device", "GPU-1", 10**6)])


@pytest.mark.parametrize(("status", "offered"), [("needs reset", 0), ("in reset", 10**6)])
def test_a_gaudi_that_its_driver_gave_up_is_not_offered(
    tmp_path: Path, status: str, offered: int
) -> None:
    def fill(tree: trees.Tree) -> None:
        trees.gaudi(tree)
        folder = (tmp_path / "sys/class/accel/accel0/device").resolve()
        (folder / "status").write_text(f"{status}\n")

    device, other = found(GaudiPlugin(), fill, tmp_path)
    assert (device.capacity, bool(device.fault)) == (offered, not offered)
    assert other.capacity == 10**6


def test_cards_of_rebellions_are_counted_from_0_in_a_container(tmp_path: Path) -> None:
    plugin = RebellionsPlugin()
    _, *cards = found(plugin, trees.rebellions, tmp_path)
    spec = plugin.device_spec([share(card) for card in cards])
    assert {node.path: node.target for node in spec.devices} == {
        "/dev/rbln1": "/dev/rbln0",
        "/dev/rbln2": "/dev/rbln1",
        "/dev/rsd0": "",
    }
