"""Apps of real kernels, on both engines: started once, behind a relay, found again after a restart."""

from __future__ import annotations

import asyncio
import json
import os
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from spawner.accelerators.registry import Accelerators
from spawner.agent import preamble
from spawner.agent.apps import Apps
from spawner.agent.calls import Calls
from spawner.agent.engines.base import Engine
from spawner.agent.engines.docker import DockerEngine
from spawner.agent.engines.process import ProcessEngine
from spawner.agent.kernels import Kernels
from spawner.agent.ports import PortPool
from spawner.agent.protocol import App, Call, KernelReport, KernelSpec, Mount, Share, Wanted
from spawner.agent.runner import Surroundings
from tests.integration.docker_engine import ensure_test_image, running_engine

pytestmark = pytest.mark.integration

MIB = 1024 * 1024
SLEEP = ("python3", "-c", "import time; time.sleep(600)")
COUNTED = (
    "sh",
    "-c",
    'echo start >> starts; echo "$WORD"; exec python3 -m http.server --bind "$0" "$1"',
    "{bind_host}",
    "{bind_port}",
)
WEB = App("web", "http", 8090, COUNTED, {"WORD": "hello"})
PORTS = range(31200, 31300)
SHELL = App("terminal", "pty", 0)
PROGRAMS = App("programs", "exec", 0)


class Node:
    """An agent without its connection to a manager, whose calls the test makes itself."""

    def __init__(
        self, folder: Path, engine: Engine, image: str, address: str = "127.0.0.1"
    ) -> None:
        self.folder, self.image, self.address = folder, image, address
        self.engine = engine
        self.home = folder / "volume/home"

    async def start(self) -> None:
        where = {"publish_host": self.address, "app_ports": f"{PORTS.start}-{PORTS.stop - 1}"}
        await self.engine.open({"state_dir": str(self.folder / "agent"), **where})
        self.reports: dict[str, KernelReport] = {}
        self.changed = asyncio.Event()
        accelerators = Accelerators.load({})
        await accelerators.devices()
        self.kernels = Kernels(
            Surroundings(
                engine=self.engine,
                accelerators=accelerators,
                volumes={"local": str(self.folder / "volume")},
                address=self.address,
                max_pids=256,
                stop_grace=0.5,
                changed=self.noticed,
            ),
            60,
        )
        self.calls = Calls(self.engine, self.kernels)
        pool = PortPool(PORTS)
        self.apps = Apps(self.engine, self.calls, self.address, pool, start_timeout=20)
        await self.kernels.adopt()

    def noticed(self, report: KernelReport) -> None:
        self.reports[report.kernel_id] = report
        self.apps.noticed(report)
        self.changed.set()

    async def stop(self) -> None:
        await self.apps.close()
        await self.kernels.close()
        await self.engine.close()

    async def run(self) -> str:
        """A kernel that runs; its id."""
        spec = KernelSpec(
            kernel_id=str(uuid.uuid4()),
            session_id=str(uuid.uuid4()),
            epoch=1,
            session_name="apps",
            owner="tester",
            hostname="main1",
            image=self.image,
            command=SLEEP,
            environ={},
            mounts=(Mount("local", "home", "/home/work"),),
            ports=(),
            shares=(Share("cpu", "cpu", 500_000), Share("mem", "mem", 256 * MIB)),
            shm_bytes=16 * MIB,
        )
        self.kernels.apply(Wanted((spec,), ()), 0)
        await self.until(spec.kernel_id, "RUNNING")
        return spec.kernel_id

    async def end(self, kernel_id: str) -> None:
        self.kernels.apply(Wanted((), ((kernel_id, 1),)), 0)
        await self.until(kernel_id, "TERMINATED")
        await self.kernels.acknowledge([self.reports[kernel_id]])

    async def until(self, kernel_id: str, status: str) -> None:
        async with asyncio.timeout(15):
            while kernel_id not in self.reports or self.reports[kernel_id].status != status:
                self.changed.clear()
                await self.changed.wait()

    async def ask(self, method: str, **params: Any) -> Any:
        answer = await self.calls.answer(Call(1, method, params))
        if answer.error is not None:
            raise AssertionError(answer.error)
        return answer.value

    async def open(self, kernel_id: str, app: App) -> dict[str, Any]:
        value: dict[str, Any] = await self.ask(
            "start_app", kernel_id=kernel_id, app=msgspec.to_builtins(app)
        )
        return value

    def starts(self) -> int:
        path = self.home / "starts"
        return len(path.read_text().split()) if path.exists() else 0


