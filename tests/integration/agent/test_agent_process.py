"""A real agent process with the process engine: obedience, adoption, fencing, orphans."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from spawner.agent.engines import process_table
from spawner.agent.engines.process import IMAGE
from spawner.agent.protocol import KernelSpec, Mount, Port, Share
from tests.harness.recovery import note
from tests.integration.agent.manager import TOKEN, ScriptedManager, scripted_manager
from tests.integration.docker_engine import unavailable

pytestmark = pytest.mark.integration

MIB = 1024 * 1024
COUNTER = """
import http.server, os, pathlib, sys, threading, time
home = pathlib.Path(os.environ['HOME'])
with open(home / 'starts', 'a') as file: print(os.getpid(), file=file)
def count():
    n = 0
    while True:
        n += 1
        (home / 'count').write_text(str(n)); time.sleep(.02)
threading.Thread(target=count, daemon=True).start()
print('counting', flush=True)
time.sleep(float(sys.argv[2]))
http.server.ThreadingHTTPServer(('127.0.0.1', int(sys.argv[1])), http.server.SimpleHTTPRequestHandler).serve_forever()
"""


class Agent:
    """An agent process that can be killed and started again on the same state folder."""

    def __init__(self, state: Path, manager: ScriptedManager) -> None:
        self.state, self.manager = state, manager
        self.process: asyncio.subprocess.Process | None = None

    async def start(self, token: str = TOKEN, *options: str) -> None:
        environ = {**os.environ, "PERIJOVE_AGENT_TOKEN": token, "PERIJOVE_STATE": str(self.state)}
        self.process = await asyncio.create_subprocess_exec(
            *(str(Path(sys.executable).parent / "perijove"), "agent", "--engine=process"),
            f"--AgentConfig.manager_url={self.manager.url}",
            "--AgentConfig.orphan_grace=0.3",
            "--AgentConfig.relist_interval=0.2",
            "--AgentConfig.stop_grace=2",
            *options,
            env=environ,
        )

    async def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        await self.process.wait()


@pytest.fixture
async def manager() -> AsyncIterator[ScriptedManager]:
    async with scripted_manager() as running:
        yield running


@pytest.fixture
def home(tmp_path: Path) -> Path:
    folder = tmp_path / "volumes/local/user/home"
    folder.mkdir(parents=True)
    return folder


@pytest.fixture
async def agent(tmp_path: Path, home: Path, manager: ScriptedManager) -> AsyncIterator[Agent]:
    agent = Agent(tmp_path, manager)
    await agent.start()
    yield agent
    if agent.process is not None and agent.process.returncode is None:
        await agent.kill()
    for folder in (tmp_path / "agent/scratch").iterdir():
        process_table.send(process_table.marked(folder.name), signal.SIGKILL)


def spec(delay: float = 0.0, **facts: Any) -> KernelSpec:
    given = {
        "kernel_id": str(uuid.uuid4()),
        "session_id": str(uuid.uuid4()),
        "epoch": 1,
        "session_name": "test",
        "owner": "tester",
        "hostname": "main1",
        "image": IMAGE,
        "command": (sys.executable, "-c", COUNTER, "{bind_port}", str(delay)),
        "environ": {},
        "mounts": (Mount("local", "user/home", "/home/work"),),
        "ports": (Port("jupyterlab", 8888),),
        "shares": (Share("cpu", "cpu", 500_000), Share("mem", "mem", 128 * MIB)),
        "shm_bytes": MIB,
    }
    return KernelSpec(**{**given, **facts})


def count(home: Path) -> int:
    try:
        return int((home / "count").read_text() or 0)
    except FileNotFoundError:
        return 0


async def grows(home: Path) -> None:
    """The counter goes on."""
    before = count(home)
    async with asyncio.timeout(10):
        while count(home) <= before + 2:
            await asyncio.sleep(0.02)


async def test_a_kernel_runs_answers_questions_and_ends(
    agent: Agent, manager: ScriptedManager, home: Path
) -> None:
    wanted = spec()
    await manager.until(lambda: manager.hellos)
    assert {device.slot for device in manager.hellos[0].devices} >= {"cpu", "mem"}
    await manager.want(wanted)
    running = await manager.status(wanted.kernel_id, "RUNNING")
    assert running.url is not None
    assert running.shares == wanted.shares
    sentences = [report.progress for report in manager.reports]
    assert "starting JupyterLab" in sentences
    logs = await manager.call("logs", {"kernel_id": wanted.kernel_id, "tail": 10})
    assert "counting" in str(logs.value)
    unknown = await manager.call("logs", {"kernel_id": "nothing"})
    assert "no kernel" in str(unknown.error)
    await manager.end(wanted.kernel_id)
    ended = await manager.status(wanted.kernel_id, "TERMINATED")
    assert ended.failure is None
    scratch = agent.state / "agent/scratch"
    async with asyncio.timeout(10):
        while list(scratch.iterdir()):
            await asyncio.sleep(0.02)


@pytest.mark.parametrize("moment", ["PREPARING", "CREATING", "RUNNING"])
async def test_kill_9_of_the_agent_stops_nothing_and_starts_nothing_twice(
    agent: Agent, manager: ScriptedManager, home: Path, moment: str
) -> None:
    wanted = spec(delay=0.3)
    await manager.until(lambda: manager.hellos)
    await manager.want(wanted)
    await manager.until(lambda: any(report.status == moment for report in manager.reports))
    await agent.kill()
    if moment == "RUNNING":
        await grows(home)
    manager.latest.clear()
    await agent.start()
    running = await manager.status(wanted.kernel_id, "RUNNING")
    assert running.shares == wanted.shares
    await grows(home)
    assert len((home / "starts").read_text().split()) == 1


async def test_an_end_that_nobody_saw_is_reported_with_its_code(
    agent: Agent, manager: ScriptedManager, home: Path
) -> None:
    program = "import time, pathlib\nwhile not pathlib.Path('go').exists(): time.sleep(.02)\nraise SystemExit(7)"
    wanted = spec(command=(sys.executable, "-c", program), ports=())
    await manager.until(lambda: manager.hellos)
    await manager.want(wanted)
    await manager.status(wanted.kernel_id, "RUNNING")
    await agent.kill()
    (home / "go").touch()
    await agent.start()
    ended = await manager.status(wanted.kernel_id, "TERMINATED")
    assert (ended.exit_code, ended.failure) == (7, "exited")


async def test_a_newer_epoch_replaces_an_older_one_never_the_other_way(
    agent: Agent, manager: ScriptedManager, home: Path
) -> None:
    first = spec()
    await manager.until(lambda: manager.hellos)
    await manager.want(first)
    await manager.status(first.kernel_id, "RUNNING")
    second = spec(kernel_id=first.kernel_id, session_id=first.session_id, epoch=2)
    await manager.want(second)
    await manager.status(first.kernel_id, "RUNNING", epoch=2)
    assert len(process_table.marked(f"{first.kernel_id}-1")) == 0
    await manager.want(first)
    await grows(home)
    assert manager.latest[first.kernel_id].epoch == 2
    assert len((home / "starts").read_text().split()) == 2


async def test_orphans_end_after_their_grace(
    agent: Agent, manager: ScriptedManager, home: Path
) -> None:
    wanted = spec()
    await manager.until(lambda: manager.hellos)
    await manager.want(wanted)
    await manager.status(wanted.kernel_id, "RUNNING")
    manager.wanted.clear()
    await manager.send_wanted()
    await manager.status(wanted.kernel_id, "TERMINATED")


async def test_a_start_that_fails_is_told_and_leaves_nothing(
    agent: Agent, manager: ScriptedManager, home: Path
) -> None:
    await manager.until(lambda: manager.hellos)
    cases = {
        "not installed": spec(command=("no-such-program",)),
        "volume 'nas'": spec(mounts=(Mount("nas", "x", "/home/work"),)),
        "does not exist": spec(mounts=(Mount("local", "user/nobody", "/home/work"),)),
        "did not answer": spec(delay=60, start_timeout=0.5),
    }
    for sentence, wanted in cases.items():
        await manager.want(wanted)
        failed = await manager.status(wanted.kernel_id, "TERMINATED")
        assert failed.failure in ("create-failed", "start-timeout")
        assert sentence in failed.progress
        assert process_table.marked(f"{wanted.kernel_id}-1") == []
        del manager.wanted[wanted.kernel_id]


async def test_the_agent_outlives_its_manager(
    agent: Agent, manager: ScriptedManager, home: Path
) -> None:
    wanted = spec()
    await manager.until(lambda: manager.hellos)
    await manager.want(wanted)
    await manager.status(wanted.kernel_id, "RUNNING")
    assert manager.connection is not None
    manager.connection.close()
    await manager.until(lambda: len(manager.hellos) == 2)
    await manager.status(wanted.kernel_id, "RUNNING")
    await grows(home)


async def test_a_drain_of_what_never_arrived_is_answered_and_fences(
    agent: Agent, manager: ScriptedManager, home: Path
) -> None:
    await manager.until(lambda: manager.hellos)
    wanted = spec()
    manager.drain[wanted.kernel_id] = 1
    await manager.send_wanted()
    await manager.status(wanted.kernel_id, "TERMINATED")
    await manager.want(wanted)  # late: that start was withdrawn
    await manager.call("logs", {"kernel_id": "anything"})  # the agent has read it by now
    assert not (home / "starts").exists()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """The agent's folder on a disk of its own, which is soon full."""
    folder = tmp_path / "agent"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(folder)]
    if subprocess.run(command, capture_output=True).returncode:
        unavailable("a disk that is soon full needs root and mount")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


async def test_a_full_disk_is_told_and_leaves_nothing_behind(
    small_disk: Path, agent: Agent, manager: ScriptedManager, home: Path
) -> None:
    async def inventory() -> tuple[set[str], Any]:
        answer = await manager.call("inventory", {})
        return {run["kernel_id"] for run in answer.value["runs"]}, answer.value["leftovers"]

    neighbour = spec()
    await manager.until(lambda: manager.hellos)
    await manager.want(neighbour)
    await manager.status(neighbour.kernel_id, "RUNNING")
    full = small_disk / "full"
    with full.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(b"x" * 4096)
    late = spec()
    begun = time.monotonic()
    await manager.want(late)
    failed = await manager.status(late.kernel_id, "TERMINATED")
    note("18,disk full until it is told", time.monotonic() - begun)
    assert failed.failure == "create-failed"
    assert "No space left on device" in failed.progress
    async with asyncio.timeout(10):  # it goes once the report is acknowledged
        while await inventory() != ({neighbour.kernel_id}, []):
            await asyncio.sleep(0.05)
    await grows(home)
    full.unlink()
    later = spec()
    await manager.want(later)
    await manager.status(later.kernel_id, "RUNNING")
