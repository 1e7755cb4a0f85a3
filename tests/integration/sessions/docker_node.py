"""A node of its own for a control plane: an agent process, mostly on the Docker engine, at the end of a cable.

The agent dials the manager's HTTP server through a relay that a test can cut; what runs is seen through the
``docker`` package, not through the agent.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import docker
from docker.errors import NotFound
from docker.models.containers import Container

from spawner.agent.engines.docker.manifest import LABEL
from spawner.agent.engines.process import IMAGE
from spawner.sessions.control import ControlSettings
from spawner.sessions.states import FINAL, Status
from spawner.sessions.tables import SessionRow
from store.database import Store
from tests.harness.cable import Cable
from tests.harness.plane import REQUEST, TOKEN, sqlite_url
from tests.integration.docker_engine import TEST_IMAGE
from tests.unit.api.server import Api, serving

T = TypeVar("T")
PATIENCE = 60.0
OWNER = "ada"
USER = (1000, 1000) if os.geteuid() == 0 else (os.geteuid(), os.getegid())
"""Whose containers' processes are, and the folders that they write to."""
PERIJOVE = str(Path(sys.executable).parent / "perijove")
SETTINGS = ControlSettings(tick=2, heartbeat_interval=1, agent_timeout=4, sync_interval=1)


class Site:
    """Manager, cable and node of one test module."""

    def __init__(self, api: Api, state: Path, volume: Path, engine: str = "docker") -> None:
        self.api, self.state, self._volume = api, state, volume
        self._engine, self._image = engine, TEST_IMAGE if engine == "docker" else IMAGE
        self.cable = Cable(api.port)
        self.docker = docker.from_env()
        self._agent: asyncio.subprocess.Process | None = None
        home = hashlib.sha256(str((state / "agent").resolve()).encode()).hexdigest()[:16]
        self._ours = f"{LABEL}.home={home}"

    async def start_agent(self) -> None:
        environ = {**os.environ, "PERIJOVE_AGENT_TOKEN": TOKEN, "PERIJOVE_STATE": str(self.state)}
        with (self.state / "agent.log").open("ab") as log:
            self._agent = await asyncio.create_subprocess_exec(
                *(PERIJOVE, "agent", f"--engine={self._engine}", "--agent-id=node-1"),
                f"--manager=http://127.0.0.1:{self.cable.port}",
                f"--AgentConfig.volumes={{'local': '{self._volume}'}}",
                "--AgentConfig.relist_interval=0.5",
                "--AgentConfig.stop_grace=1",
                env=environ,
                stdout=log,
                stderr=log,
            )

    async def kill_agent(self) -> None:
        if self._agent is not None:
            self._agent.kill()
            await self._agent.wait()
            self._agent = None

    def log(self) -> str:
        """What the agent printed."""
        return (self.state / "agent.log").read_text()

    async def until(self, look: Callable[[], Awaitable[T]], good: Callable[[T], Any]) -> T:
        """The answer of ``look`` as soon as it is ``good``."""
        seen: T | None = None
        try:
            async with asyncio.timeout(PATIENCE):
                while not good(seen := await look()):
                    await asyncio.sleep(0.05)
        except TimeoutError:
            raise AssertionError(f"still {seen!r}\n{self.log()[-5000:]}") from None
        return seen

    async def submit(self, name: str, **fields: Any) -> str:
        """A new session; returns its id, which all questions below take."""
        resources = {"cpu": "0.5", "mem": "128m", **fields.pop("resources", {})}
        body = {"name": name, "image": self._image, "enqueueOnly": True, **fields}
        body["config"] = {"resources": resources, "resource_opts": {"shmem": "16m"}}
        created = await self.api.hub("POST", "/session", body, OWNER)
        assert created.status == 201, created.body
        for folder in self._volume.rglob("*"):
            os.chown(folder, *USER)
        return str(created.body["sessionId"])

    async def ask(self, session: str, what: str) -> Any:
        answer = await self.api.hub("GET", f"/session/{session}/{what}", user=OWNER)
        assert answer.status == 200, answer.body
        return answer.body

    async def logs(self, session: str, attempt: int | None = None) -> str:
        chosen = "" if attempt is None else f"?attempt={attempt}"
        return str((await self.ask(session, f"logs{chosen}"))["result"]["logs"]).strip()

    async def attempts(self, session: str) -> list[tuple[int, str, int | None]]:
        """Number, cause and exit code of each run that ended."""
        rows = (await self.ask(session, "attempts"))["attempts"]
        return [(row["attempt"], row["cause"], row["exit_code"]) for row in rows]

    async def row(self, session: str) -> SessionRow:
        owner = await self.api.principal(OWNER)
        return (await self.api.plane.plane.sessions.get(owner, session)).session

    async def reach(self, session: str, *statuses: Status) -> SessionRow:
        """The session as soon as it has one of ``statuses``; without any: as soon as it ended."""
        wanted = statuses or tuple(FINAL)

        async def look() -> tuple[Status, str, SessionRow]:
            row = await self.row(session)
            return Status(row.status), row.status_info, row

        return (await self.until(look, lambda seen: seen[0] in wanted))[2]

    async def containers(self, session: str, *, every: bool = False) -> list[Container]:
        """The containers of a session that run (``every``: all that are there)."""
        labels = [self._ours, f"{LABEL}.session={session}"]

        def look() -> list[Container]:
            listed = self.docker.api.containers(all=every, filters={"label": labels})
            return [self.docker.containers.prepare_model(each) for each in listed]

        return await asyncio.to_thread(look)

    async def container(self, session: str, attempt: int = 1) -> Container:
        """The one running container of a session, once it is that of its ``attempt``-th run."""

        async def look() -> list[Container]:
            return [each for each in await self.containers(session) if epoch(each) >= attempt]

        found = await self.until(look, bool)
        assert len(found) == 1
        return found[0]

    async def inside(self, container: Container, command: str) -> None:
        """Run a shell command in a container."""
        made = await asyncio.to_thread(container.exec_run, ["sh", "-c", command])
        assert made.exit_code == 0, made.output

    async def end(self, session: str) -> None:
        """End a session and wait until nothing of it is left."""
        ended = await self.api.hub("DELETE", f"/session/{session}", user=OWNER)
        assert ended.status == 200, ended.body
        await self.reach(session)
        await self.until(lambda: self.containers(session, every=True), lambda left: not left)

    async def end_all(self) -> None:
        """End all sessions and wait until none lives, also where a test left the node cut off or dead."""
        await self.cable.join()
        if self._agent is None:
            await self.start_agent()
        sessions = self.api.plane.plane.sessions
        await self.until(lambda: sessions.end_all(REQUEST), lambda left: left == 0)

    async def clean(self) -> None:
        """Leave nothing: neither processes nor containers."""
        await self.kill_agent()
        await self.cable.cut()

        def remove() -> None:
            for each in self.docker.api.containers(all=True, filters={"label": self._ours}):
                with contextlib.suppress(NotFound):
                    self.docker.api.remove_container(each["Id"], force=True, v=True)
            self.docker.close()

        await asyncio.to_thread(remove)


def epoch(container: Container) -> int:
    """Which run of its kernel a container is."""
    return int(container.attrs["Labels"][f"{LABEL}.epoch"])


@asynccontextmanager
async def site(folder: Path, engine: str = "docker") -> AsyncIterator[Site]:
    """A manager and a node that has joined it."""
    store = Store(sqlite_url(folder, folder))
    try:
        async with serving(store, folder, SETTINGS, agent=False) as api:
            made = Site(api, folder / "node", folder / "volume", engine)
            made.state.mkdir()
            try:
                await made.cable.join()
                await made.start_agent()
                plane = api.plane.plane

                async def connected() -> bool:
                    return plane.agents.is_connected("node-1")

                await made.until(connected, bool)
                yield made
            finally:
                await made.clean()
    finally:
        await store.close()
