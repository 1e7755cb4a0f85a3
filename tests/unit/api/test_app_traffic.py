"""What becomes of connections to an app that go wrong on the way: clients that leave, apps that do not answer."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import pytest_asyncio
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession
from tornado.httpclient import HTTPRequest
from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets
from tornado.web import Application
from tornado.websocket import websocket_connect

from spawner.sessions.execution import APP, KEY
from spawner.sessions.tables import KernelRow
from store.database import Store
from tests.harness.plane import sqlite_url
from tests.unit.api.server import Api, serving
from tests.unit.api.test_app_doors import APPS, SOCKET, Whoami, cookie, token

WITHIN = 5.0
MUCH = b"x" * (1024 * 1024)


@dataclass
class App:
    """A relay with an app behind it, which answers 200 and WebSockets unless told otherwise."""

    api: Api
    session_id: str
    asked: list[str] = field(default_factory=list)
    came: asyncio.Event = field(default_factory=asyncio.Event)
    """Somebody waits at the relay."""
    opens: asyncio.Event = field(default_factory=asyncio.Event)
    left: asyncio.Event = field(default_factory=asyncio.Event)
    """A connection that was let in was ended by the manager."""
    silent: bool = False
    """It ends connections instead of answering."""
    says: bytes | None = None
    """The answer to a line, for what is no web app."""

    def begin(self, *, opens: bool = True, silent: bool = False) -> None:
        self.asked.clear()
        self.silent, self.says = silent, None
        for event in (self.came, self.opens, self.left):
            event.clear()
        if opens:
            self.opens.set()

    async def relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        self.came.set()
        await self.opens.wait()
        writer.write(b"ok\n")
        if self.says is not None:
            await reader.readline()
            writer.write(self.says)
            writer.close()
            return
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            self.asked.append(head.partition(" HTTP")[0])
            if not self.silent:
                writer.write(_answer(head))
                await reader.read(1)  # of a frame that closes, or the end
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        self.left.set()
        writer.close()

    @property
    def url(self) -> str:
        return f"/services/perijove-apps/{self.session_id}/jupyterlab/api"

    async def have(self, name: str, protocol: str) -> None:
        """Give the session another app, and the key of the one that runs code."""
        identity = uuid.UUID(self.session_id)

        async def work(db: AsyncSession) -> None:
            query = select(KernelRow).where(KernelRow.session_id == identity)
            kernel = (await db.scalars(query)).one()
            made = {"name": name, "protocol": protocol, "port": 9, "argv": ["made"]}
            environ = {**kernel.spec.get("environ", {}), KEY: "key"}
            kernel.spec = {
                **kernel.spec,
                "apps": [*kernel.spec["apps"], made],
                "environ": environ,
            }

        await self.api.plane.store.write(work)

    async def leave_while_it_opens(self, path: str, headers: dict[str, str]) -> None:
        """Ask, leave when the manager waits for the relay, and let the relay open once that was seen."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.api.port)
        given = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        writer.write(f"GET {path} HTTP/1.1\r\nHost: {self.api.host}\r\n{given}\r\n".encode())
        await asyncio.wait_for(self.came.wait(), WITHIN)
        writer.write_eof()
        assert await asyncio.wait_for(reader.read(), WITHIN) == b""
        writer.close()
        self.opens.set()


