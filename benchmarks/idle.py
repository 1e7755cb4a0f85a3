"""What an agent costs while nothing happens: CPU time of its processes while its containers sleep.

A real agent process with the Docker engine and default settings; its manager is a WebSocket here that wants a
number of containers and then only listens. Measures, heartbeats and looks at the engine go on as always.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from aiohttp import WSMsgType, web

from benchmarks.reporting import note
from spawner.agent.protocol import (
    MAX_FRAME_BYTES,
    Ack,
    Hello,
    KernelSpec,
    Report,
    Wanted,
    Welcome,
    decode,
    encode,
)

HEARTBEAT, SYNC = 10.0, 30.0
"""What a manager says by default."""
START_WITHIN = 600.0
SETTLE = 15.0
"""Seconds until what the starts left to do is done."""


@dataclass(slots=True)
class Listener:
    """The manager's end of the conversation."""

    specs: Sequence[KernelSpec]
    running: set[str] = field(default_factory=set)
    ended: set[str] = field(default_factory=set)
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    socket: web.WebSocketResponse | None = None

    async def serve(self, request: web.Request) -> web.WebSocketResponse:
        """One connection."""
        socket = self.socket = web.WebSocketResponse(max_msg_size=MAX_FRAME_BYTES)
        await socket.prepare(request)
        async with asyncio.TaskGroup() as tasks:
            syncing = tasks.create_task(self._sync(socket))
            async for frame in socket:
                if frame.type is not WSMsgType.TEXT:
                    continue
                message = decode(frame.data)
                if isinstance(message, Hello):
                    await socket.send_str(encode(Welcome(HEARTBEAT, SYNC)))
                    await self.want(self.specs)
                elif isinstance(message, Report):
                    for report in message.kernels:
                        where = self.ended if report.status == "TERMINATED" else self.running
                        if report.status in ("RUNNING", "TERMINATED"):
                            where.add(report.kernel_id)
                    await socket.send_str(encode(Ack(message.sequence)))
                    self.changed.set()
            syncing.cancel()
        return socket

    async def _sync(self, socket: web.WebSocketResponse) -> None:
        while True:
            await asyncio.sleep(SYNC)
            await self.want(self.specs)

    async def want(self, specs: Sequence[KernelSpec]) -> None:
        """Say what should run; what should not is drained."""
        left = tuple((s.kernel_id, s.epoch) for s in self.specs if s not in specs)
        if self.socket is not None:
            await self.socket.send_str(encode(Wanted(tuple(specs), left)))

    async def until(self, where: set[str]) -> None:
        """Until all containers are in ``where``. Raises ``RuntimeError`` if one ends unasked."""
        async with asyncio.timeout(START_WITHIN):
            while len(where) < len(self.specs):
                await self.changed.wait()
                self.changed.clear()
                if where is self.running and self.ended:
                    raise RuntimeError("a container ended by itself; see the agent's log")


@contextlib.asynccontextmanager
async def agent(root: Path, listener: Listener) -> AsyncIterator[psutil.Process]:
    """An agent process that speaks to ``listener``."""
    app = web.Application()
    app.router.add_get("/agents/connect", listener.serve)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    port = runner.addresses[0][1]
    with (root / "agent.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "hub.app", "agent", "--engine=docker", "--agent-id=idle"),
            f"--manager-url=http://127.0.0.1:{port}",
            f"--state-dir={root / 'idle'}",
            f"--AgentConfig.volumes={{'local': '{root}'}}",
            env={**os.environ, "PERIJOVE_AGENT_TOKEN": "of-the-benchmark"},
            stderr=log,
        )
    try:
        yield psutil.Process(process.pid)
    finally:
        process.terminate()
        await process.wait()
        await runner.cleanup()


def cpu_seconds(process: psutil.Process) -> float:
    """CPU time of a process, its living helpers and those that ended."""
    total = 0.0
    for each in (process, *process.children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess):
            times = each.cpu_times()
            total += times.user + times.system
            if each is process:
                total += times.children_user + times.children_system
    return total


async def idle(root: Path, specs: Sequence[KernelSpec], seconds: float) -> dict[str, object]:
    """Start all, wait, and measure for ``seconds``; then end all."""
    listener = Listener(specs)
    async with agent(root, listener) as process:
        await listener.until(listener.running)
        note(f"{len(specs)} containers run; measuring for {seconds:g} s")
        await asyncio.sleep(SETTLE)
        begin = asyncio.get_running_loop().time()
        before = cpu_seconds(process)
        await asyncio.sleep(seconds)
        used = cpu_seconds(process) - before
        elapsed = asyncio.get_running_loop().time() - begin
        await listener.want(())
        await listener.until(listener.ended)
    percent = 100 * used / elapsed
    note(f"idle: {percent:.2f} percent of a CPU")
    return {
        "containers": len(specs),
        "seconds": round(elapsed, 1),
        "cpu_seconds": round(used, 3),
        "percent_of_a_cpu": round(percent, 3),
    }
