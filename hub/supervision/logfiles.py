"""Log files of the daemons: following them, showing what matters, keeping them bounded."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
from collections import deque
from collections.abc import Callable
from pathlib import Path

MAX_BYTES = 10 * 1024 * 1024
KEEP = 3
"""Rotated files kept: NAME.log.1 is the newest."""
KEY_LINE = re.compile(
    r"^\[[EC] |"  # our own processes and JupyterHub
    r"^\[W \S+ \S+ (?!JupyterHub )|"  # the hub warns of every request that is refused
    r"^\d\d:\d\d:\d\d\.\d+ \[ConfigProxy\] \S*(warn|error)|"
    r"^(WARNING|ERROR|CRITICAL)\b|"
    r"^(\w+\.)*\w+(Error|Exception|Problem)\b"  # the last line of a traceback
)


class LogFollower:
    """Reads what a daemon appends to its log and hands over the lines a person should see."""

    def __init__(
        self, path: Path, show: Callable[[str], None], *, everything: bool = False
    ) -> None:
        self.path = path
        self._show = show
        self._everything = everything
        self._position = path.stat().st_size if path.exists() else 0
        self._rest = b""

    async def follow(self, interval: float = 0.5) -> None:
        """Go on until cancelled."""
        while True:
            self.read_new()
            rotate(self.path)
            await asyncio.sleep(interval)

    def read_new(self) -> None:
        """Read what was appended since the last time."""
        try:
            size = self.path.stat().st_size
        except FileNotFoundError:
            return
        if size < self._position:  # rotated
            self._position, self._rest = 0, b""
        if size == self._position:
            return
        with self.path.open("rb") as file:
            file.seek(self._position)
            text = self._rest + file.read(MAX_BYTES)
            self._position = file.tell()
        *lines, self._rest = text.split(b"\n")
        for raw in lines:
            line = raw.decode(errors="replace").rstrip()
            if line and (self._everything or KEY_LINE.search(line)):
                self._show(printable(line))


def printable(line: str) -> str:
    """``line`` without control characters: logs may quote what users sent."""
    return "".join(char if char.isprintable() or char == "\t" else "?" for char in line)


def rotate(path: Path, limit: int = MAX_BYTES) -> bool:
    """Move the content of a log over ``limit`` bytes to NAME.log.1; whether it was needed.

    The file is copied and cut, because the daemon keeps it open (in append mode); lines written in
    between are lost.
    """
    try:
        if path.stat().st_size <= limit:
            return False
    except FileNotFoundError:
        return False
    copy = path.with_name(f"{path.name}.new")
    try:
        shutil.copyfile(path, copy)
    except OSError:  # a full disk: the older ones are not moved for half a copy
        copy.unlink(missing_ok=True)
        raise
    for number in range(KEEP - 1, 0, -1):
        older = path.with_name(f"{path.name}.{number}")
        if older.exists():
            older.replace(path.with_name(f"{path.name}.{number + 1}"))
    copy.replace(path.with_name(f"{path.name}.1"))
    os.truncate(path, 0)
    return True


def last_lines(path: Path, count: int = 15) -> list[str]:
    """The last ``count`` lines of a log, fit for a terminal."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 64 * 1024))
            tail = deque(file.read().decode(errors="replace").splitlines(), maxlen=count)
    except FileNotFoundError:
        return []
    return [printable(line) for line in tail]
