"""What manager and agent say on a connection to an app before its own bytes begin, and a terminal's frames.

The manager sends ``PERIJOVE/1 TOKEN`` and a line feed; the agent answers the line ``ok``, or ``no`` with a
sentence and closes. After it come the bytes of the app. Those of a terminal are in frames of a letter, a
length of four bytes and as many bytes: ``d`` data (both ways), ``r`` rows and columns, ``x`` exit status.
"""

from __future__ import annotations

import asyncio
import hmac

MAGIC = b"PERIJOVE/1 "
MAX_LINE = 512
PATIENCE = 10.0
"""Seconds for either side to say its line."""
MAX_TERMINAL_FRAME = 1024 * 1024
DATA, SIZE, EXIT = b"d", b"r", b"x"


class Refused(ConnectionError):
    """The other side did not let us in; the sentence is its own."""


def opening(token: str) -> bytes:
    """The manager's line."""
    return MAGIC + token.encode("ascii") + b"\n"


def fits(line: bytes, token: str) -> bool:
    """Whether a line carries ``token``; takes as long for a wrong one as for the right one."""
    return hmac.compare_digest(line, opening(token))


def refusal(sentence: str) -> bytes:
    """The agent's line when it does not let somebody in."""
    clean = " ".join(sentence.split()).encode("utf-8", "replace")
    return b"no " + clean[: MAX_LINE - 8] + b"\n"


def check_answer(line: bytes) -> None:
    """Raise ``Refused`` unless the agent's line is ``ok``."""
    if line != b"ok\n":
        told = line.removeprefix(b"no ").strip().decode("utf-8", "replace")
        raise Refused(told or "the agent closed the connection")


async def introduce(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, token: str) -> None:
    """The manager's part. Raises ``Refused`` or ``OSError``."""
    writer.write(opening(token))
    try:
        async with asyncio.timeout(PATIENCE):
            await writer.drain()
            line = await reader.readline()
    except (TimeoutError, ValueError) as error:
        raise Refused("the agent did not answer") from error
    check_answer(line)


def frame(kind: bytes, payload: bytes) -> bytes:
    """One frame of a terminal."""
    return kind + len(payload).to_bytes(4, "big") + payload


def size_frame(rows: int, columns: int) -> bytes:
    """The frame that tells a terminal's size."""
    return frame(SIZE, f"{rows} {columns}".encode())


async def read_frame(reader: asyncio.StreamReader) -> tuple[bytes, bytes] | None:
    """The next frame, None at the end. Raises ``Refused`` for what is none."""
    try:
        head = await reader.readexactly(5)
        length = int.from_bytes(head[1:], "big")
        if head[:1] not in (DATA, SIZE, EXIT) or length > MAX_TERMINAL_FRAME:
            raise Refused("this is no frame of a terminal")
        return head[:1], await reader.readexactly(length)
    except asyncio.IncompleteReadError:
        return None
