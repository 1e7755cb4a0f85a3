"""An agent that leaves before it is let in."""

from __future__ import annotations

import asyncio

import pytest
from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets
from tornado.web import Application

from hub.api.authentication import Authentication, hub_login
from hub.api.connections import AgentConnect
from tests.unit.api.server import HUB_SECRET, Api
from tests.unit.api.test_app_doors import SOCKET, token

WITHIN = 5.0


async def test_an_agent_that_leaves_while_its_token_is_looked_up_is_let_go(
    api: Api, caplog: pytest.LogCaptureFixture
) -> None:
    came, known = asyncio.Event(), asyncio.Event()

    async def agent_known(_: str) -> bool:
        came.set()
        await known.wait()
        return True

    services = api.services
    authentication = Authentication(
        services.identity,
        services.keypairs,
        services.now,
        hub=hub_login("http://127.0.0.1:9/hub/api", "/hub/", services.prefix, "token"),
        hub_secret=HUB_SECRET,
        agent_known=agent_known,
    )
    server = HTTPServer(
        Application(
            [("/agents/connect", AgentConnect)], services=services, authentication=authentication
        )
    )
    sockets = bind_sockets(0, "127.0.0.1")
    server.add_sockets(sockets)
    reader, writer = await asyncio.open_connection(*sockets[0].getsockname())
    given = "".join(f"{name}: {value}\r\n" for name, value in {**token("t"), **SOCKET}.items())
    writer.write(f"GET /agents/connect HTTP/1.1\r\nHost: here\r\n{given}\r\n".encode())
    await asyncio.wait_for(came.wait(), WITHIN)
    writer.write_eof()
    assert await asyncio.wait_for(reader.read(), WITHIN) == b""
    writer.close()
    known.set()
    server.stop()
    await asyncio.wait_for(server.close_all_connections(), WITHIN)
    assert [each.getMessage() for each in caplog.records if each.levelname == "ERROR"] == []
