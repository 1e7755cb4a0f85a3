"""NVIDIA GPUs: whole (``cuda.device``), in parts (``cuda.shares``), or as MIG instances.

Settings: ``include``, ``exclude`` (UUIDs, PCI addresses, numbers); ``mode`` ``device`` or ``shares``;
``reserved`` (part of each GPU that is kept for the node, with shares); ``inject`` ``request``
(the NVIDIA runtime), ``cdi`` or ``nodes`` (device files only) with ``driver_libraries`` (a folder that a
kernel finds as ``/usr/local/nvidia/lib64``); ``mps`` (pipe folder of a running MPS daemon); ``library``
(path of ``libnvidia-ml.so.1``); ``ignored_xids`` (errors after which a GPU is still given out); ``root``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spawner.accelerators.base import (
    AcceleratorPlugin,
    Mask,
    aside,
    only_settings,
    whole_devices,
)
from spawner.accelerators.measures import Measure, MeasureKind
from spawner.accelerators.nvml import Gpu, Instance, Nvml
from spawner.accelerators.specification import DeviceNode, DeviceSpec, HostMount, RuntimeRequest
from spawner.accelerators.sysfs import ROOT, Sysfs, text
from spawner.agent.protocol import DeviceReport, Share, SlotMetadata
from spawner.scheduler.slots import MICRO, kind_of, parse_amount

WHOLE = "cuda.device"
PARTS = "cuda.shares"
ICON = "nvidia"
LIBRARIES = "/usr/local/nvidia/lib64"
"""Where NVIDIA's images look for a driver that is mounted."""
CAPABILITIES = (("gpu", "compute", "utility"),)
QUANTITIES = {
    "util": (MeasureKind.UTILIZATION, "percent"),
    "mem": (MeasureKind.USAGE, "bytes"),
    "power": (MeasureKind.USAGE, "watts"),
    "temperature": (MeasureKind.GAUGE, "celsius"),
}
_MODES = {"device": WHOLE, "shares": PARTS}
_INJECT = ("request", "cdi", "nodes")


@dataclass(frozen=True, slots=True)
class _Offer:
    """A GPU or an instance of one under the slot that it is offered as."""

    slot: str
    gpu: Gpu
    instance: Instance | None = None

    @property
    def uuid(self) -> str:
        return self.gpu.uuid if self.instance is None else self.instance.uuid

    @property
    def memory_bytes(self) -> int:
        return self.gpu.memory_bytes if self.instance is None else self.instance.memory_bytes

    @property
    def fault(self) -> str:
        return self.gpu.fault or ("" if self.instance is None else self.instance.fault)

    @property
    def names(self) -> frozenset[str]:
        return frozenset({self.uuid, self.gpu.uuid, self.gpu.address, str(self.gpu.index)})


