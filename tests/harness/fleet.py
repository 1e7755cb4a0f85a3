"""Managers on one database and agents with imaginary devices, all of them processes of this machine.

Agents have the process engine. What runs is told by the agents themselves, and by the folders and processes of
their engines without asking anybody.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import aiohttp

from hub.config.deployment import Secrets
from spawner.agent.engines.process_leftovers import runs
from spawner.agent.protocol import Share
from tests.harness.audit import audit
from tests.harness.ports import free_port

PROGRAM = (sys.executable, "-m", "hub.app")
IMAGE = "process"
HELD = {"cpu": "0.1", "mem": "64m"}
DEVICE = '[[devices]]\nslot = "{slot}"\nid = "{id}"\ncapacity = "{capacity}"\n'


class Busy(Exception):
    """A manager says that it can be asked again in some ``seconds``."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"again in {seconds:g} s")
        self.seconds = seconds


class Fleet:
    """Made by ``running_fleet``; ``settings`` are ``ManagerConfig``'s, over those that make faults short."""

    def __init__(self, folder: Path, db_url: str, **settings: object) -> None:
        self.folder, self.db_url = folder, db_url
        self.settings = {"heartbeat_interval": 1, "agent_timeout": 8, "tick": 2, **settings}
        self.state = folder / "state"
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.urls: dict[str, str] = {}
        """Of managers, and of agents' metrics."""
        self.program: dict[str, tuple[str, ...]] = {}
        """What is run instead of the ``perijove`` command, by name of the process."""
        self._dials: dict[str, str] = {}
        self._shares: dict[Path, tuple[Share, ...]] = {}
        self.http = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))

    async def start(self, managers: int, agents: Mapping[str, str]) -> None:
        """``managers`` m1, m2, ..., and agents by name with the devices of their file; they dial in turn."""
        self.state.mkdir(mode=0o700)
        secrets = self.state / "secrets.json"
        secrets.write_text(json.dumps(asdict(Secrets.generate())))
        secrets.chmod(0o600)
        await self.command("db", "upgrade")
        names = [f"m{n + 1}" for n in range(managers)]
        await self.start_manager(names[0])
        await self.command("user", "add", "admin", "--admin")
        for name in names[1:]:
            await self.start_manager(name)
        for n, (agent, devices) in enumerate(agents.items()):
            self.devices(agent).parent.mkdir()
            self.devices(agent).write_text(devices)
            self._dials[agent] = names[n % managers]
            await self.start_agent(agent)
        await self.until(self.agents, lambda found: found.keys() == agents.keys())

    def devices(self, agent: str) -> Path:
        """The file with the devices of an agent."""
        return self.folder / agent / "devices.toml"

    async def start_manager(self, name: str) -> None:
        """A manager, until it answers; at its old address if it had one."""
        url = self.urls.setdefault(name, f"http://127.0.0.1:{free_port()}")
        options = [f"--ManagerConfig.{key}={value}" for key, value in self.settings.items()]
        self._run(name, "manager", "--state-dir", str(self.state), "--db-url", self.db_url,
                  "--bind", url.removeprefix("http://"), *options)  # fmt: skip
        await self.until(lambda: self._health(name), bool)

    async def start_agent(self, name: str) -> None:
        """An agent; it does not wait until it is connected."""
        folder = self.devices(name).parent
        url = self.urls.setdefault(name, f"http://127.0.0.1:{free_port()}")
        settings = folder / "perijove_config.py"
        settings.write_text(
            f"c.AgentConfig.accelerators = {{'mock': {{'file': '{folder}/devices.toml'}}}}\n"
        )
        environ = {
            "PERIJOVE_AGENT_TOKEN": self._secret("agent_token"),
            "PERIJOVE_CONFIG": str(settings),
        }
        self._run(name, "agent", "--engine=process", f"--agent-id={name}", f"--state-dir={folder}",
                  f"--manager-url={self.urls[self._dials[name]]}",
                  f"--AgentConfig.volumes=local={self.state}/volumes/local",
                  f"--AgentMetricsEndpoint.bind={url.removeprefix('http://')}",
                  "--AgentConfig.relist_interval=1", "--AgentConfig.stop_grace=1",
                  environ=environ)  # fmt: skip

    def _run(self, name: str, *words: str, environ: Mapping[str, str] | None = None) -> None:
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("PERIJOVE_")}
        with (self.folder / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                [*self.program.get(name, PROGRAM), *words],
                stdout=log,
                stderr=log,
                env={**inherited, **(environ or {})},
            )

    async def kill(self, name: str) -> None:
        """``kill -9``."""
        self.processes[name].kill()
        await asyncio.to_thread(self.processes[name].wait)

    async def stop(self) -> None:
        """End all sessions, then all processes."""
        try:
            with contextlib.suppress(aiohttp.ClientError):
                await self.call(await self.leader(), "POST", "/internal/shutdown")
        finally:
            for process in self.processes.values():
                process.terminate()
            for process in self.processes.values():
                await asyncio.to_thread(process.wait, 20)
            await self.http.close()

    async def call(
        self, manager: str, method: str, path: str, body: object = None, user: str = "ada"
    ) -> Any:
        """A manager's answer; whoever calls is made known to it as ``user`` by the hub's secret."""
        headers = {"Authorization": f"Bearer {self._secret('hub_secret')}", "X-Perijove-User": user}
        url = self.urls[manager] + path
        async with self.http.request(method, url, json=body, headers=headers) as answer:
            told = await answer.json() if answer.content_length != 0 else None
            if answer.status == 503:
                raise Busy(float(answer.headers["Retry-After"]))
            assert answer.status < 300, f"{method} {path}: {answer.status} {told}"
            return told

    async def submit(self, manager: str, name: str, user: str = "ada", **slots: str) -> str:
        """A batch session that waits for its end; its id."""
        body = {
            "name": name, "image": IMAGE, "type": "batch", "startupCommand": "sleep 600",
            "enqueueOnly": True, "config": {"resources": {**HELD, **slots}},
        }  # fmt: skip
        while True:
            try:
                return str((await self.call(manager, "POST", "/session", body, user))["sessionId"])
            except Busy as busy:
                await asyncio.sleep(busy.seconds)

    async def sessions(self, manager: str) -> dict[str, dict[str, Any]]:
        """All that have not ended, by id."""
        path = "/sessions?all=1&limit=1000&status=" + ",".join(
            ("PENDING", "SCHEDULED", "PREPARING", "CREATING", "RUNNING", "TERMINATING")
        )
        found = await self.call(manager, "GET", path, user="admin")
        return {each["id"]: each for each in found["sessions"]}

    async def statuses(self, manager: str) -> Counter[str]:
        """How many sessions have which status."""
        return Counter(each["status"] for each in (await self.sessions(manager)).values())

    async def agents(self) -> dict[str, dict[str, Any]]:
        """Connected agents by name, whichever manager they are connected to."""
        found: dict[str, dict[str, Any]] = {}
        for manager in self.managers:
            with contextlib.suppress(aiohttp.ClientError, Busy):
                told = await self.call(manager, "GET", "/agents", user="admin")
                found |= {each["id"]: each for each in told["agents"] if each["connected"]}
        return found

    @property
    def managers(self) -> list[str]:
        """Names of those that run."""
        return [n for n, p in self.processes.items() if n not in self._dials and p.poll() is None]

    async def leader(self) -> str:
        """The manager that schedules."""
        found = await self.until(
            lambda: asyncio.gather(*map(self._health, self.managers)),
            lambda told: sum(bool(each and each["schedules"]) for each in told) == 1,
        )
        return next(n for n, told in zip(self.managers, found, strict=True) if told["schedules"])

    async def _health(self, manager: str) -> Any:
        assert self.processes[manager].poll() is None, self.story()
        with contextlib.suppress(aiohttp.ClientError, Busy):
            return await self.call(manager, "GET", "/health")
        return None

    def live(self, agent: str) -> dict[str, tuple[Share, ...]]:
        """By run, what is held by all runs of an agent whose first process is alive now."""
        found = {}
        for scratch in runs(self.devices(agent).parent / "scratch"):
            process = scratch.process()
            if process is not None and process.alive():
                if scratch.folder not in self._shares and (run := scratch.read()) is not None:
                    self._shares[scratch.folder] = run.shares
                found[scratch.mark] = self._shares.get(scratch.folder, ())
        return found

    async def told(self, agent: str) -> int | None:
        """How many kernels an agent itself says that it has and that did not end; None: it does not answer."""
        with contextlib.suppress(aiohttp.ClientError, Busy):
            async with self.http.get(f"{self.urls[agent]}/metrics") as answer:
                lines = (await answer.text()).splitlines()
            counts = [
                float(line.split()[-1])
                for line in lines
                if line.startswith("perijove_agent_kernels{") and "TERMINATED" not in line
            ]
            return int(sum(counts))
        return None

    async def command(self, *words: str) -> str:
        """What a ``perijove`` command prints."""
        command = [*PROGRAM, *words, "--state-dir", str(self.state), "--db-url", self.db_url]
        done = await asyncio.to_thread(
            subprocess.run, command, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    async def audit(self) -> None:
        """Nothing differs, whichever manager an agent is connected to."""
        for manager in self.managers:
            options = ("--no-routes", "--manager-url", self.urls[manager], "--db-url", self.db_url)
            await asyncio.to_thread(audit, self.state, *options)

    async def until(
        self, look: Callable[[], Awaitable[Any]], good: Callable[[Any], object], seconds: float = 60
    ) -> Any:
        """The answer of ``look`` as soon as it is ``good``."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds
        while not good(answer := await look()):
            assert loop.time() < deadline, f"still {answer!r}\n{self.story()}"
            await asyncio.sleep(0.1)
        return answer

    def story(self) -> str:
        """The ends of all logs."""
        logs = sorted(self.folder.glob("*.log"))
        return "\n".join(f"--- {log.name}\n{log.read_text()[-3000:]}" for log in logs)

    def _secret(self, name: str) -> str:
        return str(json.loads((self.state / "secrets.json").read_text())[name])


def device(number: int, capacity: str = "1", slot: str = "cuda.shares") -> str:
    """A paragraph of an agent's file."""
    return DEVICE.format(slot=slot, id=f"gpu-{number}", capacity=capacity)


@contextlib.asynccontextmanager
async def running_fleet(
    folder: Path, db_url: str, managers: int, agents: Mapping[str, str], **settings: object
) -> AsyncIterator[Fleet]:
    """A fleet inside the block, which ends in the audit."""
    made = Fleet(folder, db_url, **settings)
    try:
        await made.start(managers, agents)
        yield made
        await made.audit()
    except BaseException:
        print(made.story())
        raise
    finally:
        await made.stop()
