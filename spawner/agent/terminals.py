"""Terminals of kernels: a shell for each connection, in any image that has one."""

from __future__ import annotations

import asyncio
import contextlib

from spawner.agent import preamble
from spawner.agent.engines.base import Engine, EngineError, Exec, Identity

SHELL = (
    "sh",
    "-c",
    'cd 2>/dev/null; for shell in "$SHELL" bash sh; do'
    ' command -v "$shell" >/dev/null 2>&1 && exec "$shell"; done; exit 127',
)
ENVIRON = {"TERM": "xterm-256color"}
MOST = 32
"""Terminals of one kernel at a time."""
LARGEST = 1000
"""Rows or columns."""


class Terminals:
    """The terminals of one kernel."""

    KIND = "terminals"

    def __init__(self, engine: Engine, identity: Identity) -> None:
        self._engine, self._identity = engine, identity
        self._open = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Let the other side in unless there are too many already, which is said."""
        if self._open >= MOST:
            told = f"{MOST} {self.KIND} of this session are open already"
            writer.write(preamble.refusal(told))
            return
        self._open += 1
        try:
            await self._converse(reader, writer)
        finally:
            self._open -= 1

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """A shell until it ends or the other side leaves, which ends it."""
        try:
            shell = await self._engine.execute(
                self._identity, SHELL, environ=ENVIRON, terminal=True
            )
        except EngineError as error:
            writer.write(preamble.refusal(str(error)))
            return
        writer.write(b"ok\n")
        await self.carry(reader, writer, shell)

    async def carry(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, shell: Exec
    ) -> None:
        """Frames in both directions until either side is done."""
        typing = asyncio.create_task(_type(reader, shell))
        showing = asyncio.create_task(_show(shell, writer))
        try:
            await asyncio.wait({typing, showing}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (typing, showing):
                task.cancel()
            await asyncio.gather(typing, showing, return_exceptions=True)
            # Nobody must wait for an engine that does not answer any more.
            with contextlib.suppress(EngineError):
                await shell.close()


async def _type(reader: asyncio.StreamReader, shell: Exec) -> None:
    """What the other side sends, until it leaves."""
    while (found := await preamble.read_frame(reader)) is not None:
        kind, payload = found
        if kind == preamble.DATA:
            await shell.write(payload)
        elif kind == preamble.SIZE:
            numbers = [int(word) for word in payload.split() if word.isdigit()]
            if len(numbers) == 2 and all(1 <= number <= LARGEST for number in numbers):
                await shell.resize(*numbers)


async def _show(shell: Exec, writer: asyncio.StreamWriter) -> None:
    """What the shell writes, until it ends; its exit status last."""
    while data := await shell.read():
        writer.write(preamble.frame(preamble.DATA, data))
        await writer.drain()
    code: int | None = None
    for pause in (0, 0.05, 0.2, 1.0):  # its output ends a moment before it does
        await asyncio.sleep(pause)
        code = await shell.exit_code()
        if code is not None:
            break
    writer.write(preamble.frame(preamble.EXIT, b"" if code is None else str(code).encode()))
    await writer.drain()
