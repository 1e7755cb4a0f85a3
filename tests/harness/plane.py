"""A whole control plane on a real database, without HTTP: the subject of the engine's tests.

``crash`` throws the manager away where it stands; ``restart`` builds another on the same database.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import shutil
import sqlite3
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, closing
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import pytest
from sqlalchemy import create_engine
from sqlalchemy.ext.asyncio import AsyncSession

import authenticator.tables
import spawner.sessions.tables
import vfolder.tables
from authenticator.identity import IdentityService
from authenticator.principals import Principal, Role, Via
from authenticator.problems import InvalidParameters
from authenticator.tables import KeyPairPolicyRow, ProjectPolicyRow, UserPolicyRow
from spawner.agent.protocol import DeviceReport
from spawner.sessions.control import ControlPlane, ControlSettings
from spawner.sessions.invariants import validate
from spawner.sessions.requests import HubLaunch, NewSession, SessionDetail
from spawner.sessions.states import FINAL, Status
from spawner.sessions.tables import AgentRow, KernelRow
from store.base import Base
from store.database import Store
from tests.harness.agent import IMAGE, FakeAgent
from vfolder.folders import FolderService
from vfolder.volumes.local import LocalVolume

T = TypeVar("T")
TOKEN = "test-agent-token-0123456789"
REQUEST = "request-1"
PATIENCE = 20.0
TABLES = (authenticator.tables, spawner.sessions.tables, vfolder.tables)
FINISHED = frozenset(FINAL)
UP = frozenset({Status.RUNNING}) | FINISHED


class Clock:
    """The time as the test tells it; it also moves with real time, so that things have an order."""

    def __init__(self) -> None:
        self._offset = dt.timedelta()

    def __call__(self) -> dt.datetime:
        return dt.datetime.now(dt.UTC) + self._offset

    def forward(self, seconds: float) -> None:
        self._offset += dt.timedelta(seconds=seconds)


@cache
def _empty_sqlite(folder: Path) -> Path:
    """A database with all tables, made once per run and copied."""
    path = folder / "empty.sqlite"
    engine = create_engine(f"sqlite:///{path}")
    Base.metadata.create_all(engine)
    engine.dispose()
    return path


def sqlite_url(folder: Path, templates: Path) -> str:
    """The URL of a fresh database in ``folder``."""
    path = folder / "perijove.sqlite"
    shutil.copy(_empty_sqlite(templates), path)
    return f"sqlite:///{path}"


async def until(look: Callable[[], Awaitable[T]], good: Callable[[T], bool]) -> T:
    """The answer of ``look`` as soon as it is ``good``; fails after ``PATIENCE`` seconds."""
    deadline = time.monotonic() + PATIENCE
    while True:
        answer = await look()
        if good(answer):
            return answer
        assert time.monotonic() < deadline, f"still {answer!r}"
        await asyncio.sleep(0.01)


class Rig:
    """Store, folders, control plane, users and agents of one test."""

    def __init__(self, store: Store, folder: Path, settings: ControlSettings | None = None) -> None:
        self.store, self.folder = store, folder
        self.settings = replace(settings or ControlSettings(), agent_token=TOKEN)
        self.clock = Clock()
        self.agents: list[FakeAgent] = []

    async def start(self) -> None:
        await self.store.open()
        self.identity = IdentityService(self.store, self.clock)
        await self.identity.bootstrap()
        volume = LocalVolume("local", self.folder / "volume")
        self.folders = FolderService(self.store, [volume], self.clock)
        self.plane = ControlPlane(self.store, self.folders, self.clock, self.settings)
        self.folders.in_use = self.plane.sessions.mounted
        self.plane.reconciler.longest_pause = dt.timedelta.max  # tests move the clock by more
        self.plane.reconciler._pruned = self.clock()  # nothing is old yet
        await self.plane.start()
        await asyncio.wait_for(self.plane.leads.wait(), PATIENCE)

    async def stop(self) -> None:
        for agent in self.agents:
            await agent.disconnect()
        await self.plane.stop()

    async def crash(self) -> None:
        """Throw the manager away without a farewell, and its connections with it."""
        plane = self.plane
        doomed = [plane._task, *plane.agents._serving]
        for task in doomed:
            if task is not None:
                task.cancel()
        await asyncio.gather(*(t for t in doomed if t is not None), return_exceptions=True)
        for agent in self.agents:
            await agent.disconnect()
        await self.store.close()

    async def restart(self) -> None:
        """A new manager on the same database; the agents dial in again."""
        await self.start()
        for agent in self.agents:
            await self.connect(agent)

    async def agent(self, agent: FakeAgent | None = None) -> FakeAgent:
        """Connect an agent and wait until the manager knows it."""
        agent = agent or FakeAgent()
        self.agents.append(agent)
        await self.connect(agent)
        return agent

    async def connect(self, agent: FakeAgent) -> None:
        agent.welcome = agent.wanted = None
        agent.clock = self.clock
        await agent.connect(self.plane.agents, TOKEN)

        async def heard() -> bool:
            assert agent.wire is not None
            assert agent.wire.closed is None, agent.wire.closed
            return agent.wanted is not None

        await until(heard, bool)

    async def user(self, name: str = "ada", role: Role = Role.USER) -> Principal:
        """A user, made when needed."""
        principal = await self.identity.principal_by_username(name, Via.HUB, create=True)
        return replace(principal, via=Via.KEYPAIR, role=role)

    async def policy(self, **limits: object) -> None:
        """Change the default key pair policy."""
        await self._limit(KeyPairPolicyRow, limits)

    async def user_policy(self, **limits: object) -> None:
        """Change the default user policy."""
        await self._limit(UserPolicyRow, limits)

    async def project_policy(self, **limits: object) -> None:
        """Change the default project policy."""
        await self._limit(ProjectPolicyRow, limits)

    async def _limit(
        self,
        table: type[KeyPairPolicyRow | UserPolicyRow | ProjectPolicyRow],
        limits: Mapping[str, object],
    ) -> None:
        async def work(db: AsyncSession) -> None:
            row = await db.get_one(table, "default")
            for name, value in limits.items():
                setattr(row, name, value)

        await self.store.write(work)

    async def create(self, owner: Principal, **fields: Any) -> SessionDetail:
        """Submit a session, with defaults for what the test does not care about."""
        created = await self.plane.sessions.create(owner, owner, request(**fields), REQUEST)
        return created.detail

    async def refuses(self, where: str, sentence: str, **fields: Any) -> None:
        """A request of ada's with one wrong field is refused, with that in its sentence."""
        if not self.agents:
            await self.agent()
        ada = await self.user()
        with pytest.raises(InvalidParameters) as refused:
            await self.create(ada, **fields)
        assert list(refused.value.fields) == [where]
        assert sentence in refused.value.fields[where]

    async def wait(self, detail: SessionDetail, *statuses: Status) -> SessionDetail:
        """The session once it has one of ``statuses`` (default: RUNNING or ended)."""
        wanted = frozenset(statuses) or UP
        found = await self.plane.sessions.wait(detail.session.id, wanted, PATIENCE)
        assert found.status in wanted, (found.status, found.session.status_info)
        return found

    async def run(self, owner: Principal, **fields: Any) -> SessionDetail:
        """A session that runs."""
        found = await self.wait(await self.create(owner, **fields))
        assert found.status is Status.RUNNING, found.session.status_info
        return found

    async def destroy(
        self, owner: Principal, detail: SessionDetail, *, forced: bool = False
    ) -> SessionDetail:
        (ended,) = await self.plane.sessions.destroy(
            owner, str(detail.session.id), forced=forced, request_id=REQUEST
        )
        return ended

    async def kernel(self, detail: SessionDetail) -> KernelRow:
        """The main kernel as its row is, nothing hidden."""
        return await self.store.read(lambda db: db.get_one(KernelRow, detail.main.id))

    async def agent_row(self, agent_id: str = "node-1") -> AgentRow:
        return await self.store.read(lambda db: db.get_one(AgentRow, agent_id))

    async def validate(self) -> None:
        """All invariants hold now."""
        await validate(self.store)


