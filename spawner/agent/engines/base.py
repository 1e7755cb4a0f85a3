"""The interface of an engine and the facts it reports. Conformance tests: ``tests/integration/engines``.

Every method may be called again after it was interrupted anywhere: the outcome is the same as
calling it once. Objects of the engine carry ``Identity`` (as labels or a file), so that an agent that
restarts finds everything it made with ``list``; objects without our labels are never touched.
"""

from __future__ import annotations

import abc
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from spawner.accelerators.specification import DeviceNode, HostMount, RuntimeRequest
from spawner.agent.logs import pack
from spawner.agent.protocol import ImagePull, ImageReport, KernelSpec, Network, Share
from spawner.agent.substitution import Substitution


@dataclass(frozen=True, slots=True)
class Identity:
    """Names one run of one kernel; written on everything that an engine creates for it."""

    kernel_id: str
    session_id: str
    epoch: int


@dataclass(frozen=True, slots=True)
class Limits:
    """What the kernel may use, derived from its shares by the accelerator plug-ins."""

    cpu_quota: float | None = None
    """CPUs' worth of time."""
    cpuset: str | None = None
    memory_bytes: int | None = None
    shm_bytes: int = 64 * 1024 * 1024
    pids: int = 4096
    environ: Mapping[str, str] = field(default_factory=dict)
    """Defaults; what the session sets itself wins."""
    enforced: Mapping[str, str] = field(default_factory=dict)
    """Variables that win over the session's."""
    host_environ: Mapping[str, str] = field(default_factory=dict)
    """Beside ``environ``, of engines that hide no device of the node."""
    devices: tuple[DeviceNode, ...] = ()
    requests: tuple[RuntimeRequest, ...] = ()
    driver_mounts: tuple[HostMount, ...] = ()
    groups: tuple[int, ...] = ()
    """Supplementary groups, that ``devices`` can be opened."""
    cgroup_rules: tuple[str, ...] = ()
    locked_memory: bool = False


@dataclass(frozen=True, slots=True)
class BoundMount:
    """A mount whose source the agent has resolved and checked on this host."""

    source: str
    target: str
    read_only: bool


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a port of a kernel is reached from the proxy."""

    name: str
    protocol: str
    container_port: int
    host: str
    port: int


@dataclass(frozen=True, slots=True)
class EngineState:
    """What the engine knows of one kernel's container or process."""

    identity: Identity
    phase: str
    """``created``, ``running`` or ``exited``."""
    native_id: str
    endpoints: tuple[Endpoint, ...]
    shares: tuple[Share, ...]
    started_at: float | None = None
    exit_code: int | None = None
    oom_killed: bool = False
    engine_died: bool = False
    """It ended because the engine did, by no fault of its own."""
    ended_at: float | None = None
    """When it ended, by the node's clock, where the engine knows."""


@dataclass(frozen=True, slots=True)
class EngineEvent:
    """Something happened to a kernel; the agent looks again. ``what``: ``exited`` or ``removed``."""

    identity: Identity
    what: str


@dataclass(frozen=True, slots=True)
class Measured:
    """Counters of one kernel as the engine has them, totals since it started."""

    cpu_seconds: float
    memory_bytes: int
    """In use now, without the page cache that can be given back at once."""
    io_read_bytes: int
    io_write_bytes: int
    net_rx_bytes: int
    net_tx_bytes: int
    scratch_bytes: int | None = None
    """In its temporary folder."""
    processes: int | None = None
    """Processes and threads."""
    connections: int | None = None
    """TCP connections from outside the session that were open at some time since the last measure."""


@dataclass(frozen=True, slots=True)
class Process:
    """One process of a kernel; ``pid`` as the kernel itself sees it."""

    pid: int
    name: str
    command: str
    """With its arguments."""
    cpu_seconds: float
    memory_bytes: int


class Exec(abc.ABC):
    """A program that was started in a kernel, with its streams."""

    @abc.abstractmethod
    async def read(self) -> bytes:
        """The next output (stdout and stderr as they come); empty when it ended."""

    @abc.abstractmethod
    async def write(self, data: bytes) -> None:
        """Give it input."""

    @abc.abstractmethod
    async def resize(self, rows: int, columns: int) -> None:
        """Tell its terminal the size; harmless without a terminal."""

    @abc.abstractmethod
    async def close(self) -> None:
        """Let go of its streams, which ends a terminal's program by SIGHUP."""

    @abc.abstractmethod
    async def exit_code(self) -> int | None:
        """Its exit status, None while it runs."""


class EngineError(Exception):
    """The engine refused or failed; the sentence is for the user, ``retriable`` for the agent."""

    def __init__(self, message: str, *, retriable: bool = False) -> None:
        super().__init__(message)
        self.retriable = retriable


