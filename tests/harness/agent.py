"""An agent without a node: it speaks the real protocol in memory and pretends to run kernels.

What it "runs" survives its connections and the manager, as containers do. ``starts`` records every
start, so that a test can show that nothing was started twice. Variants misbehave in one way each.
"""

from __future__ import annotations

import asyncio
import datetime as dt
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from spawner.agent.protocol import (
    PROTOCOL_VERSION,
    Ack,
    Answer,
    AnyMessage,
    Call,
    DeviceReport,
    Heartbeat,
    Hello,
    ImageReport,
    KernelReport,
    KernelSpec,
    Message,
    Report,
    Wanted,
    Welcome,
    decode,
    encode,
)
from spawner.scheduler.slots import parse_amount
from spawner.sessions.agents import AgentRegistry

IMAGE = "perijove/base:test"
LABELS = {
    "ai.perijove.label": "Test image",
    "ai.backend.service-ports": "jupyterlab:http:8888",
    "ai.backend.resource.min.cpu": "0.5",
    "ai.backend.resource.min.mem": "256m",
}


class Wire:
    """Both ends of one connection; the manager's end is an ``AgentConnection``."""

    def __init__(self) -> None:
        self._to_manager: asyncio.Queue[str | None] = asyncio.Queue()
        self._to_agent: asyncio.Queue[str | None] = asyncio.Queue()
        self.closed: str | None = None
        """Why the manager closed the connection."""
        self.refused = False
        self.cut = False

    async def send(self, frame: str) -> None:
        if self.cut or self.closed is not None:
            raise ConnectionError("the wire is cut")
        self._to_agent.put_nowait(frame)

    async def receive(self) -> str | None:
        return await self._to_manager.get()

    async def close(self, reason: str, *, refused: bool) -> None:
        if self.closed is None:
            self.refused = refused
            self.closed = reason
            self._to_agent.put_nowait(None)
            self._to_manager.put_nowait(None)

    def agent_sends(self, frame: str) -> None:
        if not self.cut:
            self._to_manager.put_nowait(frame)

    async def agent_receives(self) -> str | None:
        return await self._to_agent.get()

    def hang_up(self) -> None:
        """The network goes away: both ends see the connection end."""
        self.cut = True
        self._to_manager.put_nowait(None)
        self._to_agent.put_nowait(None)


@dataclass
class FakeKernel:
    """One pretended run."""

    spec: KernelSpec
    status: str = "PREPARING"
    exit_code: int | None = None
    failure: str | None = None
    progress: str = ""
    log: str = ""
    healthy: bool | None = None
    ended_at: float | None = None

    @property
    def run(self) -> tuple[str, int]:
        return self.spec.kernel_id, self.spec.epoch


