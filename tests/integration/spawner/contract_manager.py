"""A small real HTTP server that speaks the manager's side of what the Spawner uses (docs/architecture.md).

Sessions wait until the test says otherwise: ``run``, ``fail``. One tiny web server plays all sessions' servers.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
import uuid
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

from aiohttp import web

GIB = 1024**3
FINAL = ("TERMINATED", "CANCELLED", "ERROR")
USER = web.RequestKey("user", str)
QUEUED = "Second in line: waiting for 2 CPUs"


@dataclass
class FakeSession:
    """One session and all that was said about it."""

    name: str
    user: str
    body: dict[str, Any]
    id: str = field(default_factory=lambda: str(uuid.uuid4()))
    status: str = "PENDING"
    target: str = "RUNNING"
    url: str | None = None
    exit_code: int | None = None
    log: str = ""
    steps: list[dict[str, Any]] = field(default_factory=list)
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def become(self, status: str, message: str, progress: int = 0) -> None:
        """Go to ``status`` and tell everybody."""
        self.status = status
        self.steps.append(
            {
                "id": len(self.steps) + 1,
                "at": time.time(),
                "status": status,
                "message": message,
                "progress": progress,
            }
        )
        self.changed.set()
        self.changed = asyncio.Event()

    def as_server(self) -> dict[str, Any]:
        """The ``server`` object of the contract."""
        last = self.steps[-1]
        return {
            "id": self.id,
            "name": self.name,
            "status": self.status,
            "target": self.target,
            "message": last["message"],
            "progress": last["progress"],
            "url": self.url,
            "exit_code": self.exit_code,
            "server": self.body["perijove"]["server"],
            "user": self.user,
        }


class ContractManager:
    """The manager; ``url`` and ``secret`` are what a hub needs to know."""

    def __init__(self, secret: str = "hub-secret") -> None:
        self.secret = secret
        self.sessions: list[FakeSession] = []
        self.requests: list[tuple[str, str, str]] = []
        self.run_at_once = False
        self.refuse: tuple[int, dict[str, Any]] | None = None
        self.largest_cpu = 8
        self.port = 0
        self.session_port = 0
        self.held = asyncio.Event()
        self._runner: web.AppRunner | None = None
        self._sessions_runner: web.AppRunner | None = None
        self.presets = [
            ("Small", {"cpu": "1", "mem": str(2 * GIB)}, "now", ""),
            ("Medium", {"cpu": "2", "mem": str(4 * GIB)}, "wait", "Waits for 1 more CPU."),
            ("Huge", {"cpu": "64", "mem": str(256 * GIB)}, "never", "No node has 64 CPUs."),
        ]
        self.devices: dict[str, tuple[str, str]] = {}

    @property
    def url(self) -> str:
        """Where the hub finds it."""
        return f"http://127.0.0.1:{self.port}"

    async def start(self) -> None:
        """Listen; on the same port as before when it is started again."""
        app = web.Application(middlewares=[self._guard])
        app.router.add_get("/internal/spawn-options", self._spawn_options)
        app.router.add_post("/internal/check", self._check)
        app.router.add_get("/internal/servers", self._servers)
        app.router.add_get("/internal/servers/{name}", self._server)
        app.router.add_post("/session", self._create)
        app.router.add_delete("/session/{id}", self._destroy)
        app.router.add_get("/session/{id}/progress", self._progress)
        app.router.add_get("/session/{id}/logs", self._logs)
        self._runner, self.port = await _listen(app, self.port)
        if self._sessions_runner is None:
            sessions = web.Application()
            sessions.router.add_route("*", "/{path:.*}", self._session_page)
            self._sessions_runner, self.session_port = await _listen(sessions, 0)

    async def pause(self) -> None:
        """Stop listening, as a manager that is being restarted; connections break."""
        assert self._runner is not None
        await self._runner.cleanup()
        self._runner = None

    async def close(self) -> None:
        """Stop everything."""
        for runner in (self._runner, self._sessions_runner):
            if runner is not None:
                await runner.cleanup()

    def live(self) -> list[FakeSession]:
        """Sessions that have not ended."""
        return [session for session in self.sessions if session.status not in FINAL]

    def run(self, session: FakeSession) -> None:
        """Give ``session`` what it waits for."""
        session.become("PREPARING", "Preparing the folder", 30)
        session.become("CREATING", "Creating the container", 60)
        session.url = f"http://127.0.0.1:{self.session_port}"
        session.become("RUNNING", "The session runs", 90)

    def fail(self, session: FakeSession, message: str, log: str = "", code: int | None = 1) -> None:
        """End ``session`` with an error."""
        session.log, session.exit_code, session.url = log, code, None
        session.become("ERROR", message, 100)

    @web.middleware
    async def _guard(self, request: web.Request, handler: Any) -> web.StreamResponse:
        user = unquote(request.headers.get("X-Perijove-User", ""))
        self.requests.append((request.method, request.path, user))
        if request.headers.get("Authorization") != f"Bearer {self.secret}":
            return _problem(401, "auth-failed", "Credential/signature mismatch.")
        request[USER] = user
        return await handler(request)

    async def _spawn_options(self, request: web.Request) -> web.Response:
        kinds = [
            _kind("cpu", "CPU", "CPU", "0.1"),
            _kind("mem", "Memory", "memory", "1"),
            *(_kind(slot, slot.split(".")[0].upper(), "GPU", "1") for slot in self.devices),
        ]
        free = {"cpu": "5", "mem": str(20 * GIB)} | {s: f for s, (f, _) in self.devices.items()}
        largest = {"cpu": str(self.largest_cpu), "mem": str(32 * GIB)}
        largest |= {slot: most for slot, (_, most) in self.devices.items()}
        return web.json_response(
            {
                "presets": [
                    {
                        "name": name,
                        "slots": slots,
                        "shmem": None,
                        "human": f"{slots['cpu']} CPUs, {int(slots['mem']) // GIB} GiB of memory",
                        "verdict": verdict,
                        "message": message,
                    }
                    for name, slots, verdict, message in self.presets
                ],
                "groups": [
                    {
                        "name": "default",
                        "description": "General work",
                        "agents": 2,
                        "free": free,
                        "largest": largest,
                        "slots": kinds,
                    }
                ],
                "images": [
                    {"name": "perijove/lab:1", "label": "JupyterLab", "architecture": "x86_64"},
                    {"name": "perijove/ml:1", "label": "<b>ML</b>", "architecture": "x86_64"},
                ],
                "defaults": {
                    "image": "perijove/lab:1",
                    "resource_group": "default",
                    "preset": "Small",
                },
                "notice": None,
            }
        )

    async def _check(self, request: web.Request) -> web.Response:
        body = await request.json()
        cpus = float(body["slots"].get("cpu", 0))
        if cpus > self.largest_cpu:
            text = f"No node has {cpus:g} CPUs; the largest has {self.largest_cpu}."
            return web.json_response({"verdict": "never", "message": text, "errors": {"cpu": text}})
        if cpus > 5:
            text = "It would wait: 5 CPUs are free."
            return web.json_response({"verdict": "wait", "message": text, "errors": {}})
        return web.json_response({"verdict": "now", "message": "It fits now.", "errors": {}})

    async def _servers(self, request: web.Request) -> web.Response:
        hub = request.query["hub"]
        mine = [s for s in self.live() if s.body["perijove"]["hub"] == hub]
        return web.json_response({"servers": [session.as_server() for session in mine]})

    async def _server(self, request: web.Request) -> web.Response:
        found = self._newest(request[USER], request.match_info["name"], request.query["hub"])
        if found is None:
            return _problem(404, "object-not-found", "No such session.")
        return web.json_response(found.as_server())

    def _newest(self, user: str, name: str, hub: str) -> FakeSession | None:
        for session in reversed(self.sessions):
            if (session.user, session.name) == (user, name):
                return session if session.body["perijove"]["hub"] == hub else None
        return None

    async def _create(self, request: web.Request) -> web.Response:
        body = await request.json()
        if self.refuse is not None:
            status, problem = self.refuse
            return web.json_response(problem, status=status)
        for session in self.live():
            if (session.user, session.name) == (request[USER], body["name"]):
                return web.json_response(_created(session, False), status=201)
        session = FakeSession(body["name"], request[USER], body)
        session.become("PENDING", QUEUED, 5)
        self.sessions.append(session)
        if self.run_at_once:
            self.run(session)
        return web.json_response(_created(session, True), status=201)

    async def _destroy(self, request: web.Request) -> web.Response:
        session = self._mine(request)
        if session is None or session.status in FINAL:
            return _problem(404, "object-not-found", "No such session.")
        session.target = "TERMINATED"
        if session.status == "PENDING":
            session.become("CANCELLED", "Cancelled by its owner", 100)
        else:
            session.become("TERMINATING", "Ending", 100)
            session.exit_code = 0
            asyncio.get_running_loop().call_later(
                0.3, session.become, "TERMINATED", "Ended by its owner", 100
            )
        return web.json_response({"stats": {"status": "terminated"}})

    async def _progress(self, request: web.Request) -> web.StreamResponse:
        session = self._mine(request)
        if session is None:
            return _problem(404, "object-not-found", "No such session.")
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        told = 0
        with contextlib.suppress(ConnectionResetError):  # the hub was killed
            while True:
                for step in session.steps[told:]:
                    await response.write(_event("progress", step))
                told = len(session.steps)
                if session.status in (*FINAL, "RUNNING"):
                    last = session.as_server()
                    keys = ("status", "message", "url", "exit_code")
                    await response.write(_event("end", {key: last[key] for key in keys}))
                    break
                await session.changed.wait()
        return response

    async def _logs(self, request: web.Request) -> web.Response:
        session = self._mine(request)
        return web.json_response({"result": {"logs": session.log if session else ""}})

    def _mine(self, request: web.Request) -> FakeSession | None:
        for session in self.sessions:
            if (session.id, session.user) == (request.match_info["id"], request[USER]):
                return session
        return None

    async def _session_page(self, request: web.Request) -> web.Response:
        alive = [s for s in self.sessions if s.status == "RUNNING"]
        return web.Response(text=f"session page {request.path} {len(alive)}")


def _kind(name: str, human: str, unit: str, quantum: str) -> dict[str, str]:
    kind = "bytes" if name == "mem" else "count"
    return {"name": name, "human_name": human, "unit": unit, "type": kind, "quantum": quantum}


def _created(session: FakeSession, created: bool) -> dict[str, Any]:
    return {
        "sessionId": session.id,
        "sessionName": session.name,
        "status": session.status,
        "servicePorts": [],
        "created": created,
    }


def _event(name: str, data: dict[str, Any]) -> bytes:
    return f"event: {name}\ndata: {json.dumps(data)}\n\n".encode()


def _problem(status: int, slug: str, title: str) -> web.Response:
    return web.json_response(
        {"type": f"https://api.backend.ai/probs/{slug}", "title": title}, status=status
    )


async def _listen(app: web.Application, port: int) -> tuple[web.AppRunner, int]:
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", port, reuse_address=True)
    await site.start()
    assert site._server is not None
    return runner, site._server.sockets[0].getsockname()[1]