@pytest.fixture(params=["process", pytest.param("docker", marks=pytest.mark.docker)])
async def node(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Node]:
    home = tmp_path / "volume/home"
    home.mkdir(parents=True)
    if request.param == "docker":
        if os.geteuid() == 0:
            os.chown(home, 1000, 1000)
        with running_engine():
            made = Node(tmp_path, DockerEngine(), ensure_test_image())
    else:
        made = Node(tmp_path, ProcessEngine(), "process")
    await made.start()
    try:
        yield made
    finally:
        for state in await made.engine.list():
            await made.engine.stop(state.identity, 0)
            await made.engine.remove(state.identity)
        await made.stop()


async def connect(opened: dict[str, Any]) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection(opened["host"], opened["port"])
    await preamble.introduce(reader, writer, opened["token"])
    return reader, writer


async def hang_up(writer: asyncio.StreamWriter) -> None:
    writer.close()
    await writer.wait_closed()


async def fetch(opened: dict[str, Any], path: str = "/starts") -> bytes:
    reader, writer = await connect(opened)
    writer.write(f"GET {path} HTTP/1.0\r\n\r\n".encode())
    answer = await reader.read()
    await hang_up(writer)
    return answer


async def test_ten_who_open_an_app_at_once_start_it_once(node: Node) -> None:
    kernel = await node.run()
    opened = await asyncio.gather(*(node.open(kernel, WEB) for _ in range(10)))
    assert len({(each["port"], each["token"]) for each in opened}) == 1
    assert opened[0]["protocol"] == "http"
    answers = await asyncio.gather(*(fetch(opened[0]) for _ in range(10)))
    assert all(answer.endswith(b"\r\n\r\nstart\n") for answer in answers)
    assert node.starts() == 1
    listed = await node.ask("list_apps", kernel_id=kernel)
    assert [each["name"] for each in listed] == ["web"]


async def test_only_the_token_opens_it(node: Node) -> None:
    kernel = await node.run()
    opened = await node.open(kernel, WEB)
    reader, writer = await asyncio.open_connection(opened["host"], opened["port"])
    writer.write(b"GET /starts HTTP/1.0\r\n\r\n")
    assert await reader.read() == b"no wrong token\n"
    await hang_up(writer)
    reader, writer = await asyncio.open_connection(opened["host"], opened["port"])
    with pytest.raises(preamble.Refused, match="wrong token"):
        await preamble.introduce(reader, writer, "x" * len(opened["token"]))
    await hang_up(writer)


async def test_another_agent_finds_the_app_again(node: Node) -> None:
    kernel = await node.run()
    before = await node.open(kernel, WEB)
    await node.stop()
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection(before["host"], before["port"])
    await node.start()
    after = await node.open(kernel, WEB)
    assert after["token"] != before["token"]
    assert (await fetch(after)).endswith(b"start\n")
    assert node.starts() == 1


async def test_an_app_that_died_is_started_again(node: Node) -> None:
    kernel = await node.run()
    await node.open(kernel, WEB)
    await node.ask("stop_app", kernel_id=kernel, name="web")
    assert await node.ask("list_apps", kernel_id=kernel) == []
    opened = await node.open(kernel, WEB)
    assert (await fetch(opened)).endswith(b"start\nstart\n")
    assert node.starts() == 2


