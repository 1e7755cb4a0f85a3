"""What the NVIDIA driver says of its GPUs, through ``nvidia-ml-py``. All of it blocks."""

from __future__ import annotations

import contextlib
import ctypes
import logging
import re
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import pynvml as _library

from spawner.accelerators.gpu_health import Health
from spawner.accelerators.measures import Reading

pynvml: Any = _library
"""It has no types."""
T = TypeVar("T")
log = logging.getLogger(__name__)

_ABSENT = (pynvml.NVMLError_LibraryNotFound, pynvml.NVMLError_DriverNotLoaded)
_SWITCH = 2
"""What is at the other end of a link to an NVSwitch (``NVML_NVLINK_DEVICE_TYPE_SWITCH``)."""


@dataclass(frozen=True, slots=True)
class Instance:
    """A MIG device: a part of a GPU that works like one."""

    uuid: str
    profile: str
    """``1g.10gb``."""
    memory_bytes: int
    gpu_instance: int | None
    compute_instance: int | None
    fault: str = ""


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU."""

    index: int
    uuid: str
    name: str
    minor: int | None
    address: str
    """PCI address as the kernel writes it."""
    memory_bytes: int
    capability: str
    partitioned: bool
    """In MIG mode: it offers its instances and not itself."""
    instances: tuple[Instance, ...] = ()
    links: frozenset[str] = frozenset()
    """UUIDs of GPUs that NVLink joins it to, directly or through a switch."""
    fault: str = ""
    """Why it is not to be used, if anything; its instances too then."""


class Nvml:
    """The library once it is loaded. A driver that is not there makes everything empty."""

    def __init__(self, library: str = "", ignored: Collection[int] = ()) -> None:
        """``ignored``: XIDs that are no fault of a GPU."""
        self._library = library
        self._ready = False
        self._complaint = ""
        self._health = Health(ignored)
        self._known: dict[int, Gpu] = {}
        """By number, as each was when it last answered."""
        self._lost: set[int] = set()
        self._sampled: dict[str, int] = {}
        """By UUID the time of the newest sample that was read."""

    def gpus(self) -> list[Gpu]:
        """All GPUs in the driver's order; one that fell off the bus as it was last known, with a fault."""
        if not self._begin():
            return []
        try:
            count = int(pynvml.nvmlDeviceGetCount())
        except pynvml.NVMLError as error:
            self._end(error)
            return []
        self._health.look()
        found, ends = [], []
        for index in range(count):
            try:
                handle = pynvml.nvmlDeviceGetHandleByIndex(index)
                gpu = self._examined(_gpu(index, handle), handle)
                found.append(gpu)
                ends.append(_ends(handle))
                self._known[index] = gpu
                self._lost.discard(index)
            except pynvml.NVMLError as error:
                known = self._known.get(index)
                if index not in self._lost:
                    self._lost.add(index)
                    log.warning("NVIDIA GPU %d does not answer: %s", index, error)
                if known is not None:
                    self._health.unfollow(known.uuid)
                    found.append(replace(known, fault=f"it does not answer: {error}"))
                    ends.append(set())
        return _joined(found, ends)

    def _examined(self, gpu: Gpu, handle: Any) -> Gpu:
        """A GPU that answers, with what is wrong with it or with instances of it."""
        self._health.follow(gpu.uuid, handle)
        parts = tuple(
            replace(part, fault=self._health.fault_of_part(gpu.uuid, part.gpu_instance))
            for part in gpu.instances
        )
        return replace(gpu, instances=parts, fault=self._health.fault(gpu.uuid, handle))

    def readings(self, gpus: list[Gpu]) -> dict[str, dict[str, Reading]]:
        """Quantity (``util``, ``mem``, ``power``, ``temperature``) to UUID to reading."""
        found: dict[str, dict[str, Reading]] = {}
        if not self._begin():
            return found
        for gpu in gpus:
            handle = _ask(pynvml.nvmlDeviceGetHandleByUUID, gpu.uuid)
            if handle is None:
                continue
            for name, reading in _of_gpu(handle):
                for uuid in _whose(gpu, name):
                    found.setdefault(name, {})[uuid] = reading
            for instance in gpu.instances:
                part = _ask(pynvml.nvmlDeviceGetHandleByUUID, instance.uuid)
                memory = None if part is None else _ask(pynvml.nvmlDeviceGetMemoryInfo, part)
                if memory is not None:
                    found.setdefault("mem", {})[instance.uuid] = Reading(memory.used, memory.total)
        return found

    def processes(self, gpus: list[Gpu]) -> dict[str, dict[str, dict[int, float]]]:
        """Quantity (``util``, ``mem``) to UUID to process id on the node; of whole GPUs only."""
        found: dict[str, dict[str, dict[int, float]]] = {}
        if not self._begin():
            return found
        for gpu in gpus:
            handle = None if gpu.partitioned else _ask(pynvml.nvmlDeviceGetHandleByUUID, gpu.uuid)
            running = None if handle is None else _running(handle)
            if running is not None:
                found.setdefault("mem", {})[gpu.uuid] = running
                if not running:
                    found.setdefault("util", {})[gpu.uuid] = {}
                elif (busy := self._busy(gpu.uuid, handle)) is not None:
                    found.setdefault("util", {})[gpu.uuid] = busy
        return found

    def _busy(self, uuid: str, handle: Any) -> dict[int, float] | None:
        """Percent by process since the last look; None where the driver does not tell."""
        if _ask(pynvml.nvmlDeviceGetMPSComputeRunningProcesses_v3, handle):
            return None  # what MPS does for its clients is put down to its server
        since = self._sampled.get(uuid, 0)
        try:
            samples = pynvml.nvmlDeviceGetProcessUtilization(handle, since)
        except pynvml.NVMLError_NotFound:  # no process used it since
            return {}
        except pynvml.NVMLError:
            return None
        # Places that the driver left empty have the time 0.
        fresh = sorted((s for s in samples if s.timeStamp > since), key=lambda s: s.timeStamp)
        self._sampled[uuid] = max((int(s.timeStamp) for s in fresh), default=since)
        return {int(s.pid): float(s.smUtil) for s in fresh}

    def _begin(self) -> bool:
        """Load and start the library unless it is; False where there is none, or no driver."""
        if self._ready:
            return True
        try:
            if self._library:
                # By its soname it is then found for nvidia-ml-py too, which has no setting for it.
                ctypes.CDLL(self._library, mode=ctypes.RTLD_GLOBAL)
            pynvml.nvmlInit()
        except (pynvml.NVMLError, OSError) as error:
            self._complain(error)
            return False
        self._ready, self._complaint = True, ""
        self._health.begin()
        return True

    def _complain(self, error: Exception) -> None:
        """Say once why there are no GPUs, aloud where that is no plain absence of hardware and driver."""
        plain = isinstance(error, _ABSENT) or (isinstance(error, OSError) and not self._library)
        if plain:
            log.debug("no NVIDIA GPUs: %s", error)
        elif str(error) != self._complaint:
            self._complaint = str(error)
            log.warning("NVIDIA's driver library does not start: %s", error)

    def _end(self, error: Exception) -> None:
        """The driver went away or was replaced: begin again next time."""
        log.warning("the NVIDIA driver does not answer: %s", error)
        self._ready, self._known = False, {}
        with contextlib.suppress(pynvml.NVMLError):
            pynvml.nvmlShutdown()


