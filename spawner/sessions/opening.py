"""Opening apps of sessions: whose they are, what they are, and where their node lets the manager in."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from authenticator.principals import Principal, Scope, require
from authenticator.problems import AgentUnavailable, BadRequest, InvalidParameters, NotFound
from spawner.agent import preamble
from spawner.agent.programs import PROTOCOL
from spawner.sessions import queries
from spawner.sessions.agents import AgentRegistry
from spawner.sessions.apps import BASE_PATH, JUPYTER_TOKEN, base_path
from spawner.sessions.states import Status
from spawner.sessions.tables import KernelRow
from store.database import Store

START_TIMEOUT = 75.0
"""Seconds that an app may take to answer; its node gives up a little sooner."""
CONNECT_TIMEOUT = 10.0
PROGRAMS = "programs"
"""What the platform itself runs in a session; it is in no image's list of apps."""
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@dataclass(frozen=True, slots=True)
class Wish:
    """Which app, and what to start it with besides."""

    name: str
    port: int | None = None
    arguments: Sequence[str] = ()
    environ: Mapping[str, str] | None = None


@dataclass(frozen=True, slots=True)
class Opened:
    """An app that runs: where its node lets in who knows the token, and what it is."""

    host: str
    port: int
    token: str
    protocol: str
    keeps_path: bool = False
    """It knows the path that browsers have it under, which its proxy leaves in place."""
    authorization: str | None = None
    """What it asks of everybody, and its proxy says for the owner."""


class AppService:
    """Apps of users' sessions. Every method authorizes its principal.

    ``path`` is where browsers find all apps, with slashes around.
    """

    def __init__(self, store: Store, agents: AgentRegistry, path: str) -> None:
        self._store, self._agents, self.path = store, agents, path

    def base_path(self, session_id: uuid.UUID, name: str, port: int | None = None) -> str:
        """Where browsers find one app, with slashes around; ``port``: if it was named."""
        return base_path(self.path, session_id, name, port)

    async def start(self, principal: Principal, ref: str, wish: Wish) -> Opened:
        """Make an app run.

        Raises ``NotFound`` for the session or the app, ``BadRequest``, ``AgentUnavailable``.
        """
        kernel = await self.kernel(principal, ref)
        apps = [app for app in kernel.spec.get("apps", ()) if app["name"] == wish.name]
        app = next((app for app in apps if wish.port in (None, app["port"])), None)
        if app is None:
            known = ", ".join(each["name"] for each in kernel.spec.get("apps", ()))
            raise NotFound("app service", f"{wish.name[:64]!r}: this session has {known}")
        if wish.arguments and not app["argv"]:
            raise InvalidParameters(
                {"arguments": f"{wish.name} takes none: it is not started here"}
            )
        base = self.base_path(kernel.session_id, wish.name, wish.port)
        argv = [word.replace(BASE_PATH, base) for word in app["argv"]]
        call = {**app, "argv": [*argv, *wish.arguments], "environ": dict(wish.environ or {})}
        opened = await self._start(kernel, call)
        if app.get("own"):
            return replace(opened, keeps_path=True, authorization=_authorization(kernel))
        return replace(opened, keeps_path=argv != app["argv"])

    async def _start(self, kernel: KernelRow, app: Mapping[str, Any]) -> Opened:
        params = {"kernel_id": str(kernel.id), "app": app}
        answer = await self._agents.call(kernel.agent_id, "start_app", params, START_TIMEOUT)
        return Opened(
            str(answer["host"]),
            int(answer["port"]),
            str(answer["token"]),
            str(answer["protocol"]),
        )

    async def stop(self, principal: Principal, ref: str, name: str) -> None:
        """End an app; the next who opens it starts it again."""
        kernel = await self.kernel(principal, ref)
        if name not in {app["name"] for app in kernel.spec.get("apps", ())}:
            raise NotFound("app service", f"there is no app {name[:64]!r} in this session")
        params = {"kernel_id": str(kernel.id), "name": name}
        await self._agents.call(kernel.agent_id, "stop_app", params, START_TIMEOUT)

    async def connect(self, principal: Principal, ref: str, wish: Wish) -> Streams:
        """A connection to an app, which is started if need be. Raises as ``start``."""
        return await self._dial(await self.start(principal, ref, wish), wish.name)

    async def run(self, kernel: KernelRow, argv: Sequence[str]) -> Streams:
        """A program of the platform in a kernel, as its user: frames of ``spawner.agent.preamble``.

        Raises ``AgentUnavailable``.
        """
        app = {"name": PROGRAMS, "protocol": PROTOCOL, "port": 0}
        reader, writer = await self._dial(await self._start(kernel, app), PROGRAMS)
        writer.write(preamble.frame(preamble.DATA, json.dumps(list(argv)).encode()))
        return reader, writer

    async def _dial(self, opened: Opened, name: str) -> Streams:
        writer: asyncio.StreamWriter | None = None
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT):
                reader, writer = await asyncio.open_connection(opened.host, opened.port)
                await preamble.introduce(reader, writer, opened.token)
        except BaseException as error:
            if writer is not None:
                writer.close()
            if isinstance(error, OSError):
                raise AgentUnavailable(f"{name} cannot be reached: {error}") from error
            raise
        return reader, writer

    async def kernel(self, principal: Principal, ref: str) -> KernelRow:
        """The main kernel of a session that runs, as its row is."""
        require(principal, Scope.SESSIONS)

        async def work(db: AsyncSession) -> KernelRow:
            row = await queries.resolve(db, principal, ref, Scope.SESSIONS)
            query = select(KernelRow).where(
                KernelRow.session_id == row.id, KernelRow.cluster_role == "main"
            )
            return (await db.scalars(query)).one()

        kernel = await self._store.read(work)
        if kernel.status != Status.RUNNING:
            raise BadRequest(f"the session does not run: it is {kernel.status}")
        return kernel


def _authorization(kernel: KernelRow) -> str | None:
    """What the session's own Jupyter server asks for."""
    token = str(kernel.spec.get("environ", {}).get(JUPYTER_TOKEN, ""))
    return f"token {token}" if token and token.isascii() and token.isprintable() else None
