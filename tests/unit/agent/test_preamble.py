"""The line before an app's bytes, over real sockets: who does not say it gets nowhere."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from spawner.agent import preamble
from spawner.agent.relay import Relay

TOKEN = "the-token-of-this-app"


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"ok\n")
    while data := await reader.read(100):
        writer.write(data)


async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(preamble.refusal("it is\nnot there"))


@pytest.fixture
async def port() -> AsyncIterator[int]:
    relay = Relay(TOKEN, echo)
    await relay.open("127.0.0.1", 0)
    assert relay._server is not None
    yield relay._server.sockets[0].getsockname()[1]
    await relay.close()


async def test_who_knows_the_token_is_let_in(port: int) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    await preamble.introduce(reader, writer, TOKEN)
    writer.write(b"hello")
    assert await reader.readexactly(5) == b"hello"
    writer.close()
    await writer.wait_closed()


@pytest.mark.parametrize(
    "said",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"PERIJOVE/1 wrong\n",
        b"PERIJOVE/1 the-token-of-this-ap\n",
        b"PERIJOVE/1 the-token-of-this-app",
        b"\n",
        b"x" * 200_000,
    ],
)
async def test_others_reach_nothing(port: int, said: bytes) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(said)
        writer.write_eof()
        answer = await reader.read()
    except ConnectionError:  # it was closed while we still wrote
        answer = b""
    assert answer in (b"no wrong token\n", b"")
    writer.close()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()


async def test_a_refusal_is_told() -> None:
    relay = Relay(TOKEN, refuse)
    await relay.open("127.0.0.1", 0)
    assert relay._server is not None
    port = relay._server.sockets[0].getsockname()[1]
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    with pytest.raises(preamble.Refused, match="it is not there"):
        await preamble.introduce(reader, writer, TOKEN)
    writer.close()
    await writer.wait_closed()
    await relay.close()


async def test_frames_of_terminals() -> None:
    reader = asyncio.StreamReader()
    reader.feed_data(preamble.frame(preamble.DATA, b"ls\r") + preamble.size_frame(24, 80))
    assert await preamble.read_frame(reader) == (b"d", b"ls\r")
    assert await preamble.read_frame(reader) == (b"r", b"24 80")
    reader.feed_eof()
    assert await preamble.read_frame(reader) is None
    nonsense = asyncio.StreamReader()
    nonsense.feed_data(b"z\0\0\0\0")
    with pytest.raises(preamble.Refused):
        await preamble.read_frame(nonsense)
