"""Trees of files that look like ``/sys`` and ``/dev`` of nodes with accelerators."""

from __future__ import annotations

from pathlib import Path


class Tree:
    """A root with ``sys`` and ``dev``."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "sys").mkdir(exist_ok=True)
        (root / "dev").mkdir(exist_ok=True)

    def write(self, path: str, content: object) -> Path:
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{content}\n")
        return file

    def node(self, *paths: str) -> None:
        for path in paths:
            self.write(path.lstrip("/"), "")

    def pci(self, address: str, vendor: int, device: int, numa: int = 0) -> str:
        """A PCI function; its folder beneath the root."""
        folder = f"sys/devices/pci0000:00/{address}"
        self.write(f"{folder}/vendor", f"{vendor:#06x}")
        self.write(f"{folder}/device", f"{device:#06x}")
        self.write(f"{folder}/numa_node", numa)
        self.link(f"sys/bus/pci/devices/{address}", folder)
        return folder

    def link(self, path: str, target: str) -> None:
        link = self.root / path
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(self.root / target)

    def hwmon(self, folder: str, *, watts: int = 60, celsius: int = 45) -> None:
        self.write(f"{folder}/hwmon/hwmon3/power1_input", watts * 1_000_000)
        self.write(f"{folder}/hwmon/hwmon3/temp1_input", celsius * 1_000)


def rocm(tree: Tree) -> None:
    """A CPU node, then two GPUs that the fabric joins."""
    nodes = "sys/class/kfd/kfd/topology/nodes"
    tree.write(f"{nodes}/0/properties", "cpu_cores_count 64\nsimd_count 0")
    for place, (minor, unique) in enumerate(((128, 0xABC), (129, 0xDEF)), 1):
        lines = f"simd_count 304\ndrm_render_minor {minor}\nunique_id {unique}\ngfx_target_version 90402"
        tree.write(f"{nodes}/{place}/properties", lines)
        tree.write(f"{nodes}/{place}/mem_banks/0/properties", f"heap_type 1\nsize_in_bytes {2**36}")
        other = 3 - place
        tree.write(f"{nodes}/{place}/io_links/0/properties", "type 2\nnode_to 0")
        tree.write(f"{nodes}/{place}/io_links/1/properties", f"type 11\nnode_to {other}")
        folder = tree.pci(f"0000:c{place}:00.0", 0x1002, 0x74A1, place - 1)
        tree.link(f"sys/class/drm/renderD{minor}/device", folder)
        tree.write(f"{folder}/gpu_busy_percent", 30 * place)
        tree.write(f"{folder}/mem_info_vram_used", 2**30)
        tree.write(f"{folder}/mem_info_vram_total", 2**36)
        tree.write(f"{folder}/product_name", "AMD Instinct MI300X")
        tree.hwmon(folder)
        tree.node(f"dev/dri/renderD{minor}")
    tree.node("dev/kfd")


def tpu(tree: Tree) -> None:
    """Two chips of the accel driver and one behind VFIO."""
    for place in range(2):
        folder = tree.pci(f"0000:00:0{4 + place}.0", 0x1AE0, 0x005E, place)
        tree.link(f"sys/class/accel/accel{place}/device", folder)
        tree.node(f"dev/accel{place}")
    folder = tree.pci("0000:00:06.0", 0x1AE0, 0x0063)
    (tree.root / "sys/kernel/iommu_groups/9").mkdir(parents=True)
    tree.link(f"{folder}/iommu_group", "sys/kernel/iommu_groups/9")
    tree.node("dev/vfio/9", "dev/vfio/vfio")
    tree.pci("0000:00:07.0", 0x1AE0, 0x0042)  # Google's network card


def ipu(tree: Tree) -> None:
    """One card that names its node, one that does not."""
    folder = tree.pci("0000:1a:00.0", 0x1D95, 0x0003)
    tree.write(f"{folder}/ipu/ipu0/dev", "240:0")
    tree.hwmon(folder)
    tree.pci("0000:1b:00.0", 0x1D95, 0x0001, 1)
    tree.node("dev/ipu0", "dev/ipu0_ex", "dev/ipu1", "dev/ipu10")


def gaudi(tree: Tree) -> None:
    """A Gaudi 2 in the accel class, a Gaudi in the old one, and another vendor's accel device."""
    folder = tree.pci("0000:33:00.0", 0x1DA3, 0x1020, 1)
    tree.write(f"{folder}/device_type", "GAUDI2")
    tree.write(f"{folder}/module_id", 5)
    tree.hwmon(folder, watts=400)
    tree.link("sys/class/accel/accel0/device", folder)
    old = tree.pci("0000:34:00.0", 0x1DA3, 0x1000)
    tree.link("sys/class/habanalabs/hl1/device", old)
    tree.link("sys/class/accel/accel7/device", tree.pci("0000:00:0b.0", 0x8086, 0x7D1D))
    tree.node("dev/accel/accel0", "dev/accel/accel_controlD0", "dev/accel/accel7")
    tree.node("dev/hl1", "dev/hl_controlD1")