def kernel_address(bus_id: str) -> str:
    """A PCI address as the kernel writes it: NVML's domain has eight digits."""
    domain, _, rest = bus_id.lower().partition(":")
    return f"{int(domain, 16):04x}:{rest}"


def _ask(question: Callable[..., T], *arguments: Any) -> T | None:
    """An answer, or None where this GPU or driver has none."""
    try:
        return question(*arguments)
    except pynvml.NVMLError:
        return None


def _gpu(index: int, handle: Any) -> Gpu:
    mode = _ask(pynvml.nvmlDeviceGetMigMode, handle)
    partitioned = mode is not None and mode[0] == pynvml.NVML_DEVICE_MIG_ENABLE
    capability = _ask(pynvml.nvmlDeviceGetCudaComputeCapability, handle)
    return Gpu(
        index=index,
        uuid=str(pynvml.nvmlDeviceGetUUID(handle)),
        name=str(pynvml.nvmlDeviceGetName(handle)),
        minor=_ask(pynvml.nvmlDeviceGetMinorNumber, handle),
        address=kernel_address(_text(pynvml.nvmlDeviceGetPciInfo(handle).busId)),
        memory_bytes=int(pynvml.nvmlDeviceGetMemoryInfo(handle).total),
        capability=".".join(str(part) for part in capability) if capability else "",
        partitioned=partitioned,
        instances=tuple(_instances(handle)) if partitioned else (),
    )


