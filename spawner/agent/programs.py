"""Programs of the manager in a kernel: one for each connection, which names it first, with input and output."""

from __future__ import annotations

import asyncio

import msgspec

from spawner.agent import preamble
from spawner.agent.engines.base import EngineError, Exec
from spawner.agent.terminals import Terminals

PROTOCOL = "exec"
FAILED = 125
"""Exit status of a program that could not be started."""


class Programs(Terminals):
    """As terminals, without a terminal: the first frame is a JSON list of words."""

    KIND = "programs"

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """A program until it ends or the other side leaves, which closes its input."""
        writer.write(b"ok\n")
        try:
            async with asyncio.timeout(preamble.PATIENCE):
                found = await preamble.read_frame(reader)
        except TimeoutError:
            return
        try:
            program = await self._start(b"" if found is None else found[1])
        except EngineError as error:
            writer.write(preamble.frame(preamble.DATA, preamble.refusal(str(error))))
            writer.write(preamble.frame(preamble.EXIT, str(FAILED).encode()))
            return
        await self.carry(reader, writer, program)

    async def _start(self, words: bytes) -> Exec:
        try:
            argv = msgspec.json.decode(words, type=tuple[str, ...])
        except msgspec.DecodeError as error:
            raise EngineError(f"this names no program: {error}") from error
        return await self._engine.execute(self._identity, argv)
