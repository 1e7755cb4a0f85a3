"""The output of a run as it is kept after its end: all of it, or its beginning and its end."""

from __future__ import annotations

import zlib
from collections.abc import Iterable

import msgspec

from spawner.agent.protocol import MAX_FRAME_BYTES, KernelReport

MAX_LOG = 1024 * 1024
"""Bytes of output that are kept of one run."""
HEAD = MAX_LOG // 4
"""Of these, so many from the beginning when it is longer."""
_ROOM = MAX_FRAME_BYTES // 2
"""Bytes of several reports in one frame; no single one fills a frame."""
_MARK = 120
"""Room for the line between beginning and end."""


class Excerpt:
    """Takes output piece by piece and keeps its beginning and end in bounded memory."""

    def __init__(self, limit: int = MAX_LOG, head: int = HEAD) -> None:
        self._head_size, self._tail_size = head, limit - head - _MARK
        self._head = bytearray()
        self._tail = bytearray()
        self._size = 0

    def add(self, piece: bytes) -> None:
        """The next output."""
        self._size += len(piece)
        room = self._head_size - len(self._head)
        self._head += piece[:room]
        self._tail += piece[room:] if room > 0 else piece
        if len(self._tail) > 2 * self._tail_size:
            del self._tail[: -self._tail_size]

    def text(self) -> bytes:
        """What is kept, with a line that says how much is missing."""
        missing = self._size - len(self._head) - self._tail_size
        if missing <= 0:
            return bytes(self._head + self._tail)
        mark = f"\n[... {missing} bytes of output are not kept ...]\n".encode()
        return bytes(self._head) + mark + bytes(self._tail[-self._tail_size :])


def pack(pieces: Iterable[bytes]) -> bytes:
    """An excerpt of the output, compressed as reports carry it."""
    excerpt = Excerpt()
    for piece in pieces:
        excerpt.add(piece)
    return zlib.compress(excerpt.text(), 6)


def frames(
    reports: Iterable[KernelReport], *, whole: bool
) -> list[tuple[tuple[KernelReport, ...], bool]]:
    """Reports as frames that are small enough, with whether each one is whole.

    What ended runs left behind goes ahead; what is whole comes last and names every kernel, without it.
    """
    every = tuple(reports)
    cut: list[tuple[tuple[KernelReport, ...], bool]] = []
    batch: list[KernelReport] = []
    size = 0
    for report in every:
        if whole and _brief(report) == report:
            continue
        length = len(msgspec.json.encode(report))
        if batch and size + length > _ROOM:
            cut.append((tuple(batch), False))
            batch, size = [], 0
        batch.append(report)
        size += length
    if batch:
        cut.append((tuple(batch), False))
    if whole:
        cut.append((tuple(map(_brief, every)), True))
    return cut


def _brief(report: KernelReport) -> KernelReport:
    """Without the output and the measures of a run."""
    return msgspec.structs.replace(report, log=b"", log_tail="", last_stat={})