def _instances(handle: Any) -> Iterator[Instance]:
    for place in range(_ask(pynvml.nvmlDeviceGetMaxMigDeviceCount, handle) or 0):
        part = _ask(pynvml.nvmlDeviceGetMigDeviceHandleByIndex, handle, place)
        if part is None:
            continue  # numbers of instances have gaps
        uuid, name = _ask(pynvml.nvmlDeviceGetUUID, part), _ask(pynvml.nvmlDeviceGetName, part)
        facts = _ask(pynvml.nvmlDeviceGetAttributes_v2, part)
        if uuid is None or facts is None:
            continue
        named = re.search(r"MIG (\S+)", str(name or ""))
        gibibytes = max(1, round(facts.memorySizeMB / 1024))
        profile = named.group(1) if named else f"{facts.gpuInstanceSliceCount}g.{gibibytes}gb"
        yield Instance(
            uuid=str(uuid),
            profile=re.sub(r"[^a-z0-9.]+", ".", profile.lower()).strip("."),
            memory_bytes=int(facts.memorySizeMB) * 1024 * 1024,
            gpu_instance=_ask(pynvml.nvmlDeviceGetGpuInstanceId, part),
            compute_instance=_ask(pynvml.nvmlDeviceGetComputeInstanceId, part),
        )


def _ends(handle: Any) -> set[str]:
    """What is at the other ends of a GPU's active links: addresses of GPUs, or ``switch``."""
    ends: set[str] = set()
    for link in range(pynvml.NVML_NVLINK_MAX_LINKS):
        if _ask(pynvml.nvmlDeviceGetNvLinkState, handle, link) != 1:
            continue
        if _ask(pynvml.nvmlDeviceGetNvLinkRemoteDeviceType, handle, link) == _SWITCH:
            ends.add("switch")
            continue
        remote = _ask(pynvml.nvmlDeviceGetNvLinkRemotePciInfo, handle, link)
        if remote is not None and _text(remote.busId):
            ends.add(kernel_address(_text(remote.busId)))
    return ends


def _joined(gpus: list[Gpu], ends: list[set[str]]) -> list[Gpu]:
    """GPUs with their peers: those at the ends of their links, and all behind the same switches."""
    switched = {gpu.uuid for gpu, own in zip(gpus, ends, strict=True) if "switch" in own}
    joined = []
    for gpu, own in zip(gpus, ends, strict=True):
        peers = {other.uuid for other in gpus if other.address in own}
        if gpu.uuid in switched:
            peers |= switched
        joined.append(replace(gpu, links=frozenset(peers - {gpu.uuid})))
    return joined


def _of_gpu(handle: Any) -> Iterator[tuple[str, Reading]]:
    use = _ask(pynvml.nvmlDeviceGetUtilizationRates, handle)
    if use is not None:
        yield "util", Reading(float(use.gpu), 100.0)
    memory = _ask(pynvml.nvmlDeviceGetMemoryInfo, handle)
    if memory is not None:
        yield "mem", Reading(float(memory.used), float(memory.total))
    power = _ask(pynvml.nvmlDeviceGetPowerUsage, handle)
    if power is not None:
        limit = _ask(pynvml.nvmlDeviceGetEnforcedPowerLimit, handle)
        yield "power", Reading(power / 1000, None if limit is None else limit / 1000)
    heat = _ask(pynvml.nvmlDeviceGetTemperature, handle, pynvml.NVML_TEMPERATURE_GPU)
    if heat is not None:
        yield "temperature", Reading(float(heat))


def _running(handle: Any) -> dict[int, float] | None:
    """Memory by process; None where the driver does not tell processes apart."""
    computing = _ask(pynvml.nvmlDeviceGetComputeRunningProcesses_v3, handle)
    drawing = _ask(pynvml.nvmlDeviceGetGraphicsRunningProcesses_v3, handle) or []
    if computing is None or any(each.usedGpuMemory is None for each in computing):
        return None
    # One that does both is in both lists, with all its memory in each.
    return {int(each.pid): float(each.usedGpuMemory or 0) for each in (*drawing, *computing)}


def _whose(gpu: Gpu, quantity: str) -> tuple[str, ...]:
    """Devices that a reading of the whole GPU holds for; of instances only how hot it is."""
    if not gpu.partitioned:
        return (gpu.uuid,)
    if quantity == "temperature":
        return tuple(instance.uuid for instance in gpu.instances)
    return ()


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
