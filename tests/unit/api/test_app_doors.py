"""Who does not get in to apps is refused before anything is asked of a node: no start, no connection."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import pytest_asyncio
from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets
from tornado.web import Application, RequestHandler, create_signed_value

from store.database import Store
from tests.harness.plane import sqlite_url
from tests.unit.api.server import Api, serving

SCOPES = [
    "access:services!service=perijove",
    "access:services!service=perijove-apps",
    "custom:perijove:sessions",
]
PEOPLE = {"amy-token": ("amy", SCOPES), "eve-token": ("eve", SCOPES), "narrow-token": ("amy", [])}
PEOPLE["apps-token"] = ("amy", ["access:services!service=perijove-apps"])
SECRET = b"0" * 32
SOCKET = {"Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Version": "13"}
SOCKET["Sec-WebSocket-Key"] = "AAAAAAAAAAAAAAAAAAAAAA=="
ELSEWHERE = {"Origin": "http://elsewhere.example"}


class Whoami(RequestHandler):
    """What the hub says of a token."""

    def get(self) -> None:
        found = PEOPLE.get(self.request.headers["Authorization"].split()[-1])
        if found is None:
            self.set_status(403)
            self.finish({"message": "unknown"})
            return
        self.finish({"kind": "user", "name": found[0], "scopes": found[1], "admin": False})


@dataclass
class Doors:
    """A manager whose node says where its relay is, and how often somebody came to that."""

    api: Api
    session_id: str
    came: list[int] = field(default_factory=list)

    def starts(self) -> int:
        return sum(call.method == "start_app" for call in self.api.plane.agents[0].calls)


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def doors(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Doors]:
    folder: Path = tmp_path_factory.mktemp("doors")
    sockets = bind_sockets(0, "127.0.0.1")
    hub = HTTPServer(Application([("/hub/api/user", Whoami)]))
    hub.add_sockets(sockets)
    store = Store(sqlite_url(folder, folder))
    hub_api = f"http://127.0.0.1:{sockets[0].getsockname()[1]}/hub/api"
    came: list[int] = []

    async def relay(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        came.append(1)
        writer.close()

    server = await asyncio.start_server(relay, "127.0.0.1", 0)
    try:
        async with serving(store, folder, hub_api=hub_api) as api:
            host, port = server.sockets[0].getsockname()
            api.plane.agents[0].relay = (host, port)
            detail = await api.plane.wait(await api.plane.create(await api.principal("amy")))
            yield Doors(api, str(detail.session.id), came)
    finally:
        server.close()
        await server.wait_closed()
        await store.close()
        hub.stop()
        await hub.close_all_connections()


def cookie(name: str, token: str, secret: bytes = SECRET) -> dict[str, str]:
    return {"Cookie": f"{name}={create_signed_value(secret, name, token).decode()}"}


def token(value: str) -> dict[str, str]:
    return {"Authorization": f"token {value}"}


OURS, APPS = "service-perijove", "service-perijove-apps"
WEB = {
    "nothing": ({}, 401),
    "an unknown token": (token("mine"), 401),
    "a token without the right": (token("narrow-token"), 403),
    "another person's token": (token("eve-token"), 404),
    "another person's cookie": (cookie(APPS, "eve-token"), 404),
    "a cookie that ended": (cookie(APPS, "mine"), 401),
    "a cookie of one's own making": (cookie(APPS, "amy-token", b"1" * 32), 401),
    "the cookie of another service": (cookie(OURS, "amy-token"), 401),
    "another site": ({**cookie(APPS, "amy-token"), **ELSEWHERE}, 403),
    "another site with a token": ({**cookie(APPS, "amy-token"), **ELSEWHERE, **token("amy-token")}, 403),
    "no origin": ({**cookie(APPS, "amy-token"), "Origin": "null"}, 403),
    "another site's image": ({**cookie(APPS, "amy-token"), "Sec-Fetch-Site": "cross-site"}, 403),
}  # fmt: skip
STREAMS = {
    "nothing": ({}, 401),
    "an unknown token": (token("mine"), 401),
    "a token without the right": (token("narrow-token"), 403),
    "another person's token": (token("eve-token"), 404),
    "the cookie of the apps": (cookie(APPS, "amy-token"), 401),
    "a cookie without the page's word": (cookie(OURS, "amy-token"), 400),
    "another site": ({**cookie(OURS, "amy-token"), **ELSEWHERE}, 400),
    "a token from another site": ({**token("amy-token"), **ELSEWHERE}, 403),
}


@pytest.mark.parametrize("kind", ["HTTP", "WebSocket"])
@pytest.mark.parametrize("name", WEB)
async def test_web_apps(doors: Doors, name: str, kind: str) -> None:
    headers, status = WEB[name]
    socket = SOCKET if kind == "WebSocket" else {}
    for app in ("jupyterlab", "terminal", "sshd"):
        path = f"/services/perijove-apps/{doors.session_id}/{app}/api"
        refused = await doors.api.send("GET", path, headers={**headers, **socket})
        assert refused.status == status, (app, refused.body)
    assert (doors.starts(), doors.came) == (0, [])


@pytest.mark.parametrize("name", STREAMS)
async def test_tunnels_and_terminals(doors: Doors, name: str) -> None:
    headers, status = STREAMS[name]
    for place in ("tcpproxy?app=jupyterlab", "httpproxy?app=jupyterlab", "pty"):
        path = f"/services/perijove/stream/session/{doors.session_id}/{place}"
        for socket in (SOCKET, {}):
            refused = await doors.api.send("GET", path, headers={**headers, **socket})
            assert refused.status == status, (place, refused.body)
    assert (doors.starts(), doors.came) == (0, [])


async def test_the_owner_gets_as_far_as_the_node(doors: Doors) -> None:
    """Last, since it leaves traces: the tests above would see them."""
    stream = f"/services/perijove/stream/session/{doors.session_id}/pty"
    app = f"/services/perijove-apps/{doors.session_id}/jupyterlab/"
    seen = 0
    for path, headers in (
        (stream, {**token("amy-token"), **SOCKET}),
        (app, token("amy-token")),
        (app, {**cookie(APPS, "amy-token"), "Origin": f"http://{doors.api.host}"}),
        (f"{app}ws", {**cookie(APPS, "amy-token"), **SOCKET}),
        (app, {**cookie(APPS, "amy-token"), **token("of the app's page")}),
    ):
        answer = await doors.api.send("GET", path, headers=headers)
        assert answer.status == 503, answer.body
        assert len(doors.came) > seen, path
        seen = len(doors.came)
