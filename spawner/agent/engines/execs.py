"""Programs that are started in a run of the process engine: a pseudo terminal, or pipes."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import os
import shutil
import signal
import struct
import termios
from collections.abc import Mapping, Sequence

from spawner.agent.engines.base import EngineError, Exec
from spawner.agent.engines.process_table import MARK
from spawner.agent.engines.scratch import USUAL, Run

CHUNK = 65536
_SHELL = "/bin/sh"
_WRAPPER = r"""
for group in $PERIJOVE_CGROUPS; do echo $$ > "$group" || exit 125; done
ulimit -c 0
cd "$PERIJOVE_CWD" || exit 125
unset PERIJOVE_CWD PERIJOVE_CGROUPS
umask 022
exec "$@"
"""
"""Joins the control groups of the run before the program begins."""


class ProcessExec(Exec):
    """A child of the agent that carries the mark of its run, so that it ends with it."""

    def __init__(self, run: Run, mark: str, *, terminal: bool) -> None:
        self._run, self._mark, self._terminal = run, mark, terminal
        self._input = self._output = -1
        self._pid = 0
        self._watch = -1
        self._ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._waiting: set[asyncio.Future[None]] = set()

    def start(self, argv: Sequence[str], environ: Mapping[str, str]) -> None:
        """Start it. Raises ``EngineError``."""
        values = {**self._run.environ, **environ}
        if shutil.which(argv[0], path=values.get("PATH")) is None:
            raise EngineError(f"the program {argv[0]!r} is not installed on this node")
        values |= {
            MARK: self._mark,
            "PERIJOVE_CGROUPS": " ".join(self._run.cgroups),
            "PERIJOVE_CWD": self._run.cwd,
        }
        command = [_SHELL, "-c", _WRAPPER, "perijove-exec", *argv]
        try:
            self._spawn(command, values)
        except OSError as error:
            self._let_go()
            raise EngineError(f"{argv[0]} cannot be started: {error}") from error
        self._watch = os.pidfd_open(self._pid)
        asyncio.get_running_loop().add_reader(self._watch, self._reap)

    async def read(self) -> bytes:
        """The next output; empty when it ended."""
        while self._output >= 0:
            try:
                return os.read(self._output, CHUNK)
            except BlockingIOError:
                await self._ready(self._output, write=False)
            except OSError as error:
                if error.errno in (errno.EIO, errno.EBADF):  # nobody has the terminal open any more
                    return b""
                raise
        return b""

    async def write(self, data: bytes) -> None:
        """Give it input; what ended does not listen."""
        view = memoryview(data)
        while view and self._input >= 0:
            try:
                view = view[os.write(self._input, view) :]
            except BlockingIOError:
                await self._ready(self._input, write=True)
            except OSError:
                return

    async def resize(self, rows: int, columns: int) -> None:
        """Set the size of the terminal."""
        if self._terminal and self._output >= 0:
            size = struct.pack("HHHH", rows, columns, 0, 0)
            fcntl.ioctl(self._output, termios.TIOCSWINSZ, size)

    async def close(self) -> None:
        """Close the streams: the kernel sends SIGHUP to who had the terminal."""
        self._let_go()
        if self._terminal and not self._ended.done():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._pid, signal.SIGHUP)

    async def exit_code(self) -> int | None:
        """Its exit status, None while it runs."""
        return self._ended.result() if self._ended.done() else None

    def _spawn(self, command: list[str], environ: dict[str, str]) -> None:
        theirs: tuple[int, ...]
        if self._terminal:
            master, slave = os.openpty()
            self._input = self._output = master
            theirs = (slave,)
            # The first terminal that the leader of a session opens is the one that controls it.
            actions: list[tuple[int, ...] | tuple[int, int, str, int, int]] = [
                (os.POSIX_SPAWN_OPEN, 0, os.ttyname(slave), os.O_RDWR, 0)
            ]
            actions += [(os.POSIX_SPAWN_DUP2, 0, 1), (os.POSIX_SPAWN_DUP2, 0, 2)]
        else:
            inner, self._input = os.pipe()
            self._output, outer = os.pipe()
            theirs = (inner, outer)
            actions = [(os.POSIX_SPAWN_DUP2, inner, 0), (os.POSIX_SPAWN_DUP2, outer, 1)]
            actions += [(os.POSIX_SPAWN_DUP2, 1, 2)]
        try:
            for descriptor in {self._input, self._output}:
                os.set_blocking(descriptor, False)
            self._pid = os.posix_spawn(
                _SHELL, command, environ, setsid=True, setsigdef=USUAL, file_actions=actions
            )
        finally:
            for descriptor in theirs:
                os.close(descriptor)

    def _reap(self) -> None:
        """The program ended: bury it and keep its status."""
        asyncio.get_running_loop().remove_reader(self._watch)
        os.close(self._watch)
        _, status = os.waitpid(self._pid, 0)
        code = os.waitstatus_to_exitcode(status)
        self._ended.set_result(code if code >= 0 else 128 - code)

    def _let_go(self) -> None:
        loop = asyncio.get_running_loop()
        for descriptor in {self._input, self._output} - {-1}:
            loop.remove_reader(descriptor)
            loop.remove_writer(descriptor)
            os.close(descriptor)
        self._input = self._output = -1
        for ready in self._waiting:
            _wake(ready)

    async def _ready(self, descriptor: int, *, write: bool) -> None:
        """Wait until a descriptor can be read or written, or was closed."""
        loop = asyncio.get_running_loop()
        add, remove = (
            (loop.add_writer, loop.remove_writer)
            if write
            else (loop.add_reader, loop.remove_reader)
        )
        ready = loop.create_future()
        self._waiting.add(ready)
        add(descriptor, _wake, ready)
        try:
            await ready
        finally:
            self._waiting.discard(ready)
            if descriptor in (self._input, self._output):  # else its number may be another's by now
                remove(descriptor)


def _wake(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)
