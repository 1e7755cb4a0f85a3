"""Who stands at the door of a relay without a token does not keep its manager out for long, nor fill the agent."""

from __future__ import annotations

import asyncio
import contextlib

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
