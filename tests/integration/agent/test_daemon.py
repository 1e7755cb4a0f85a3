"""The daemon in this process, on engines that are slow or unwell, and managers that are."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from msgspec import structs

from spawner.accelerators.registry import Accelerators
from spawner.agent import daemon as agent
from spawner.agent import offering
from spawner.agent.config import AgentConfig
from spawner.agent.daemon import AgentDaemon
from spawner.agent.engines.base import EngineError, Identity
from spawner.agent.metrics import AgentMetrics
from spawner.agent.protocol import Heartbeat, Hello, KernelSpec, decode
from tests.harness.engine import MemoryEngine
from tests.integration.agent.manager import TOKEN, ScriptedManager, scripted_manager
from tests.unit.agent.test_kernels import SPEC

pytestmark = pytest.mark.integration

OTHER = structs.replace(SPEC, kernel_id="33333333-3333-4333-8333-333333333333")
Begin = Callable[[MemoryEngine], AgentDaemon]


@pytest.fixture
async def manager() -> AsyncIterator[ScriptedManager]:
    async with scripted_manager() as running:
        yield running


@pytest.fixture
async def daemon(manager: ScriptedManager, tmp_path: Path) -> AsyncIterator[Begin]:
    running: list[asyncio.Task[None]] = []

    def begin(engine: MemoryEngine) -> AgentDaemon:
        config = AgentConfig(
            manager_url=manager.url, token=TOKEN, state_dir=str(tmp_path), agent_id="n1"
        )
        made = AgentDaemon(config, engine, Accelerators([]), AgentMetrics("n1"))
        running.append(asyncio.create_task(made.run()))
        return made

    yield begin
    for task in running:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


class Reluctant(MemoryEngine):
    """Removes nothing before it may."""

    def __init__(self) -> None:
        super().__init__()
        self.may = asyncio.Event()

    async def remove(self, identity: Identity) -> None:
        await self.may.wait()
        await super().remove(identity)


async def runs(manager: ScriptedManager, spec: KernelSpec) -> None:
    await manager.want(spec)
    await manager.status(spec.kernel_id, "RUNNING", spec.epoch)


async def test_the_manager_is_listened_to_while_what_ended_is_removed(
    daemon: Begin, manager: ScriptedManager
) -> None:
    engine = Reluctant()
    daemon(engine)
    await manager.until(lambda: manager.hellos)
    await runs(manager, SPEC)
    await manager.end(SPEC.kernel_id)
    await manager.status(SPEC.kernel_id, "TERMINATED")
    await runs(manager, OTHER)
    again = structs.replace(SPEC, epoch=2)
    await manager.want(again)
    assert (await manager.call("logs", {"kernel_id": OTHER.kernel_id})).error is None
    assert manager.latest[SPEC.kernel_id].epoch == 1, "the older run is not gone yet"
    engine.may.set()
    await manager.status(SPEC.kernel_id, "RUNNING", 2)


class Moody(MemoryEngine):
    well = True

    async def ping(self) -> None:
        if not self.well:
            raise EngineError("the engine does not answer")


async def test_an_engine_that_falls_ill_before_the_welcome_is_told_of(
    daemon: Begin, manager: ScriptedManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(offering, "LOOK_EVERY", 0.01)
    engine, take = Moody(), manager.take
    told: list[dict[str, object] | None] = []

    async def ill(frame: str) -> None:
        message = decode(frame)
        if isinstance(message, Hello):
            engine.well = False
            async with asyncio.timeout(5):
                while not made.offering._unwell:
                    await asyncio.sleep(0.01)
        elif isinstance(message, Heartbeat):
            told.append(message.features)
        await take(frame)

    manager.take = ill  # type: ignore[method-assign]  # a manager that is slow to answer
    made = daemon(engine)
    await manager.until(lambda: told)
    assert told[0] == {"unwell": "the engine does not answer"}
    assert manager.hellos[0].features == {}


async def test_a_manager_that_ends_before_its_welcome_has_not_refused(
    daemon: Begin, manager: ScriptedManager, caplog: pytest.LogCaptureFixture
) -> None:
    take = manager.take

    async def ends(frame: str) -> None:
        if isinstance(decode(frame), Hello) and not manager.hellos:
            assert manager.connection is not None
            manager.hellos.append(decode(frame))  # type: ignore[arg-type]  # it is one
            manager.connection.close(1001, "the manager stops")
            return
        await take(frame)

    manager.take = ends  # type: ignore[method-assign]  # a manager that is stopped
    daemon(MemoryEngine())
    await manager.until(lambda: len(manager.hellos) == 2, 4)
    assert "the manager stops" in caplog.text
    assert "refuses" not in caplog.text


async def test_a_manager_that_takes_a_connection_and_says_nothing_is_dialled_again(
    daemon: Begin, manager: ScriptedManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agent, "WELCOME_PATIENCE", 0.1)
    again, calls = asyncio.Event(), 0

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal calls
        calls += 1
        if calls == 2:
            again.set()
        await reader.read()
        writer.close()

    server = await asyncio.start_server(silent, "127.0.0.1", 0)
    manager.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    daemon(MemoryEngine())
    await asyncio.wait_for(again.wait(), 5)
    server.close()
