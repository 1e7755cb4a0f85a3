"""A relay before the manager that does what networks and impatient clients do: late, twice, out of order, answers lost.

What agents and the manager say over their WebSocket is treated frame by frame, and people's writes request by
request. Every so often something happens to one; ``done`` counts it. Mischief is by number, not by chance.
"""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

import aiohttp
from aiohttp import web

LATE = 0.1
HELD = 0.4
"""Seconds that something waits for what should overtake it, at most."""
BROKEN = (2, 4, 6)
"""Connections of agents that break: what they still carried arrives when the next one is there."""
LIFE = 3.0
"""Seconds that the others of them are left."""
REPORT = '"kind":"report"'
Send = Callable[[str], Awaitable[None]]
Socket = web.WebSocketResponse | aiohttp.ClientWebSocketResponse


class Swap:
    """Lets one of so many of a stream be overtaken by its successor: the next one that has one in time."""

    def __init__(self, every: int) -> None:
        self._every, self._count, self._held = every, 0, False
        self._passed = asyncio.Event()

    async def turn(self) -> bool:
        """Wait, if this one is to be overtaken; whether it was."""
        self._count += 1
        if self._held or self._count < self._every:
            self._passed.set()
            return False
        self._held, self._passed = True, asyncio.Event()
        try:
            async with asyncio.timeout(HELD):
                await self._passed.wait()
        except TimeoutError:
            return False
        finally:
            self._held = False
        self._count = 0
        return True


class Relay:
    """Listens on ``host``; passes everything on to ``target``."""

    def __init__(self, host: str, target: str) -> None:
        self._host, self._target = host, target
        self.url = ""
        self.done: Counter[str] = Counter()
        self._agents = self._writes = 0
        self._arrived = asyncio.Event()
        self._order = Swap(5)

    @contextmanager
    def running(self) -> Iterator[Relay]:
        """Inside the block it relays, in a thread of its own."""
        ready, loop = threading.Event(), asyncio.new_event_loop()
        over = asyncio.Event()
        thread = threading.Thread(
            target=lambda: loop.run_until_complete(self._serve(ready, over)), name="relay"
        )
        thread.start()
        try:
            assert ready.wait(30)
            yield self
        finally:
            loop.call_soon_threadsafe(over.set)
            thread.join(30)
            loop.close()

    async def _serve(self, ready: threading.Event, over: asyncio.Event) -> None:
        app = web.Application()
        app.router.add_get("/agents/connect", self._agent)
        app.router.add_route("*", "/{path:.*}", self._request)
        runner = web.AppRunner(app, shutdown_timeout=1)
        await runner.setup()
        async with aiohttp.ClientSession() as self._http:
            site = web.TCPSite(runner, self._host, 0)
            await site.start()
            self.url = f"http://{self._host}:{runner.addresses[0][1]}"
            ready.set()
            await over.wait()
            await runner.cleanup()

    async def _request(self, request: web.Request) -> web.StreamResponse:
        """One request: some writes are overtaken, some are sent twice, of some the answer is lost."""
        body = await request.read()
        write = request.method != "GET"
        number = self._writes = self._writes + write
        if write and await self._order.turn():
            self.done["requests overtaken"] += 1
        status, answer = await self._forward(request, body)
        if write and number % 3 == 0:
            self.done["requests repeated"] += 1
            await self._forward(request, body)
        if write and number % 4 == 0 and request.transport is not None:
            self.done["answers lost"] += 1
            request.transport.abort()
        return web.Response(status=status, body=answer, content_type="application/json")

    async def _forward(self, request: web.Request, body: bytes) -> tuple[int, bytes]:
        kept = {name: request.headers[name] for name in
                ("Authorization", "X-Perijove-User", "Content-Type") if name in request.headers}  # fmt: skip
        url = f"{self._target}{request.path_qs}"
        async with self._http.request(request.method, url, data=body, headers=kept) as answer:
            return answer.status, await answer.read()

    async def _agent(self, request: web.Request) -> web.StreamResponse:
        """One connection of an agent; some of them break."""
        self._agents += 1
        number = self._agents
        self._arrived.set()
        self._arrived = asyncio.Event()
        kept = {"Authorization": request.headers["Authorization"]}
        url = f"{self._target}/agents/connect"
        async with self._http.ws_connect(url, headers=kept, max_msg_size=0) as there:
            here = web.WebSocketResponse(max_msg_size=0)
            await here.prepare(request)
            await there.send_str(await here.receive_str())  # the hello
            await here.send_str(await there.receive_str())  # the welcome
            if number in BROKEN:
                await self._break(request, here, there)
                return here
            up = asyncio.create_task(self._pass(here, there.send_str, "from the agent"))
            down = asyncio.create_task(self._pass(there, here.send_str, "to the agent"))
            life = LIFE if number < max(BROKEN) else None
            await asyncio.wait({up, down}, timeout=life, return_when=asyncio.FIRST_COMPLETED)
            if not up.done() and request.transport is not None:
                self.done["connections cut"] += 1
                request.transport.abort()
            for task in (up, down):
                task.cancel()
            await asyncio.gather(up, down, return_exceptions=True)
        return here

    async def _break(
        self,
        request: web.Request,
        here: web.WebSocketResponse,
        there: aiohttp.ClientWebSocketResponse,
    ) -> None:
        """Keep what the agent says, cut it off, and deliver that after it has come back and gone on."""
        kept = [await here.receive_str()]  # all that it runs
        next_one = self._arrived
        if request.transport is not None:
            request.transport.abort()
        await next_one.wait()
        await asyncio.sleep(LIFE / 2)
        for frame in kept:
            await there.send_str(frame)
            self.done["frames of a connection that was gone"] += 1

    async def _pass(self, source: Socket, send: Send, way: str) -> None:
        """One direction: late, every fourth frame twice, one of five after its successor.

        Reports stay in order: what an acknowledgement means rests on what a connection promises. The turn of
        being overtaken goes on to the next frame until there is one that something comes after in time.
        """
        frames: asyncio.Queue[str | None] = asyncio.Queue()
        reading = asyncio.create_task(_read(source, frames))
        count, ordered, held = 0, 0, ""
        try:
            while (frame := await _next(frames, HELD if held else None)) is not None:
                count += bool(frame)
                ordered += bool(frame)
                await asyncio.sleep(LATE)
                if ordered >= 5 and not held and REPORT not in frame:
                    held = frame
                    continue
                if frame:
                    await send(frame)
                if held:
                    self.done[f"frames {way} overtaken"] += bool(frame)
                    ordered = 0 if frame else ordered
                    await send(held)
                    held = ""
                if frame and count % 4 == 0:
                    self.done[f"frames {way} repeated"] += 1
                    await send(frame)
        finally:
            reading.cancel()


async def _read(source: Socket, frames: asyncio.Queue[str | None]) -> None:
    """Text frames, then None."""
    async for message in source:
        if message.type is aiohttp.WSMsgType.TEXT:
            frames.put_nowait(message.data)
    frames.put_nowait(None)


async def _next(frames: asyncio.Queue[str | None], within: float | None) -> str | None:
    """The next frame; an empty one when none came in time."""
    try:
        async with asyncio.timeout(within):
            return await frames.get()
    except TimeoutError:
        return ""
