"""A manager's HTTP server on a real control plane, and clients that sign in the ways there are."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tornado.httpclient import AsyncHTTPClient, HTTPRequest, HTTPResponse
from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets

from authenticator.keypairs import KeyPairService, NewKeyPair
from authenticator.principals import Principal, Role
from authenticator.signing import SignedRequest, sign
from hub.api.application import application
from hub.api.authentication import APPS, Authentication, hub_login
from hub.api.handler import MAX_BODY
from hub.api.services import API_VERSION, Services
from spawner.sessions.control import ControlSettings
from store.database import Store
from tests.harness.plane import TOKEN, Rig, rig

HUB_SECRET = "hub-secret-for-tests-0123456789"


@dataclass(frozen=True)
class Answer:
    """An answer with its JSON body."""

    status: int
    headers: Mapping[str, str]
    body: Any

    @property
    def problem(self) -> str:
        """Last part of a problem's type; fails for anything else."""
        assert self.headers["Content-Type"] == "application/problem+json", self.body
        assert {"type", "title"} <= set(self.body), self.body
        return str(self.body["type"]).rpartition("/")[2]


class Api:
    """The server of one test module."""

    def __init__(self, plane: Rig, services: Services, port: int) -> None:
        self.plane, self.services, self.port = plane, services, port
        self.host = f"127.0.0.1:{port}"

    async def send(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        headers: Mapping[str, str] | None = None,
        raw: bytes | None = None,
        timeout: float = 10,
    ) -> Answer:
        """One request; ``raw`` instead of ``body`` for what is no JSON."""
        content = raw if raw is not None else None if body is None else json.dumps(body).encode()
        request = HTTPRequest(
            f"http://{self.host}{path}",
            method=method,
            headers=dict(headers or {}),
            body=content,
            allow_nonstandard_methods=True,
            follow_redirects=False,
            request_timeout=timeout,
        )
        response: HTTPResponse = await AsyncHTTPClient().fetch(request, raise_error=False)
        text = response.body.decode()
        is_json = "json" in response.headers.get("Content-Type", "")
        value = json.loads(text) if is_json and text else text
        return Answer(response.code, response.headers, value)

    async def hub(self, method: str, path: str, body: Any = None, user: str = "ada") -> Answer:
        """As the hub, for ``user``."""
        headers = {"Authorization": f"Bearer {HUB_SECRET}", "X-Perijove-User": user}
        return await self.send(method, path, body, headers=headers)

    async def signed(
        self,
        pair: NewKeyPair,
        method: str,
        path: str,
        body: Any = None,
        *,
        at: dt.datetime | None = None,
        altered: Mapping[str, str] | None = None,
        signed_path: str | None = None,
    ) -> Answer:
        """Signed with a key pair, as Backend.AI's clients do."""
        date = (at or dt.datetime.now(dt.UTC)).isoformat()
        given = SignedRequest(
            method, signed_path or path, self.host, date, API_VERSION, "application/json", None
        )
        headers = sign(given, pair.access_key, pair.secret_key)
        headers |= {"Content-Type": "application/json"} | dict(altered or {})
        return await self.send(method, path, body, headers=headers)

    async def user(self, name: str, role: Role = Role.USER) -> NewKeyPair:
        """A new user's key pair."""
        await self.services.identity.create_user(name, role=role)
        return await self.services.keypairs.create(name)

    async def principal(self, name: str) -> Principal:
        return await self.plane.user(name)


@asynccontextmanager
async def serving(
    store: Store,
    folder: Path,
    settings: ControlSettings | None = None,
    *,
    agent: bool = True,
    hub_api: str = "http://127.0.0.1:9/hub/api",
) -> AsyncIterator[Api]:
    """A server on a free port of the loopback address; ``agent``: one of 4 CPUs and 8 GiB in memory.

    Nothing listens at ``hub_api``: a hub that cannot be asked.
    """
    async with rig(store, folder, settings) as plane:
        if agent:
            await plane.agent()
        keypairs = KeyPairService(store, plane.clock)

        async def agent_known(token: str) -> bool:
            return token == TOKEN

        services = Services(
            store=store,
            identity=plane.identity,
            keypairs=keypairs,
            folders=plane.folders,
            control=plane.plane,
            now=plane.clock,
        )
        authentication = Authentication(
            plane.identity,
            keypairs,
            plane.clock,
            hub=hub_login(hub_api, "/hub/", services.prefix, "token"),
            hub_secret=HUB_SECRET,
            agent_known=agent_known,
        )
        path = plane.plane.apps.path
        apps_login = hub_login(hub_api, "/hub/", path, "token", APPS)
        app = application(services, authentication, apps_login, b"0" * 32)
        server = HTTPServer(app, max_body_size=2 * MAX_BODY)
        sockets = bind_sockets(0, "127.0.0.1")
        server.add_sockets(sockets)
        try:
            yield Api(plane, services, sockets[0].getsockname()[1])
        finally:
            await app.settings["app_doors"].close()
            server.stop()
            await server.close_all_connections()
