"""The manager's end of the agent's conversation, over a real WebSocket, driven by a test."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from tornado.httpserver import HTTPServer
from tornado.testing import bind_unused_port
from tornado.web import Application
from tornado.websocket import WebSocketHandler

from spawner.agent.protocol import (
    Ack,
    Answer,
    Call,
    Heartbeat,
    Hello,
    KernelReport,
    KernelSpec,
    Measures,
    Report,
    Wanted,
    Welcome,
    decode,
    encode,
)

TOKEN = "agent-token"


class ScriptedManager:
    """Accepts agents with ``TOKEN``; tells them what is wanted; remembers everything they say."""

    def __init__(self) -> None:
        self.hellos: list[Hello] = []
        self.reports: list[KernelReport] = []
        self.latest: dict[str, KernelReport] = {}
        self.answers: asyncio.Queue[Answer] = asyncio.Queue()
        self.wanted: dict[str, KernelSpec] = {}
        self.drain: dict[str, int] = {}
        self.acknowledging = True
        self.changed = asyncio.Event()
        self.connection: WebSocketHandler | None = None
        self.url = ""

    async def send_wanted(self) -> None:
        if self.connection is not None:
            message = Wanted(tuple(self.wanted.values()), tuple(self.drain.items()))
            await self.connection.write_message(encode(message))

    async def want(self, spec: KernelSpec) -> None:
        self.wanted[spec.kernel_id] = spec
        await self.send_wanted()

    async def end(self, kernel_id: str) -> None:
        spec = self.wanted.pop(kernel_id)
        self.drain[kernel_id] = spec.epoch
        await self.send_wanted()

    async def call(self, method: str, params: dict[str, Any]) -> Answer:
        assert self.connection is not None
        await self.connection.write_message(encode(Call(1, method, params)))
        return await asyncio.wait_for(self.answers.get(), 10)

    async def until(self, condition: Callable[[], Any], seconds: float = 30) -> Any:
        """Wait for a condition over what was heard."""
        async with asyncio.timeout(seconds):
            while not (answer := condition()):
                self.changed.clear()
                await self.changed.wait()
        return answer

    async def status(self, kernel_id: str, status: str, epoch: int = 1) -> KernelReport:
        def reached() -> KernelReport | None:
            report = self.latest.get(kernel_id)
            fits = report is not None and (report.status, report.epoch) == (status, epoch)
            return report if fits else None

        report = await self.until(reached)
        assert isinstance(report, KernelReport)
        return report

    async def take(self, frame: str) -> None:
        message = decode(frame)
        assert self.connection is not None
        if isinstance(message, Hello):
            self.hellos.append(message)
            await self.connection.write_message(encode(Welcome(0.2, 5.0)))
            await self.send_wanted()
        elif isinstance(message, Report):
            for report in message.kernels:
                self.reports.append(report)
                self.latest[report.kernel_id] = report
                if report.status == "TERMINATED":
                    self.drain.pop(report.kernel_id, None)
            if self.acknowledging:
                await self.connection.write_message(encode(Ack(message.sequence)))
        elif isinstance(message, Answer):
            self.answers.put_nowait(message)
        else:
            assert isinstance(message, Heartbeat | Measures)
        self.changed.set()


@asynccontextmanager
async def scripted_manager() -> AsyncIterator[ScriptedManager]:
    manager = ScriptedManager()

    class Connect(WebSocketHandler):
        def prepare(self) -> None:
            if self.request.headers.get("Authorization") != f"Bearer {TOKEN}":
                self.send_error(401)

        def open(self, *args: str, **kwargs: str) -> None:
            manager.connection = self

        async def on_message(self, message: str | bytes) -> None:
            assert isinstance(message, str)
            await manager.take(message)

        def on_close(self) -> None:
            if manager.connection is self:
                manager.connection = None
            manager.changed.set()

    socket, port = bind_unused_port()
    server = HTTPServer(Application([("/agents/connect", Connect)]))
    server.add_socket(socket)
    manager.url = f"http://127.0.0.1:{port}"
    try:
        yield manager
    finally:
        server.stop()
        await server.close_all_connections()
