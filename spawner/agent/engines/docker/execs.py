"""Programs that are started in a running container, their streams over the engine's hijacked connection.

The ``docker`` package reads such a stream through a buffer that may swallow its beginning, so the
connection is made here, without threads: one request, then bytes in both directions.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import ssl
from collections.abc import Mapping, Sequence
from typing import Any

from docker.utils import kwargs_from_env, parse_host

from spawner.agent.engines.base import EngineError, Exec
from spawner.agent.engines.docker.calls import CALL_TIMEOUT, Calls, Conflict, Missing

CHUNK = 65536
_DIGITS = re.compile(rb"(\d{1,10})\r?\n")
TOLD = 'printf "%s\\n" "$$"; exec "$@"'
"""Tells the process id before the program begins: the engine itself cannot send it a signal."""


class DockerExec(Exec):
    """One ``docker exec``."""

    def __init__(self, calls: Calls, container: str, *, terminal: bool) -> None:
        self._calls, self._container, self._terminal = calls, container, terminal
        self._id = ""
        self._pid = 0
        self._beginning = b""
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def start(self, argv: Sequence[str], environ: Mapping[str, str]) -> None:
        """Start it. Raises ``EngineError``."""
        client = self._calls.client
        command = ["sh", "-c", TOLD, "sh", *argv] if self._terminal else list(argv)
        try:
            made = await self._calls.run(
                lambda: client.api.exec_create(
                    self._container,
                    command,
                    stdin=True,
                    tty=self._terminal,
                    environment=dict(environ),
                )
            )
        except Missing as error:
            raise EngineError("the session's container is gone") from error
        except Conflict as error:
            raise EngineError("the session does not run") from error
        self._id = str(made["Id"])
        try:
            async with asyncio.timeout(CALL_TIMEOUT):
                self._reader, self._writer = await _dial()
                await self._hijack()
                if self._terminal:
                    self._pid = await self._told()
        except (OSError, EOFError, TimeoutError) as error:
            await self._drop()
            raise EngineError(f"the Docker engine does not answer: {error}") from error
        except BaseException:
            await self._drop()
            raise

    async def read(self) -> bytes:
        """The next output; empty when it ended."""
        if self._beginning:
            data, self._beginning = self._beginning, b""
            return data
        if self._reader is None:
            return b""
        try:
            if self._terminal:
                return await self._reader.read(CHUNK)
            while True:  # frames of stdout and stderr: a type, three zeros, a length, then data
                head = await self._reader.readexactly(8)
                size = int.from_bytes(head[4:], "big")
                if size:
                    return await self._reader.readexactly(size)
        except (OSError, asyncio.IncompleteReadError):
            return b""

    async def write(self, data: bytes) -> None:
        """Give it input; what ended does not listen."""
        if self._writer is not None:
            with contextlib.suppress(OSError):
                self._writer.write(data)
                await self._writer.drain()

    async def resize(self, rows: int, columns: int) -> None:
        """Set the size of the terminal."""
        client = self._calls.client
        if self._terminal:
            # A program that ended meanwhile has no size.
            with contextlib.suppress(EngineError):
                await self._calls.run(client.api.exec_resize, self._id, rows, columns)

    async def close(self) -> None:
        """Close the streams; a terminal's program gets SIGHUP, which the engine does not send."""
        await self._drop()
        if self._pid and await self.exit_code() is None:
            client = self._calls.client
            command = ["sh", "-c", f"kill -HUP -{self._pid} {self._pid}"]
            # The container may end at the same time.
            with contextlib.suppress(EngineError):
                made = await self._calls.run(client.api.exec_create, self._container, command)
                await self._calls.run(client.api.exec_start, made["Id"], detach=True)

    async def exit_code(self) -> int | None:
        """Its exit status, None while it runs."""
        client = self._calls.client
        try:
            facts = await self._calls.run(client.api.exec_inspect, self._id)
        except Missing:  # its container is gone
            return 137
        return None if facts["Running"] else int(facts["ExitCode"] or 0)

    async def _hijack(self) -> None:
        """Start the program and take the connection over."""
        assert self._reader is not None  # noqa: S101 - `start` has dialled
        assert self._writer is not None  # noqa: S101
        body = json.dumps({"Detach": False, "Tty": self._terminal}).encode()
        self._writer.write(
            f"POST /exec/{self._id}/start HTTP/1.1\r\nHost: docker\r\n"
            "Content-Type: application/json\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n"
            f"Content-Length: {len(body)}\r\n\r\n".encode()
            + body
        )
        await self._writer.drain()
        head = await self._reader.readuntil(b"\r\n\r\n")
        status = int(head.split(b" ", 2)[1])
        if status not in (101, 200):
            text = (await self._reader.read(2000)).decode("utf-8", "replace")
            raise EngineError(f"the program cannot be started: {_explanation(text)}")

    async def _told(self) -> int:
        """The process id that the wrapper of a terminal prints first."""
        assert self._reader is not None  # noqa: S101 - `start` has dialled
        data = b""
        while (found := _DIGITS.match(data)) is None:
            more = await self._reader.read(CHUNK)
            data += more
            if not more or len(data) > 2000:
                text = data.decode("utf-8", "replace").strip()
                raise EngineError(f"the session has no shell: {text[:200]}")
        self._beginning = data[found.end() :]
        return int(found[1])

    async def _drop(self) -> None:
        writer, self._writer, self._reader = self._writer, None, None
        if writer is not None:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()


async def _dial() -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection to the engine that ``docker.from_env`` would use."""
    settings: Any = kwargs_from_env()
    tls = settings.get("tls")
    url = str(parse_host(os.environ.get("DOCKER_HOST"), tls=bool(tls)))
    scheme, _, place = url.partition("://")
    if scheme in ("unix", "http+unix"):
        return await asyncio.open_unix_connection("/" + place.lstrip("/"))
    if scheme not in ("http", "https", "tcp"):
        raise EngineError(f"programs cannot be started over {scheme}:// connections to the engine")
    host, _, port = place.partition("/")[0].rpartition(":")
    context: ssl.SSLContext | None = None
    if tls:
        context = ssl.create_default_context(cafile=tls.ca_cert)
        context.check_hostname = bool(tls.verify)
        if tls.cert:
            context.load_cert_chain(*tls.cert)
    return await asyncio.open_connection(host.strip("[]"), int(port), ssl=context)


def _explanation(text: str) -> str:
    """The sentence of the engine's error body."""
    try:
        return str(json.loads(text)["message"])
    except (ValueError, KeyError, TypeError):
        return text.strip()[:200]