class CudaPlugin(AcceleratorPlugin):
    """Slots ``cuda.device`` or ``cuda.shares``, and ``cuda.device:<profile>-mig`` for each MIG profile."""

    name = "cuda"

    def __init__(self) -> None:
        self._nvml = Nvml()
        self._sysfs = Sysfs()
        self._mask = Mask()
        self._slot = WHOLE
        self._reserved = 0
        self._inject = "request"
        self._libraries = ""
        self._mps = ""
        self._offers: dict[tuple[str, str], _Offer] = {}

    def configure(self, config: Mapping[str, Any]) -> None:
        """See the module."""
        only_settings(
            config, "include", "exclude", "mode", "reserved", "inject", "driver_libraries", "mps",
            "library", "ignored_xids", "root",
        )  # fmt: skip
        self._mask = Mask.read(config)
        self._slot = _MODES[_one_of("mode", config.get("mode", "device"), tuple(_MODES))]
        self._inject = _one_of("inject", config.get("inject", "request"), _INJECT)
        self._libraries = _folder("driver_libraries", config)
        self._mps = _folder("mps", config)
        if self._libraries and self._inject != "nodes":
            raise ValueError("driver_libraries is given: that needs inject 'nodes'")
        if (self._mps or "reserved" in config) and self._slot != PARTS:
            raise ValueError("mps and reserved need mode 'shares'")
        self._reserved = parse_amount(PARTS, config.get("reserved", 0))
        if self._reserved >= MICRO:
            raise ValueError(f"reserved is {config['reserved']!r}: nothing would be left of a GPU")
        self._nvml = Nvml(str(config.get("library", "")), _xids(config.get("ignored_xids", ())))
        self._sysfs = Sysfs(Path(str(config.get("root", ROOT))))

    def slots(self) -> Sequence[SlotMetadata]:
        """Of what is offered now."""
        return [_metadata(slot) for slot in sorted({offer.slot for offer in self._offers.values()})]

    async def devices(self) -> Sequence[DeviceReport]:
        """GPUs by UUID; one in MIG mode is there only as its instances."""
        gpus = await aside(self._nvml.gpus)
        offers = [offer for gpu in gpus for offer in self._offers_of(gpu)]
        self._offers = {(offer.slot, offer.uuid): offer for offer in offers}
        self._mask.check(self.name, {name for offer in offers for name in offer.names})
        return [self._report(offer) for offer in offers]

    def device_spec(self, shares: Sequence[Share]) -> DeviceSpec:
        """GPUs by UUID, injected as the settings say."""
        held = self._held(shares)
        uuids = tuple(offer.uuid for offer, _ in held)
        visible = ",".join(uuids)
        nodes: tuple[str, ...] = ()
        requests: tuple[RuntimeRequest, ...] = ()
        mounts: tuple[HostMount, ...] = ()
        enforced = {"NVIDIA_VISIBLE_DEVICES": "void"}
        if self._inject == "request":
            requests = (RuntimeRequest("nvidia", uuids, CAPABILITIES),)
            enforced = {"NVIDIA_VISIBLE_DEVICES": visible}
        elif self._inject == "cdi":
            requests = (RuntimeRequest("cdi", tuple(f"nvidia.com/gpu={uuid}" for uuid in uuids)),)
        else:
            nodes = tuple(dict.fromkeys(node for offer, _ in held for node in self._nodes(offer)))
            mounts = (HostMount(self._libraries, LIBRARIES),) if self._libraries else ()
        environ = {
            "GPU_TYPE": self.name,
            "GPU_COUNT": str(len(held)),
            "NVIDIA_DRIVER_CAPABILITIES": "compute,utility",
        }
        limits: dict[str, str] = {}
        smallest = min(amount for _, amount in held)
        if smallest < MICRO:
            # Without a limit JAX takes three quarters of a GPU at once, whoever else is on it.
            environ["XLA_PYTHON_CLIENT_MEM_FRACTION"] = f"{smallest * 0.9 / MICRO:.2f}"
            if self._mps:
                limits = self._mps_limits(held)
                mounts = (*mounts, HostMount(self._mps, self._mps, read_only=False))
        return DeviceSpec(
            devices=tuple(DeviceNode(node) for node in nodes),
            requests=requests,
            mounts=mounts,
            groups=self._sysfs.groups(nodes),
            environ=environ,
            enforced=enforced | limits,
            host_environ={"CUDA_VISIBLE_DEVICES": visible},
        )

    def hidden_spec(self) -> DeviceSpec:
        """No GPU, though NVIDIA's images ask for all and its runtime may be the node's default."""
        return DeviceSpec(
            enforced={"NVIDIA_VISIBLE_DEVICES": "void"},
            host_environ={"CUDA_VISIBLE_DEVICES": "-1"},
        )

    async def measure(self) -> Sequence[Measure]:
        """Utilisation, memory, power and temperature, as far as the driver tells them."""
        gpus = list({offer.gpu.uuid: offer.gpu for offer in self._offers.values()}.values())
        found = await aside(self._nvml.readings, gpus)
        parts = self._slot == PARTS
        users = await aside(self._nvml.processes, gpus) if parts else {}
        return [
            Measure(f"cuda_{name}", kind, unit, found[name], users.get(name, {}))
            for name, (kind, unit) in QUANTITIES.items()
            if name in found
        ]

    def _offers_of(self, gpu: Gpu) -> list[_Offer]:
        if not gpu.partitioned:
            return [_Offer(self._slot, gpu)]
        return [_Offer(f"{WHOLE}:{each.profile}-mig", gpu, each) for each in gpu.instances]

    def _report(self, offer: _Offer) -> DeviceReport:
        masked = self._mask.hides(offer.names)
        reserved = self._reserved if offer.slot == PARTS else 0
        function = self._sysfs.function_at(offer.gpu.address)
        attributes: dict[str, Any] = {
            "number": offer.gpu.index,
            "pci": offer.gpu.address,
            "memory": offer.memory_bytes,
            "compute_capability": offer.gpu.capability,
        }
        if offer.instance is not None:
            attributes |= {"gpu": offer.gpu.uuid, "profile": offer.instance.profile}
        return DeviceReport(
            slot=offer.slot,
            device_id=offer.uuid,
            capacity=0 if masked or offer.fault else MICRO - reserved,
            numa_node=function.numa_node if function else None,
            model=offer.gpu.name,
            attributes=attributes,
            links=tuple(sorted(offer.gpu.links)) if offer.instance is None else (),
            masked=masked,
            reserved=reserved,
            fault=offer.fault,
        )

    def _held(self, shares: Sequence[Share]) -> list[tuple[_Offer, int]]:
        """What is held, as the driver counts it. Raises ``ValueError``."""
        held = []
        for share in shares:
            offer = self._offers.get((share.slot, share.device_id))
            if offer is None:
                raise ValueError(f"{share.slot} {share.device_id} is not there any more")
            held.append((offer, share.amount))
        if len({offer.instance is None for offer, _ in held}) > 1:
            raise ValueError("a container cannot have GPUs and MIG instances at once")
        return sorted(held, key=lambda each: (each[0].gpu.index, each[0].uuid))

    def _nodes(self, offer: _Offer) -> tuple[str, ...]:
        """Device files of a GPU, and for an instance those that open it."""
        number = offer.gpu.index if offer.gpu.minor is None else offer.gpu.minor
        nodes = [f"/dev/nvidia{number}", *self._sysfs.nodes(r"nvidiactl|nvidia-uvm(-tools)?")]
        if offer.instance is not None:
            part = offer.instance
            folder = self._sysfs.root / "proc/driver/nvidia/capabilities" / f"gpu{number}/mig"
            within = folder / f"gi{part.gpu_instance}"
            for path in (within / "access", within / f"ci{part.compute_instance}" / "access"):
                minor = re.search(r"DeviceFileMinor:\s*(\d+)", text(path) or "")
                if minor is None:
                    raise ValueError(f"the driver does not say how {part.uuid} is opened")
                nodes.append(f"/dev/nvidia-caps/nvidia-cap{minor.group(1)}")
        return tuple(nodes)

    def _mps_limits(self, held: Sequence[tuple[_Offer, int]]) -> dict[str, str]:
        """What the MPS daemon holds its clients to."""
        memory = ",".join(
            f"{place}={offer.memory_bytes * amount // MICRO // 2**20}M"
            for place, (offer, amount) in enumerate(held)
        )
        least = min(amount for _, amount in held)
        return {
            "CUDA_MPS_PIPE_DIRECTORY": self._mps,
            "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE": str(max(1, least * 100 // MICRO)),
            "CUDA_MPS_PINNED_DEVICE_MEM_LIMIT": memory,
        }


def _metadata(slot: str) -> SlotMetadata:
    if slot == WHOLE:
        return whole_devices(WHOLE, "GPU", "GPU", ICON)
    if slot == PARTS:
        return SlotMetadata(
            PARTS, "GPU share", "NVIDIA GPU, in parts of a hundredth", "GPU share", "FGPU", ICON,
            quantum=kind_of(PARTS).quantum, round_length=2,
        )  # fmt: skip
    profile = slot.partition(":")[2].removesuffix("-mig")
    return SlotMetadata(
        slot, f"MIG {profile}", f"NVIDIA GPU, MIG instance {profile}", f"MIG {profile}",
        f"MIG {profile}", ICON, type="unique",
    )  # fmt: skip


def _one_of(setting: str, value: Any, allowed: tuple[str, ...]) -> str:
    if value not in allowed:
        raise ValueError(f"{setting} is {value!r}: one of {', '.join(allowed)}")
    return str(value)


def _xids(value: Any) -> list[int]:
    if not isinstance(value, list | tuple) or not all(type(each) is int for each in value):
        raise ValueError(f"ignored_xids is {value!r}: give a list of numbers")
    return list(value)


def _folder(setting: str, config: Mapping[str, Any]) -> str:
    value = config.get(setting, "")
    if value and (not isinstance(value, str) or not Path(value).is_absolute()):
        raise ValueError(f"{setting} is {value!r}: give an absolute path of a folder")
    return str(value)