def rebellions(tree: Tree) -> None:
    """An ATOM, an ATOM+ and an ATOM Max."""
    for place, card in enumerate(("RBLN-CA12", "RBLN-CA22", "RBLN-CA25")):
        folder = tree.pci(f"0000:5{place}:00.0", 0x1EFF, 0x1220)
        tree.link(f"sys/class/rebellions/rbln{place}/device", folder)
        tree.write(f"sys/class/rebellions/rbln{place}/card_name", card)
        tree.write(f"sys/class/rebellions/rbln{place}/dram_total", 2**34)
        tree.write(f"sys/class/rebellions/rbln{place}/dram_used", 2**20)
        tree.node(f"dev/rbln{place}")
    tree.node("dev/rsd0")


def furiosa(tree: Tree) -> None:
    """A Warboy, and an RNGD whose number is the beginning of another's."""
    tree.pci("0000:6a:00.0", 0x1ED2, 0x0000)
    tree.write("sys/class/npu_mgmt/npu0_mgmt/platform_type", "FuriosaAI")
    tree.write("sys/class/npu_mgmt/npu0_mgmt/busname", "0000:6a:00.0")
    tree.node("dev/npu0", "dev/npu0_mgmt", "dev/npu0pe0", "dev/npu0pe0-1", "dev/npu0ch0")
    for place in (1, 10):
        address = f"0000:{0x70 + place:02x}:00.0"
        tree.hwmon(tree.pci(address, 0x1ED2, 0x0001, 1))
        tree.write(f"sys/class/rngd_mgmt/rngd!npu{place}mgmt/busname", address)
        names = ("mgmt", "pe0", "pe0-3", "ch0", "ch0r", "dmar", "bar0")
        tree.node(*(f"dev/rngd/npu{place}{name}" for name in names))


def hyperaccel(tree: Tree) -> None:
    """One card of two functions, and the vendor's software."""
    tree.pci("0000:b1:00.0", 0x10EE, 0x500C, 1)
    folder = tree.pci("0000:b1:00.1", 0x10EE, 0x500D, 1)
    tree.write(f"{folder}/drm/renderD130/dev", "226:130")
    tree.hwmon(folder)
    tree.link("sys/bus/pci/drivers/xclmgmt/0000:b1:00.0", "sys/devices/pci0000:00/0000:b1:00.0")
    tree.node(f"dev/xfpga/xvc_pri.m{0xB1 << 8}.0", "dev/dri/renderD130")
    (tree.root / "opt/hyperdex").mkdir(parents=True)


def tenstorrent(tree: Tree) -> None:
    """An n300 and a p150."""
    for place, card in enumerate(("n300", "p150a")):
        folder = tree.pci(f"0000:0{1 + place}:00.0", 0x1E52, 0x401E, place)
        tree.hwmon(folder)
        tree.link(f"sys/class/tenstorrent/tenstorrent!{place}/device", folder)
        tree.write(f"sys/class/tenstorrent/tenstorrent!{place}/tt_card_type", card)
        tree.write(f"sys/class/tenstorrent/tenstorrent!{place}/tt_serial", "0x100")
        tree.node(f"dev/tenstorrent/{place}")
    (tree.root / "dev/hugepages-1G").mkdir()
