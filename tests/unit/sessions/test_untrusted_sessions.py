"""What comes out of a session is made by whoever works in it: it is bounded, and never a fault of ours."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest

from authenticator.principals import Principal, Role, Via
from authenticator.problems import AgentUnavailable, InvalidParameters
from spawner.agent.preamble import DATA, EXIT, frame
from spawner.sessions import execution, files
from spawner.sessions.execution import APP, KEY, ExecutionService
from spawner.sessions.files import SessionFiles
from spawner.sessions.opening import AppService, Opened, Streams, Wish
from spawner.sessions.tables import KernelRow

ADA = Principal(uuid.uuid4(), "ada", "ada@localhost", Role.USER, "default", "AKIA", Via.KEYPAIR)
LIST = ("-rw-r--r-- 3 1.5 1.5 1.5 a\0", "drwxr-xr-x 4 2.5 2.5 2.5 b c\0")


class Session(AppService):
    """A session that says what it is told to say, whatever it is asked."""

    def __init__(self, port: int) -> None:
        self._port = port

    async def kernel(self, principal: Principal, ref: str) -> KernelRow:
        return KernelRow(spec={"environ": {KEY: "key"}, "apps": [{"name": APP}]})

    async def connect(self, principal: Principal, ref: str, wish: Wish) -> Streams:
        return await asyncio.open_connection("127.0.0.1", self._port)

    async def run(self, kernel: KernelRow, argv: Sequence[str]) -> Streams:
        return await asyncio.open_connection("127.0.0.1", self._port)


@asynccontextmanager
async def saying(words: Callable[[], Any], *, silent: bool = False) -> AsyncIterator[Session]:
    """A session that says ``words`` and goes, or says no more."""
    over = asyncio.Event()

    async def say(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            for word in words():
                writer.write(word)
                await writer.drain()
            if silent:
                await over.wait()
            writer.write_eof()
            await reader.read()
        except OSError:
            pass  # nobody listens any more
        finally:
            writer.close()

    async with await asyncio.start_server(say, "127.0.0.1", 0) as server:
        yield Session(server.sockets[0].getsockname()[1])
        over.set()


def said(*texts: str, code: str = "0") -> Callable[[], Any]:
    """Frames of a program that says ``texts`` and ends."""
    words = [*(frame(DATA, text.encode()) for text in texts), frame(EXIT, code.encode())]
    return lambda: words


def endless(text: str, count: int) -> Callable[[], Any]:
    return lambda: (frame(DATA, text.encode()) for _ in range(count))


async def test_a_list_is_read() -> None:
    async with saying(said("ok\n/home/work\0", *LIST)) as session:
        where, entries = await SessionFiles(session).entries(ADA, "mine", ".")
    assert where == "/home/work"
    assert [(each["filename"], each["size"]) for each in entries] == [("a", 3), ("b c", 4)]


@pytest.mark.parametrize("texts", [["ok\n"], ["ok\n/home/work\0", "x\0"]])
async def test_what_is_no_list_is_named(texts: list[str]) -> None:
    async with saying(said(*texts)) as session:
        with pytest.raises(AgentUnavailable, match="tells what is no list"):
            await SessionFiles(session).entries(ADA, "mine", ".")


async def test_a_list_without_end_is_not_kept() -> None:
    async with saying(lambda: [*said("ok\n")()[:1], *endless("x" * 100_000, 50)()]) as session:
        with pytest.raises(InvalidParameters):
            await SessionFiles(session).entries(ADA, "mine", ".")


async def test_a_first_line_without_end_is_not_kept() -> None:
    words = iter(endless("x" * 1000, 20_000)())
    async with saying(lambda: words) as session:
        with pytest.raises(AgentUnavailable, match="has no shell"):
            await SessionFiles(session).get(ADA, "mine", ["a"])
    assert next(words, None) is not None, "it was not heard to its end"


async def test_of_what_an_upload_meets_the_end_is_told() -> None:
    async with saying(said("ok\n", *["x" * 10_000] * 3, "tar: no", code="2")) as session:
        with pytest.raises(InvalidParameters) as told:
            await SessionFiles(session).put(ADA, "mine", {"a": b"1"})
    assert told.value.fields["src"].endswith("tar: no")


async def test_a_silent_session_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "SILENCE", 0.05)
    async with saying(lambda: (), silent=True) as session:
        with pytest.raises(AgentUnavailable, match="said nothing"):
            await SessionFiles(session).entries(ADA, "mine", ".")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([b"[" * 100_000], "gave no answer"),
        ([b"5"], "it is no object"),
        ([b"{}", b" " * 70_000], "longer than 65536 bytes"),
    ],
)
async def test_an_answer_that_is_none(
    words: list[bytes], sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(execution, "LONGEST_ANSWER", 65536)
    async with saying(lambda: words) as session:
        with pytest.raises(AgentUnavailable, match=sentence):
            await ExecutionService(session).ask(ADA, "mine", {"mode": "query"})


async def test_an_answer() -> None:
    async with saying(lambda: [b'{"status": "finished"}\n']) as session:
        assert await ExecutionService(session).ask(ADA, "mine", {}) == {"status": "finished"}


async def test_a_connection_is_closed_when_its_caller_goes() -> None:
    """Its node lets in nobody yet."""
    gone, there = asyncio.Event(), asyncio.Event()

    async def wait(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there.set()
        await reader.read()
        gone.set()
        writer.close()

    async with await asyncio.start_server(wait, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        dial = Session(port)._dial(Opened("127.0.0.1", port, "token", "http"), "app")
        task = asyncio.create_task(dial)
        await there.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        async with asyncio.timeout(5):
            await gone.wait()
