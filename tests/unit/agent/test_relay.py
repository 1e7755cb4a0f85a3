"""Who stands at the door of a relay without a token does not keep its manager out for long, nor fill the agent."""

from __future__ import annotations

import asyncio
import contextlib
import socket

from spawner.agent import preamble
from spawner.agent.relay import MOST_STRANGERS, Relay


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"ok\nwelcome")


async def test_strangers_wait_in_bounded_numbers() -> None:
    relay = Relay("token", serve)
    await relay.open("127.0.0.1", 0)
    assert relay._server is not None
    port = relay._server.sockets[0].getsockname()[1]
    waiting = [await asyncio.open_connection("127.0.0.1", port) for _ in range(MOST_STRANGERS)]
    while relay._strangers < MOST_STRANGERS:
        await asyncio.sleep(0)
    reader, late = await asyncio.open_connection("127.0.0.1", port)
    with contextlib.suppress(ConnectionResetError):
        assert await reader.read() == b""
    late.close()
    waiting.pop()[1].close()
    while relay._strangers == MOST_STRANGERS:
        await asyncio.sleep(0)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    await preamble.introduce(reader, writer, "token")
    assert await reader.read() == b"welcome"
    for _, each in (*waiting, (reader, writer)):
        each.close()
    await relay.close()


async def flood(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"ok\n" + bytes(2**24))


async def test_a_manager_that_does_not_read_does_not_keep_a_relay_open() -> None:
    relay = Relay("token", flood)
    await relay.open("127.0.0.1", 0)
    assert relay._server is not None
    port = relay._server.sockets[0].getsockname()[1]
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=64)
    await preamble.introduce(reader, writer, "token")
    async with asyncio.timeout(5):
        while not relay._ended:
            await asyncio.sleep(0)
        (open_one,) = relay._open.values()
        assert open_one.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        await relay.close()
    assert relay._open == {}
    writer.transport.abort()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()


async def test_a_relay_ends_a_connection_that_just_came() -> None:
    relay = Relay("token", serve)
    await relay.open("127.0.0.1", 0)
    assert relay._server is not None
    with socket.create_connection(relay._server.sockets[0].getsockname(), 5) as theirs:
        while not relay._open:
            await asyncio.sleep(0)
        await relay.close()
        theirs.setblocking(False)
        with contextlib.suppress(ConnectionResetError):
            async with asyncio.timeout(5):
                assert await asyncio.get_running_loop().sock_recv(theirs, 1) == b""
