"""Apps of sessions that end at the wrong moment, and of programs that are stuck: no port is kept for them."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

import pytest

from spawner.agent import preamble
from spawner.agent.apps import Apps, _output
from spawner.agent.calls import Calls
from spawner.agent.engines.base import Exec, Identity
from spawner.agent.ports import PortPool
from spawner.agent.protocol import Call
from spawner.agent.relay import CHUNK, Relay
from spawner.agent.terminals import MOST, Terminals
from tests.harness.engine import MemoryEngine
from tests.unit.agent.test_kernels import DRAINED, IDENTITY, SPEC, Node

SHELL = {"name": "terminal", "protocol": "pty", "port": 0}
STUCK = {"name": "stuck", "protocol": "tcp", "port": 8090}
PORTS = range(31300, 31320)
ENDED = "the session has ended"


class Done(Exec):
    """A program that has ended."""

    async def read(self) -> bytes:
        return b""

    async def write(self, data: bytes) -> None:
        pass

    async def resize(self, rows: int, columns: int) -> None:
        pass

    async def close(self) -> None:
        pass

    async def exit_code(self) -> int | None:
        return 0


class Babbling(Done):
    """A program that printed far too much."""

    left = 1000

    async def read(self) -> bytes:
        self.left -= 1
        return b"x" * CHUNK if self.left > 0 else b"the end" if self.left == 0 else b""


async def test_of_what_an_app_printed_only_the_end_is_read() -> None:
    told = await _output(Babbling())
    assert told.endswith(b"the end")
    assert len(told) <= CHUNK


class Reached(MemoryEngine):
    """Every port of its kernels is ``target``, once somebody may look."""

    def __init__(self, target: tuple[str, int]) -> None:
        super().__init__()
        self.target = target
        self.may_look = asyncio.Event()
        self.may_look.set()
        self.asked, self.ending, self.may_end = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self.may_end.set()

    async def reach(self, identity: Identity, port: int) -> tuple[str, int]:
        self.asked.set()
        await self.may_look.wait()
        return self.target

    async def execute(
        self,
        identity: Identity,
        argv: Sequence[str],
        *,
        environ: Mapping[str, str] | None = None,
        terminal: bool = False,
    ) -> Exec:
        self.ending.set()
        await self.may_end.wait()
        return Done()


class Host:
    """A kernel whose apps lead to a listener that never reads."""

    def __init__(self, listener: socket.socket) -> None:
        self.engine = Reached(listener.getsockname())
        self.node = Node(self.engine)
        self.calls = Calls(self.engine, self.node.kernels)
        self.pool = PortPool(PORTS, 0.0)
        self.apps = Apps(self.engine, self.calls, "127.0.0.1", self.pool)

    async def ask(self, method: str, **params: Any) -> Any:
        answer = await self.calls.answer(Call(1, method, {"kernel_id": SPEC.kernel_id, **params}))
        return answer.error if answer.value is None else answer.value

    async def end(self) -> None:
        self.node.apply(DRAINED)
        self.apps.noticed(await self.node.until("TERMINATED"))


@pytest.fixture
async def host() -> AsyncIterator[Host]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        host = Host(listener)
        await host.node.running()
        yield host
        async with asyncio.timeout(5):
            await host.apps.close()
            await host.node.kernels.close()


async def test_no_app_is_opened_in_a_session_that_ended(host: Host) -> None:
    await host.end()
    assert await host.ask("start_app", app=SHELL) == ENDED
    assert host.apps.kernels() == frozenset()


async def test_an_app_that_is_opened_while_its_session_ends_keeps_no_port(host: Host) -> None:
    host.engine.may_look.clear()
    opening = asyncio.create_task(host.ask("start_app", app=STUCK))
    await host.engine.asked.wait()
    await host.end()
    host.engine.may_look.set()
    assert await opening == ENDED
    assert host.apps.kernels() == frozenset()
    assert len(host.pool._free) == len(PORTS)


async def test_a_stuck_app_can_be_stopped_and_gives_its_port_back(host: Host) -> None:
    opened = await host.ask("start_app", app=STUCK)
    reader, writer = await asyncio.open_connection(opened["host"], opened["port"])
    await preamble.introduce(reader, writer, opened["token"])
    writer.write(bytes(2**24))
    left, same = 0, 0
    async with asyncio.timeout(5):
        while same < 100:  # as much is on its way as there is room for
            await asyncio.sleep(0)
            before, left = left, writer.transport.get_write_buffer_size()
            same = same + 1 if left == before else 0
        assert await host.ask("stop_app", name="stuck") is None
    writer.transport.abort()
    assert len(host.pool._free) == len(PORTS)
    assert dict(host.apps._locks) == {}


async def test_who_opens_an_app_that_is_being_ended_waits_for_its_end(host: Host) -> None:
    host.engine.may_end.clear()
    ending = asyncio.create_task(host.ask("stop_app", name="stuck"))
    await host.engine.ending.wait()
    opening = asyncio.create_task(host.ask("start_app", app=STUCK))
    for _ in range(100):
        await asyncio.sleep(0)
    assert not host.engine.asked.is_set()
    host.engine.may_end.set()
    assert await ending is None
    assert (await opening)["protocol"] == "tcp"


async def test_terminals_that_are_opened_at_once_are_counted_too() -> None:
    class Slow(Reached):
        async def execute(self, *arguments: Any, **named: Any) -> Exec:
            await self.may_look.wait()
            return Done()

    engine = Slow(("", 0))
    engine.may_look.clear()
    relay = Relay("token", Terminals(engine, IDENTITY).serve)
    await relay.open("127.0.0.1", 0)
    assert relay._server is not None
    where = relay._server.sockets[0].getsockname()
    answers = []
    for _ in range(MOST + 2):
        reader, writer = await asyncio.open_connection(*where)
        writer.write(preamble.opening("token"))
        answers.append((reader, writer))
    async with asyncio.timeout(5):
        while relay._ended < 2:
            await asyncio.sleep(0)
        engine.may_look.set()
        told = [await reader.readline() for reader, _ in answers]
    assert (told.count(b"ok\n"), len(told)) == (MOST, MOST + 2)
    for _, writer in answers:
        writer.close()
    await relay.close()
