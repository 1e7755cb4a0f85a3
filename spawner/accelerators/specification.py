"""What an allocation of devices means for a kernel, whatever runs it: the engines translate it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class DeviceNode:
    """A device file of the node, passed to the kernel under the same path unless ``target`` says another."""

    path: str
    target: str = ""
    permissions: str = "rw"
    """Of ``r``, ``w`` and ``m`` (make nodes)."""


@dataclass(frozen=True, slots=True)
class RuntimeRequest:
    """Devices that a container runtime injects itself.

    ``driver`` is ``nvidia`` or another driver of the runtime, or ``cdi`` with names of the Container
    Device Interface (``vendor.com/class=name``) as ``device_ids``.
    """

    driver: str
    device_ids: tuple[str, ...]
    capabilities: tuple[tuple[str, ...], ...] = ()
    """Alternatives, each a set of capabilities: ``(("gpu", "compute", "utility"),)``."""
    options: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class HostMount:
    """A folder or file of the node that the vendor's stack needs in the kernel (driver libraries)."""

    source: str
    target: str
    read_only: bool = True


@dataclass(frozen=True, slots=True)
class DeviceSpec:
    """What a kernel that holds some shares gets: limits, devices and environment."""

    cpu_quota: float | None = None
    cpuset: str | None = None
    memory_bytes: int | None = None
    devices: tuple[DeviceNode, ...] = ()
    requests: tuple[RuntimeRequest, ...] = ()
    mounts: tuple[HostMount, ...] = ()
    groups: tuple[int, ...] = ()
    """Supplementary group ids that may open ``devices``."""
    cgroup_rules: tuple[str, ...] = ()
    """Device rules such as ``c 195:* rmw``, for stacks that make their own nodes."""
    locked_memory: bool = False
    """Whether the stack pins memory beyond the usual limit (``ulimit -l``)."""
    environ: Mapping[str, str] = field(default_factory=dict)
    """Defaults; what the session sets itself wins."""
    enforced: Mapping[str, str] = field(default_factory=dict)
    """Variables by which a runtime or a limiter decides; the session cannot change them."""
    host_environ: Mapping[str, str] = field(default_factory=dict)
    """Beside ``environ`` where the engine hides no device (processes): numbers as the node counts them."""
