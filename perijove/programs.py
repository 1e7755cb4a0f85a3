"""Programs that notebooks start with ``!``: what they read from their terminal is asked of the person.

An extension of IPython; the image's Python kernels load it. Whether a program waits for input is seen from the system
call in which it sleeps, so nothing has to be built into it. Where no front end can ask, it reads the end of the input.
"""

from __future__ import annotations

import codecs
import contextlib
import fcntl
import functools
import getpass
import os
import struct
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path
from subprocess import CalledProcessError
from typing import Any

import pexpect

PAUSE = 0.05
"""Seconds without output after which a program is looked at."""
LAST_WORDS = 0.5
"""Seconds that an interrupted program has to end."""
_GET_PTY_NUMBER = 0x80045430
"""``TIOCGPTN``, which ``termios`` does not name."""
_READ = {"x86_64": ("0",), "aarch64": ("63",)}.get(os.uname().machine, ())
_SELECT = {"x86_64": ("23", "270"), "aarch64": ("72",)}.get(os.uname().machine, ())
"""Numbers of ``read``, and of ``select`` with ``pselect6``."""


def load_ipython_extension(shell: Any) -> None:
    """Run the programs of ``!`` in the kernel ``shell`` here; a terminal gives them input by itself."""
    if hasattr(shell, "kernel"):
        shell.system = functools.partial(system, shell)


def unload_ipython_extension(shell: Any) -> None:
    """Run them as IPython does."""
    vars(shell).pop("system", None)


def system(shell: Any, command: str) -> None:
    """Run a command in the user's shell; its exit code becomes ``_exit_code``, negative after a signal."""
    if command.rstrip().endswith("&"):
        raise OSError("Background processes not supported.")
    code = Program(shell.var_expand(command, depth=1)).run()
    shell.user_ns["_exit_code"] = code
    if getattr(shell, "system_raise_on_error", False) and code != 0:
        raise CalledProcessError(code, command)


class Program:
    """One command on a terminal of its own."""

    def __init__(self, command: str) -> None:
        path = pexpect.which(os.environ.get("SHELL", "sh")) or "/bin/sh"
        self._child: Any = pexpect.spawn(path, ["-c", command], timeout=None)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._echo = b""

    def run(self) -> int:
        """Show what it prints and give it what it asks for, until it ends; its exit code."""
        child = self._child
        waited = False
        try:
            while (said := self._show(PAUSE)) is not None:
                waits = not said and self._waits()
                if waits and waited:  # seen twice: it does not just take what it was given
                    self._give()
                waited = waits and not waited
            child.wait()  # it may have let go of the terminal only
        except KeyboardInterrupt:
            self._interrupt()
        child.close()
        code = child.exitstatus
        if code is None:
            return -int(child.signalstatus or 0)
        return -(code - 128) if code > 128 else int(code)

    def _show(self, pause: float) -> bool | None:
        """Show what it prints next; False when it is silent, None once it has ended."""
        try:
            data = self._child.read_nonblocking(65536, pause)
        except pexpect.TIMEOUT:
            return False
        except pexpect.EOF:
            return None
        sys.stdout.write(self._decoder.decode(self._without_echo(data)))
        sys.stdout.flush()
        return True

    def _interrupt(self) -> None:
        """Give it a moment to end, with its last words; then it has to."""
        deadline = time.monotonic() + LAST_WORDS
        try:
            with contextlib.suppress(KeyboardInterrupt):  # the impatient press it twice
                self._child.sendintr()
                while time.monotonic() < deadline and self._show(PAUSE) is not None:
                    pass
        finally:
            self._child.terminate(force=True)

    def _without_echo(self, data: bytes) -> bytes:
        """``data`` without what was typed: the front end shows that itself."""
        count = min(len(data), len(self._echo))
        if data[:count] != self._echo[:count]:
            self._echo = b""  # something else came between
            return data
        self._echo = self._echo[count:]
        return data[count:]

    def _give(self) -> None:
        """Ask the person, and type the answer."""
        echo, canonical = self._modes()
        try:
            answer = input() if echo or not canonical else getpass.getpass("")
        except (EOFError, NotImplementedError):
            self._child.sendeof()
            return
        line = answer.encode()
        self._child.send(line + b"\n")
        self._echo = line + b"\r\n" if echo else b""

    def _modes(self) -> tuple[bool, bool]:
        """Whether its terminal shows what is typed, and whether it edits lines."""
        flags = termios.tcgetattr(self._child.child_fd)[3]
        return bool(flags & termios.ECHO), bool(flags & termios.ICANON)

    def _waits(self) -> bool:
        """Whether a program in the foreground sleeps until somebody types."""
        try:
            number = _integer(self._child.child_fd, _GET_PTY_NUMBER)
            terminal = os.open(f"/dev/pts/{number}", os.O_RDONLY | os.O_NOCTTY | os.O_NONBLOCK)
            try:
                typed = _integer(terminal, termios.FIONREAD)
            finally:
                os.close(terminal)
            group = os.tcgetpgrp(self._child.child_fd)
            return not typed and any(
                _reads(task, number) for task in _tasks(self._child.pid, group)
            )
        except OSError:
            return False  # it ended, or this kernel does not tell


def _integer(descriptor: int, question: int) -> int:
    (answer,) = struct.unpack("i", fcntl.ioctl(descriptor, question, b"\0" * 4))
    return int(answer)


def _tasks(session: int, group: int) -> Iterator[Path]:
    """Threads of the processes of a process group in a session."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            fields = (process / "stat").read_bytes().rpartition(b")")[2].split()
        except OSError:
            continue  # it ended meanwhile
        if (int(fields[2]), int(fields[3])) == (group, session):
            yield from (process / "task").iterdir()


def _reads(task: Path, terminal: int) -> bool:
    """Whether a thread sleeps in a read of the terminal ``/dev/pts/<terminal>``, or in a ``select`` on stdin alone."""
    try:
        call = (task / "syscall").read_text().split()
        if not call or call[0] not in (*_READ, *_SELECT):
            return False
        stdin_alone = call[0] in _SELECT and int(call[1], 16) == 1
        descriptor = 0 if call[0] in _SELECT else int(call[1], 16)
        source = os.readlink(task / "fd" / str(descriptor))
    except (OSError, ValueError):
        return False
    return (call[0] in _READ or stdin_alone) and source in (f"/dev/pts/{terminal}", "/dev/tty")
