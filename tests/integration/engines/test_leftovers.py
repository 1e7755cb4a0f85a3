"""What the audit finds of runs that are gone: real control groups, mounts, processes, folders, bridges and rules."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from spawner.agent.engines.base import BoundMount, Engine
from spawner.agent.engines.docker import DockerEngine, traces
from spawner.agent.engines.process import IMAGE, ProcessEngine
from tests.integration.docker_engine import ensure_test_image, running_engine, unavailable
from tests.integration.engines.conformance import SLEEP, EngineRig, until

pytestmark = pytest.mark.integration
GROUPS = Path("/sys/fs/cgroup")
UNIFIED = (GROUPS / "cgroup.controllers").exists()
HIERARCHIES = ("",) if UNIFIED else ("memory", "pids")


@contextlib.contextmanager
def control_groups(path: str) -> Iterator[list[Path]]:
    """Control groups that stay empty, in all hierarchies that are looked at here."""
    folders = [GROUPS / hierarchy / path for hierarchy in HIERARCHIES]
    try:
        for folder in folders:
            folder.mkdir(parents=True)
    except OSError as error:
        unavailable(f"control groups cannot be made here: {error}")
    try:
        yield folders
    finally:
        for folder in folders:
            folder.rmdir()


@contextlib.contextmanager
def mounted(folder: Path) -> Iterator[None]:
    """Something is mounted at ``folder``."""
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", folder], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", folder], check=True)


@contextlib.contextmanager
def running(*argv: str, named: str = "sleep") -> Iterator[int]:
    """A shell that waits, as ``named`` with more words; its id."""
    process = subprocess.Popen(
        [named, "-c", "read line", *argv], executable="/bin/sh", stdin=subprocess.PIPE
    )
    try:
        yield process.pid
    finally:
        assert process.stdin is not None
        process.stdin.close()
        process.wait()


async def mine(engine: Engine, word: str) -> list[str]:
    """The sentences about one thing: others start and end containers on this engine, too."""
    return [sentence for sentence in await engine.leftovers() if word in sentence]


async def nothing_left(engine: Engine) -> None:
    async def clean() -> bool:
        return await engine.leftovers() == ()

    await until(clean, "something is left")


class TestDocker(EngineRig):
    pytestmark = pytest.mark.docker

    kind = DockerEngine

    @pytest.fixture
    def image(self) -> Iterator[str]:
        with running_engine():
            yield ensure_test_image()

    async def test_what_is_left_of_a_container(
        self,
        image: str,
        engine: Engine,
        mounts: tuple[BoundMount, ...],
        settings: Mapping[str, Any],
        tmp_path: Path,
    ) -> None:
        state = await self.run(engine, self.spec(image, SLEEP), mounts)
        await nothing_left(engine)
        (group,) = {
            folder.relative_to(GROUPS / HIERARCHIES[-1])
            for native_id, folder in traces.control_groups(GROUPS / HIERARCHIES[-1])
            if native_id == state.native_id
        }
        await engine.stop(state.identity, 0)
        await engine.remove(state.identity)
        # Another agent process finds it as well: the id is written down.
        await engine.close()
        short, stranger = state.native_id[:12], secrets.token_hex(32)
        shm = tmp_path / "containers" / state.native_id / "mounts/shm"
        shm.mkdir(parents=True)
        with contextlib.ExitStack() as stack:
            folders = stack.enter_context(control_groups(str(group)))
            stack.enter_context(control_groups(str(group.with_name(stranger))))
            shim = stack.enter_context(running("-id", state.native_id, named="containerd-shim-x"))
            stack.enter_context(running("-id", stranger, named="containerd-shim-x"))
            stack.enter_context(mounted(shm))
            await engine.open(settings)
            told = await mine(engine, short)
            where = ", ".join(sorted(map(str, folders)))
            assert sorted(told) == sorted(
                [
                    f"the container {short} is gone, its control groups are left: {where}",
                    f"the container {short} is gone, {shm} is still mounted",
                    f"the container {short} is gone, its shim still runs as {shim}",
                ]
            )
            with running() as pid:
                (folders[-1] / "cgroup.procs").write_text(str(pid))
                told = await mine(engine, short)
                assert any("with 1 processes in them" in sentence for sentence in told), told
        await nothing_left(engine)
        assert state.native_id not in (tmp_path / "agent/containers").read_text()

    async def test_containers_without_a_trace_are_forgotten_by_and_by(
        self,
        image: str,
        engine: Engine,
        mounts: tuple[BoundMount, ...],
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(traces, "MANY", 0)
        state = await self.run(engine, self.spec(image, SLEEP), mounts)
        assert await engine.phases() == {state.identity: "running"}
        written = tmp_path / "agent/containers"
        assert state.native_id in written.read_text()
        await engine.stop(state.identity, 0)
        await engine.remove(state.identity)

        async def forgotten() -> bool:
            return await engine.phases() == {} and written.read_text() == ""

        await until(forgotten, "it is remembered for ever")

    async def test_a_folder_without_a_container(
        self, image: str, engine: Engine, tmp_path: Path
    ) -> None:
        folder = tmp_path / "agent/config/gone-1"
        folder.mkdir(parents=True)
        assert await mine(engine, str(folder)) == [f"the folder {folder} belongs to no container"]


@pytest.mark.parametrize(
    "path",
    ["docker/{}", "system.slice/docker-{}.scope", "some/parent/{}", "memory/docker/{}"],
)
def test_control_groups_of_every_layout(tmp_path: Path, path: str) -> None:
    mine = secrets.token_hex(32)
    folder = tmp_path / path.format(mine)
    (folder / "inner").mkdir(parents=True)
    (folder / "inner/cgroup.procs").write_text("12\n13\n")
    for other in (f"libpod-{mine}.scope", f"x{mine}", "user.slice"):
        (tmp_path / other).mkdir()
    assert list(traces.control_groups(tmp_path)) == [(mine, folder)]
    known = traces.Traces(tmp_path / "containers")
    known.note({"Id": mine, "GraphDriver": None})
    (told,) = known.look([mine, secrets.token_hex(32)], tmp_path)
    assert told.endswith(f"its control groups are left, with 2 processes in them: {folder}")


LOOK = """
import json, sys
from spawner.agent.engines.docker.traces import network_leftovers
print(json.dumps(network_leftovers(json.loads(sys.argv[1]), json.loads(sys.argv[2]))))
"""


def test_rules_and_bridges_of_what_is_gone() -> None:
    """In a network namespace of its own."""
    space = f"pj-{secrets.token_hex(4)}"
    if os.geteuid() != 0:
        unavailable("network namespaces need root")
    subprocess.run(["ip", "netns", "add", space], check=True)

    def inside(*words: str) -> str:
        command = ["ip", "netns", "exec", space, *words]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    def publish(bridge: str, address: str) -> None:
        inside("iptables", "-t", "nat", "-A", "DOCKER", "-d", "127.0.0.1", "!", "-i", bridge, "-p", "tcp", "--dport",
               "4000", "-j", "DNAT", "--to-destination", f"{address}:8888")  # fmt: skip
        inside("iptables", "-A", "FORWARD", "-d", f"{address}/32", "!", "-i", bridge, "-o",
               bridge, "-p", "tcp", "--dport", "8888", "-j", "ACCEPT")  # fmt: skip

    def look() -> list[str]:
        key = "com.docker.network.bridge.name"
        networks = [{"Options": {key: name}} for name in ("perijove0", "perijove0123abc")]
        told = inside(sys.executable, "-c", LOOK, json.dumps(networks), json.dumps(["172.18.0.2"]))
        found: list[str] = json.loads(told)
        return found

    try:
        inside("iptables", "-t", "nat", "-N", "DOCKER")
        for bridge in ("perijove0123abc", "docker0"):
            inside("ip", "link", "add", bridge, "type", "bridge")
        publish("perijove0", "172.18.0.2")
        publish("perijove0123abc", "172.18.0.2")
        publish("docker0", "172.17.0.9")
        assert look() == []
        inside("ip", "link", "add", "perijove4567def", "type", "bridge")
        publish("perijove4567def", "172.18.0.2")
        publish("perijove0", "172.18.0.77")
        assert sorted(sentence.split(": ")[0] for sentence in look()) == [
            "a firewall rule is left for perijove4567def, which no network has",
            "a firewall rule is left for perijove4567def, which no network has",
            "a firewall rule leads to a container that is gone",
            "a firewall rule leads to a container that is gone",
            "the bridge perijove4567def belongs to no network",
        ]
    finally:
        subprocess.run(["ip", "netns", "del", space], check=True)


class TestProcess(EngineRig):
    kind = ProcessEngine

    async def test_control_groups_of_no_run(
        self,
        engine: Engine,
        mounts: tuple[BoundMount, ...],
        settings: Mapping[str, Any],
    ) -> None:
        state = await self.run(engine, self.spec(IMAGE, SLEEP), mounts)
        assert await engine.leftovers() == ()
        folders = list((GROUPS / HIERARCHIES[-1]).glob(f"perijove/*/{state.native_id}"))
        if not folders:
            unavailable("control groups cannot be made here")
        place = folders[0].relative_to(GROUPS / HIERARCHIES[-1])
        await engine.stop(state.identity, 0)
        await engine.remove(state.identity)
        assert await engine.leftovers() == ()
        foreign = place.parent.with_name("0123456789abcdef") / "neighbour-1"
        with contextlib.ExitStack() as stack:
            stack.enter_context(control_groups(str(foreign.parent)))
            stack.enter_context(control_groups(str(foreign)))
            with contextlib.ExitStack() as busy:
                for hierarchy in HIERARCHIES:
                    (GROUPS / hierarchy / place).mkdir()
                folder = GROUPS / HIERARCHIES[-1] / place
                pid = busy.enter_context(running())
                (folder / "cgroup.procs").write_text(str(pid))
                await engine.close()
                await engine.open(settings)  # what is empty goes, what holds a process is told
                assert await engine.leftovers() == (
                    f"the run {place.name} is gone, its control groups are left,"
                    f" with 1 processes in them: {folder}",
                )
            await engine.close()
            await engine.open(settings)
            assert await engine.leftovers() == ()
            assert not folder.exists()

    async def test_folders_of_no_run(
        self, engine: Engine, settings: Mapping[str, Any], tmp_path: Path
    ) -> None:
        scratch = tmp_path / "agent/scratch"
        empty, half = scratch / "empty-1", scratch / "half-1.new"
        for folder in (empty, half):
            folder.mkdir()
        with (
            tempfile.TemporaryDirectory(prefix="perijove-") as ours,
            tempfile.TemporaryDirectory(prefix="perijove-") as foreign,
        ):
            (Path(ours) / "run").symlink_to(scratch / "gone-1")
            (Path(foreign) / "run").symlink_to(tmp_path / "another/scratch/gone-1")
            assert sorted(await engine.leftovers()) == sorted(
                [
                    f"the folder {half} is half-made",
                    f"the folder {empty} holds no run",
                    f"the folder {ours} belongs to no run",
                ]
            )
            await engine.close()
            await engine.open(settings)
            assert await engine.leftovers() == (f"the folder {empty} holds no run",)
            assert not Path(ours).exists()
            assert Path(foreign).exists()
            Path(ours).mkdir()  # for the block's end
        empty.rmdir()