async def test_a_failing_app_tells_why(node: Node) -> None:
    kernel = await node.run()
    broken = App("broken", "http", 8091, ("sh", "-c", "echo it has no licence >&2; exit 4"))
    with pytest.raises(AssertionError, match=r"broken ended with status 4: it has no licence"):
        await node.open(kernel, broken)
    silent = App("silent", "tcp", 8092)
    with pytest.raises(AssertionError, match="nothing listens on port 8092"):
        await node.open(kernel, silent)
    with pytest.raises(AssertionError, match="no kernel"):
        await node.open(str(uuid.uuid4()), WEB)
    with pytest.raises(AssertionError, match=r"app\.name is '\.\./x'"):
        await node.open(kernel, App("../x", "http", 1))


async def test_apps_end_with_their_kernel(node: Node) -> None:
    kernel = await node.run()
    opened = await node.open(kernel, WEB)
    shell = await node.open(kernel, SHELL)
    reader, writer = await connect(shell)
    await node.end(kernel)
    assert await reader.read() is not None
    await hang_up(writer)
    async with asyncio.timeout(10):
        while node.apps._opened:
            await asyncio.sleep(0.02)
    for each in (opened, shell):
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection(each["host"], each["port"])


async def test_a_terminal_runs_commands_in_the_size_it_is_told(node: Node) -> None:
    kernel = await node.run()
    reader, writer = await connect(await node.open(kernel, SHELL))
    writer.write(preamble.size_frame(40, 123))
    writer.write(preamble.frame(preamble.DATA, b"stty size; echo $TERM; pwd; echo do''ne\r"))
    text = b""
    while b"done\r" not in text:
        frame = await asyncio.wait_for(preamble.read_frame(reader), 20)
        assert frame is not None
        assert frame[0] == preamble.DATA
        text += frame[1]
    assert b"40 123" in text
    assert b"xterm-256color" in text
    writer.write(preamble.frame(preamble.DATA, b"exit 7\r"))
    while (frame := await asyncio.wait_for(preamble.read_frame(reader), 20)) is not None:
        last = frame
    assert last == (preamble.EXIT, b"7")
    await hang_up(writer)


async def test_a_shell_is_a_connection_for_as_long_as_it_is_open(node: Node) -> None:
    """The engine sees none: nothing connects to a port of the kernel."""
    kernel = await node.run()
    opened = await node.open(kernel, SHELL)
    assert node.apps.seen()[kernel] == 0
    _, writer = await connect(opened)
    async with asyncio.timeout(20):
        while not node.apps.seen()[kernel]:
            await asyncio.sleep(0.01)
    assert node.apps.seen()[kernel] == 1
    await hang_up(writer)
    assert node.apps.seen()[kernel] == 1, "it was open since one looked last"
    async with asyncio.timeout(20):
        while node.apps.seen()[kernel]:
            await asyncio.sleep(0.01)


async def told(node: Node, kernel: str, words: bytes, sent: bytes = b"") -> tuple[bytes, bytes]:
    """What a program of the platform says, and its exit status."""
    reader, writer = await connect(await node.open(kernel, PROGRAMS))
    writer.write(preamble.frame(preamble.DATA, words))
    writer.write(preamble.frame(preamble.DATA, sent))
    said = code = b""
    while (frame := await asyncio.wait_for(preamble.read_frame(reader), 20)) is not None:
        said, code = (said + frame[1], code) if frame[0] == preamble.DATA else (said, frame[1])
    await hang_up(writer)
    return said, code


async def test_programs_of_the_platform(node: Node) -> None:
    kernel = await node.run()
    words = json.dumps(["sh", "-c", "head -c 6 | tr a-z A-Z; exit $1", "sh", "3"]).encode()
    assert await told(node, kernel, words, b"abcdef") == (b"ABCDEF", b"3")
    much = json.dumps(["head", "-c", "5000000", "/dev/zero"]).encode()
    assert await told(node, kernel, much) == (bytes(5_000_000), b"0")
    said, code = await told(node, kernel, b"[1]")
    assert said.startswith(b"no this names no program")
    assert code == b"125"
    said, code = await told(node, kernel, b'["no-such-program"]')
    assert code != b"0"