def _answer(head: str) -> bytes:
    if "Upgrade: websocket" not in head:
        return b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
    key = head.partition("Sec-WebSocket-Key: ")[2].partition("\r\n")[0]
    digest = hashlib.sha1(f"{key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11".encode()).digest()
    accept = base64.b64encode(digest).decode()
    lines = ("Upgrade: websocket", "Connection: Upgrade", f"Sec-WebSocket-Accept: {accept}")
    return "\r\n".join(("HTTP/1.1 101 Switching Protocols", *lines, "", "")).encode()


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def app(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[App]:
    folder: Path = tmp_path_factory.mktemp("traffic")
    sockets = bind_sockets(0, "127.0.0.1")
    hub = HTTPServer(Application([("/hub/api/user", Whoami)]))
    hub.add_sockets(sockets)
    store = Store(sqlite_url(folder, folder))
    hub_api = f"http://127.0.0.1:{sockets[0].getsockname()[1]}/hub/api"
    try:
        async with serving(store, folder, hub_api=hub_api) as api:
            detail = await api.plane.wait(await api.plane.create(await api.principal("amy")))
            app = App(api, str(detail.session.id))
            server = await asyncio.start_server(app.relay, "127.0.0.1", 0)
            host, port = server.sockets[0].getsockname()
            api.plane.agents[0].relay = (host, port)
            yield app
        server.close()
        await server.wait_closed()
    finally:
        await store.close()
        hub.stop()
        await hub.close_all_connections()


async def test_who_leaves_while_a_terminal_opens_leaves_no_shell_behind(app: App) -> None:
    app.begin(opens=False)
    path = f"/services/perijove/stream/session/{app.session_id}/pty"
    await app.leave_while_it_opens(path, {**token("amy-token"), **SOCKET})
    await asyncio.wait_for(app.left.wait(), WITHIN)


async def test_who_leaves_while_an_app_opens_leaves_no_connection_behind(app: App) -> None:
    app.begin(opens=False)
    headers = {**cookie(APPS, "amy-token"), **SOCKET}
    await app.leave_while_it_opens(app.url, headers)
    await asyncio.wait_for(app.left.wait(), WITHIN)


async def test_a_websocket_that_is_none_leaves_no_connection_behind(app: App) -> None:
    app.begin()
    headers = {**cookie(APPS, "amy-token"), **SOCKET, "Sec-WebSocket-Version": "8"}
    refused = await app.api.send("GET", app.url, headers=headers)
    assert refused.status == 426
    await asyncio.wait_for(app.left.wait(), WITHIN)


async def test_an_upload_to_an_app_that_does_not_answer_is_told(app: App) -> None:
    app.begin(silent=True)
    headers = cookie(APPS, "amy-token")
    refused = await app.api.send("PUT", app.url, raw=MUCH, headers=headers, timeout=WITHIN)
    assert refused.status == 503


async def test_an_app_that_does_not_speak_tls_after_all_is_told(app: App) -> None:
    await app.have("secure", "https")
    app.begin()
    app.says = b"no TLS\n"
    url = app.url.replace("jupyterlab", "secure")
    refused = await app.api.send("GET", url, headers=cookie(APPS, "amy-token"))
    assert (refused.status, refused.problem) == (503, "instance-not-available")


async def test_what_may_have_had_its_effect_is_not_asked_twice(app: App) -> None:
    headers = cookie(APPS, "amy-token")
    app.begin(silent=True)
    assert (await app.api.send("POST", app.url, raw=b"", headers=headers)).status == 503
    assert app.asked == ["POST /api"]
    app.begin(silent=True)
    assert (await app.api.send("GET", app.url, headers=headers)).status == 503
    assert len(app.asked) > 1


async def test_a_run_that_goes_wrong_is_told_and_ended(app: App) -> None:
    """Whatever the session's side says."""
    await app.have(APP, "internal")
    app.begin()
    app.says = b"{}"
    path = f"/services/perijove/stream/session/{app.session_id}/execute"
    request = HTTPRequest(f"ws://{app.api.host}{path}", headers=token("amy-token"))
    for sent, words in (('{"mode": "query", "code": "1"}', "nternal"), ("no JSON", "malformed")):
        socket = await websocket_connect(request)
        try:
            await socket.write_message(sent)
            async with asyncio.timeout(WITHIN):
                answer = json.loads(await socket.read_message() or "{}")
                ended = await socket.read_message() is None
            assert answer["status"] == "error"
            assert words in answer["msg"]
            assert ended
        finally:
            socket.close()


async def test_a_token_without_the_right_does_not_come_in_behind_another(app: App) -> None:
    app.begin()
    for given, status in (("apps-token", 403), ("amy-token", 200), ("apps-token", 403)):
        answer = await app.api.send("GET", app.url, headers=token(given))
        assert answer.status == status, given