@asynccontextmanager
async def rig(
    store: Store, folder: Path, settings: ControlSettings | None = None
) -> AsyncIterator[Rig]:
    """A started rig on an empty database; at the end all invariants must hold. The store stays open."""
    made = Rig(store, folder, settings)
    await made.start()
    try:
        yield made
        await made.validate()
    finally:
        await made.stop()


async def wipe(store: Store) -> None:
    """Empty all tables, so that the next test can use the store (and its compiled statements) again.

    On a connection of its own, which looks at no foreign keys, and in one go: a hop to the driver's thread
    for each statement costs more than the statement. A write that goes on without its caller ends first.
    """
    await store.open()
    await asyncio.to_thread(_delete_all, store)


def _delete_all(store: Store) -> None:
    assert store.path is not None, "only databases of SQLite are used again"
    with closing(sqlite3.connect(store.path, timeout=PATIENCE, isolation_level=None)) as db:
        db.execute("PRAGMA synchronous = OFF")
        db.execute("BEGIN IMMEDIATE")
        for table in Base.metadata.tables:
            db.execute(f"DELETE FROM {table}")
        db.execute("COMMIT")


def request(**fields: Any) -> NewSession:
    """A session of 1 CPU and 1 GiB; ``cpu=2`` and ``mem="2g"`` are short for slots."""
    slots = {"cpu": fields.pop("cpu", "1"), "mem": fields.pop("mem", "1g")}
    slots |= fields.pop("slots", {})
    name = fields.pop("name", None) or f"s-{uuid.uuid4().hex[:10]}"
    return NewSession(name=name, slots=slots, **{"image": IMAGE, **fields})


def hub_launch(server: str = "lab") -> HubLaunch:
    return HubLaunch("hub-1", server, ("jupyterhub-singleuser",), 8888)


def device(slot: str, device_id: str, amount: int) -> DeviceReport:
    return DeviceReport(slot, device_id, amount)