class Engine(abc.ABC):
    """Runs kernels. Implementations are chosen by entry point ``perijove.engines``."""

    name: str

    @abc.abstractmethod
    async def open(self, config: Mapping[str, Any]) -> None:
        """Connect and prepare (networks, folders). Raises ``EngineError`` if it cannot work here."""

    @abc.abstractmethod
    async def close(self) -> None:
        """Let go of connections; running kernels go on."""

    @abc.abstractmethod
    async def images(self) -> tuple[ImageReport, ...]:
        """Images that a kernel can be created from now."""

    @abc.abstractmethod
    async def ensure_image(self, name: str, pull: ImagePull | None = None) -> AsyncIterator[str]:
        """Make ``name`` present, yielding progress sentences; raises ``EngineError`` if it cannot.

        Whoever stops listening takes nothing from others who wait for the same image.
        """
        yield ""

    @abc.abstractmethod
    async def create(
        self, spec: KernelSpec, limits: Limits, mounts: tuple[BoundMount, ...]
    ) -> EngineState:
        """Create (not start) the container of ``spec``; returns the present one if it is there."""

    @abc.abstractmethod
    async def start(self, identity: Identity) -> EngineState:
        """Start what was created; harmless when it runs already."""

    @abc.abstractmethod
    async def stop(self, identity: Identity, grace: float) -> None:
        """End it: SIGTERM, after ``grace`` seconds SIGKILL; returns when nothing of it runs."""

    @abc.abstractmethod
    async def remove(self, identity: Identity) -> None:
        """Remove container, scratch and ports of a stopped kernel; harmless when nothing is there."""

    @abc.abstractmethod
    async def list(self) -> tuple[EngineState, ...]:
        """Everything of ours, in any phase."""

    async def phases(self) -> Mapping[Identity, str]:
        """The phase of everything of ours. Asked often: an engine with a cheaper way than ``list`` takes it."""
        return {state.identity: state.phase for state in await self.list()}

    @abc.abstractmethod
    async def inspect(self, identity: Identity) -> EngineState | None:
        """State of one kernel, or None when nothing of it exists."""

    @abc.abstractmethod
    async def logs(self, identity: Identity, tail: int) -> str:
        """The last ``tail`` lines of its output (stdout and stderr, as the engine received them)."""

    @abc.abstractmethod
    def events(self) -> AsyncIterator[EngineEvent]:
        """Hints that something changed; may miss some, so the agent also lists on a slow tick."""

    @abc.abstractmethod
    async def session_address(self) -> str:
        """The host address that sessions of this engine use to reach hub and manager."""

    # What follows is optional: an engine that lacks it says so.

    async def output(self, identity: Identity) -> bytes:
        """What is kept of the output of a run that ended (``spawner.agent.logs.pack``)."""
        return pack([(await self.logs(identity, 10_000)).encode()])

    async def features(self) -> Mapping[str, Any]:
        """What this engine can do besides running kernels, for ``Hello.features``."""
        return {}

    async def keep_networks(self, networks: tuple[Network, ...], deployment: str) -> bool:
        """Make these networks of sessions; remove others of ours that no kernel uses any more.

        Networks beyond this node belong to ``deployment``. Harmless when repeated; False: something is
        left to do, so look again soon. Raises ``EngineError``.
        """
        if networks:
            raise self._cannot("connect the containers of a session")
        return True

    async def ping(self) -> None:
        """Return soon if the engine is well, else raise ``EngineError``."""
        return

    async def networks(self, deployment: str) -> tuple[str, ...]:
        """Names of the networks of sessions that ``keep_networks`` would keep or remove."""
        return ()

    async def leftovers(self) -> tuple[str, ...]:
        """For the audit, a sentence each: what is kept for runs that are gone, and runs that nothing confines."""
        return ()

    async def execute(
        self,
        identity: Identity,
        argv: Sequence[str],
        *,
        environ: Mapping[str, str] | None = None,
        terminal: bool = False,
    ) -> Exec:
        """Start a program in a running kernel, as its user. Raises ``EngineError``."""
        raise self._cannot("start further programs in a session")

    async def reach(self, identity: Identity, port: int) -> tuple[str, int]:
        """Host and port at which this host (nobody else) reaches a port inside a running kernel."""
        raise self._cannot("reach further ports of a session")

    async def tokens(self, identity: Identity, port: int) -> Substitution:
        """The tokens of a program that shall listen on a port inside a running kernel.

        ``reach`` of the same port leads to it, also for another object of the engine.
        """
        raise self._cannot("reach further ports of a session")

    async def measure(self) -> Mapping[Identity, Measured]:
        """Counters of all running kernels; those that cannot be read are left out."""
        return {}

    async def processes(self, identity: Identity) -> tuple[Process, ...]:
        """The processes of a running kernel. Raises ``EngineError``."""
        raise self._cannot("tell the processes of a session")

    async def owners(self, pids: Collection[int]) -> Mapping[int, Identity]:
        """Whose these processes of the node are; those of no kernel are left out."""
        return {}

    async def commit(self, identity: Identity, name: str, labels: Mapping[str, str]) -> ImageReport:
        """Make an image ``name`` of a kernel's file system. Raises ``EngineError``."""
        raise self._cannot("make images of sessions")

    async def remove_image(self, name: str) -> None:
        """Remove an image that no kernel uses; harmless when it is not there. Raises ``EngineError``."""
        raise self._cannot("remove images")

    def _cannot(self, what: str) -> EngineError:
        return EngineError(f"the {self.name} engine cannot {what}")