@dataclass
class FakeAgent:
    """Obedient: starts and ends what it is told, at once."""

    agent_id: str = "node-1"
    amounts: Mapping[str, object] = field(default_factory=lambda: {"cpu": "4", "mem": "8g"})
    group: str = "default"
    images: tuple[str, ...] = (IMAGE,)
    image_tasks: list[dict[str, str]] = field(default_factory=list)
    """What it answers when it is asked for its pulls and commits."""
    calls: list[Call] = field(default_factory=list)
    relay: tuple[str, int] = ("127.0.0.1", 9)
    """Where it says that apps can be reached."""
    max_containers: int | None = None
    protocol: int = PROTOCOL_VERSION
    address: str = "127.0.0.1"
    features: Mapping[str, Any] = field(default_factory=dict)

    kernels: dict[tuple[str, int], FakeKernel] = field(default_factory=dict)
    """What "runs" here, by kernel id and epoch."""
    starts: list[tuple[str, int]] = field(default_factory=list)
    highest: dict[str, int] = field(default_factory=dict)
    wanted: Wanted | None = None
    acked: int = 0
    sequence: int = 0
    unacked: dict[int, Report] = field(default_factory=dict)
    welcome: Welcome | None = None
    wire: Wire | None = None
    deaf: bool = False
    """It hears nothing and says nothing, but its connection stays."""
    clock: Callable[[], dt.datetime] | None = None
    heard: float = 0.0
    """When the manager was heard of last, by ``clock``."""
    _tasks: list[asyncio.Task[Any]] = field(default_factory=list)

    async def connect(
        self, registry: AgentRegistry, token: str, names: frozenset[str] | None = None
    ) -> Wire:
        """Dial in; returns at once, ``wire`` tells how it goes on."""
        self.wire = Wire()
        serving = asyncio.create_task(registry.serve(self.wire, token, names))
        self._tasks = [serving, asyncio.create_task(self._listen(self.wire))]
        self.say(self.hello())
        self.report_all()
        return self.wire

    async def disconnect(self) -> None:
        """The network goes away; what runs goes on."""
        if self.wire is not None:
            self.wire.hang_up()
        if self._tasks:
            await asyncio.wait(self._tasks)
        self._tasks = []

    def hello(self) -> Hello:
        return Hello(
            protocol=self.protocol,
            agent_id=self.agent_id,
            resource_group=self.group,
            version="0",
            architecture="x86_64",
            engine="fake",
            address=self.address,
            devices=self.devices(),
            images=tuple(ImageReport(i, "x86_64", None, 1, LABELS) for i in self.images),
            max_containers=self.max_containers,
            features=dict(self.features),
        )

    def devices(self) -> tuple[DeviceReport, ...]:
        """One device for cpu and mem each; one per unit of anything else."""
        found: list[DeviceReport] = []
        for slot, text in self.amounts.items():
            amount = parse_amount(slot, text)
            if slot in ("cpu", "mem"):
                found.append(DeviceReport(slot, slot, amount))
                continue
            found += [
                DeviceReport(slot, f"{slot}-{n}", 1_000_000) for n in range(amount // 1_000_000)
            ]
        return tuple(found)

    def say(self, message: Message) -> None:
        if self.wire is not None and not self.deaf:
            self.wire.agent_sends(encode(message))

    def beat(self, **changes: Any) -> None:
        self.say(Heartbeat(**changes))

    def report(self, *kernels: KernelReport, whole: bool = False) -> int:
        """Send a report; it is kept until it is acknowledged."""
        self.sequence += 1
        report = Report(self.sequence, kernels, whole)
        self.unacked[self.sequence] = report
        self.say(report)
        return self.sequence

    def report_all(self) -> None:
        """The whole report after each hello, with all that was not acknowledged before."""
        for number in sorted(self.unacked):
            self.say(self.unacked[number])
        self.report(*(self.seen(kernel) for kernel in self.kernels.values()), whole=True)

    def seen(self, kernel: FakeKernel) -> KernelReport:
        spec, up = kernel.spec, kernel.status == "RUNNING"
        return KernelReport(
            kernel_id=spec.kernel_id,
            session_id=spec.session_id,
            epoch=spec.epoch,
            status=kernel.status,
            progress=kernel.progress,
            container_id=f"c-{spec.kernel_id[:8]}-{spec.epoch}",
            url=f"http://{self.address}:40000" if up else None,
            shares=spec.shares,
            exit_code=kernel.exit_code,
            failure=kernel.failure,
            ended_at=kernel.ended_at,
            log_tail=kernel.log,
            healthy=kernel.healthy,
        )

    def move(self, kernel: FakeKernel, status: str, **changes: Any) -> None:
        """Give a pretended run another status and report it."""
        kernel.status = status
        for name, value in changes.items():
            setattr(kernel, name, value)
        if status == "TERMINATED":
            self.kernels.pop(kernel.run, None)
        self.report(self.seen(kernel))
        if (
            status == "TERMINATED"
            and self.wanted is not None
            and kernel.run[1]
            < max(
                (spec.epoch for spec in self.wanted.kernels if spec.kernel_id == kernel.run[0]),
                default=0,
            )
        ):
            self.start_wanted(self.wanted)

    def fence(self) -> None:
        """End runs whose lease is over."""
        silent = 0.0 if self.clock is None else self.clock().timestamp() - self.heard
        for kernel in list(self.kernels.values()):
            if kernel.spec.lease is not None and silent >= kernel.spec.lease:
                self.wanted = None
                self.move(kernel, "TERMINATED", failure="fenced")

    def end(self, kernel_id: str, code: int = 0, failure: str = "exited", log: str = "") -> None:
        """A kernel ends by itself."""
        kernel = next(k for k in self.kernels.values() if k.spec.kernel_id == kernel_id)
        self.move(kernel, "TERMINATED", exit_code=code, failure=failure, log=log)

    async def _listen(self, wire: Wire) -> None:
        while (frame := await wire.agent_receives()) is not None:
            if not self.deaf:
                await self.hear(decode(frame))

    async def hear(self, message: AnyMessage) -> None:
        if isinstance(message, Welcome):
            self.welcome = message
        elif isinstance(message, Ack):
            self.acked = message.sequence
            for number in [n for n in self.unacked if n <= message.sequence]:
                del self.unacked[number]
        elif isinstance(message, Call):
            self.answer(message)
        elif isinstance(message, Wanted):
            self.wanted = message
            self.heard = 0.0 if self.clock is None else self.clock().timestamp()
            self.obey(message)

    def answer(self, call: Call) -> None:
        value: Any = None
        if call.method == "logs":
            value = f"line of {call.params['kernel_id']}\n" * call.params["tail"]
        elif call.method == "image_tasks":
            value = self.image_tasks
        elif call.method == "start_app":
            host, port = self.relay
            protocol = call.params["app"]["protocol"]
            value = {"host": host, "port": port, "token": "relay", "protocol": protocol}
        self.calls.append(call)
        self.say(Answer(call.call_id, value))

    def obey(self, wanted: Wanted) -> None:
        """Make reality match."""
        runs = {(spec.kernel_id, spec.epoch) for spec in wanted.kernels}
        for run in wanted.drain:
            self.drain(run)
        for run in [run for run in self.kernels if run not in runs]:
            self.drain(run)
        self.start_wanted(wanted)

    def start_wanted(self, wanted: Wanted) -> None:
        """Start what is wanted and does not run; never beside another run of the same kernel."""
        for spec in wanted.kernels:
            run = (spec.kernel_id, spec.epoch)
            if any(kernel_id == spec.kernel_id for kernel_id, _ in self.kernels):
                continue
            if self.highest.get(spec.kernel_id, -1) >= spec.epoch:
                continue
            self.highest[spec.kernel_id] = spec.epoch
            self.starts.append(run)
            self.kernels[run] = FakeKernel(spec)
            self.start(self.kernels[run])

    def start(self, kernel: FakeKernel) -> None:
        """How a start goes here."""
        self.move(kernel, "PREPARING", progress="image is there")
        self.move(kernel, "CREATING", progress="creating the container")
        self.move(kernel, "RUNNING", progress="")

    def drain(self, run: tuple[str, int]) -> None:
        kernel = self.kernels.get((run[0], run[1]))
        if kernel is None:
            self.report(KernelReport(run[0], run[0], run[1], "TERMINATED"))
            return
        self.stop(kernel)

    def stop(self, kernel: FakeKernel) -> None:
        """How an end goes here."""
        self.move(kernel, "TERMINATED", exit_code=0)


class SlowAgent(FakeAgent):
    """Starts nothing and ends nothing until the test moves the kernel on."""

    def start(self, kernel: FakeKernel) -> None:
        self.move(kernel, "PREPARING", progress="pulling the image: 10%")

    def stop(self, kernel: FakeKernel) -> None:
        self.move(kernel, "TERMINATING")

    def drain(self, run: tuple[str, int]) -> None:
        kernel = self.kernels.get((run[0], run[1]))
        if kernel is None or kernel.status != "TERMINATING":
            super().drain(run)

    def finish(self) -> None:
        """Go on with everything: starts come up, ends end."""
        for kernel in list(self.kernels.values()):
            if kernel.status == "TERMINATING":
                self.move(kernel, "TERMINATED", exit_code=0)
            elif kernel.status != "RUNNING":
                self.move(kernel, "CREATING", progress="creating the container")
                self.move(kernel, "RUNNING", progress="")


class RefusingAgent(FakeAgent):
    """Can create no container."""

    def start(self, kernel: FakeKernel) -> None:
        self.move(
            kernel,
            "TERMINATED",
            failure="create-failed",
            progress="no space left on device",
            log="first line\nlast line",
        )


class CrashingAgent(FakeAgent):
    """Every container ends as soon as it was created."""

    def start(self, kernel: FakeKernel) -> None:
        self.move(kernel, "CREATING", progress="creating the container")
        self.move(kernel, "TERMINATED", failure="exited", exit_code=3, log="Traceback\nboom")


async def hang_up_all(*agents: FakeAgent) -> None:
    """Disconnect, for the end of a test."""
    for agent in agents:
        with suppress(ConnectionError):
            await agent.disconnect()
