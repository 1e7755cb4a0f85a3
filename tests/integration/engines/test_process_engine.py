"""The process engine passes the conformance tests."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from spawner.agent.engines import process, process_table
from spawner.agent.engines.base import BoundMount, Engine, EngineError, Identity, Limits
from spawner.agent.engines.cgroups import ControlGroups
from spawner.agent.engines.process import IMAGE, ProcessEngine
from spawner.agent.engines.scratch import UNFINISHED
from spawner.agent.protocol import File, Port
from tests.harness.ports import free_port
from tests.integration.engines.conformance import MIB, SERVE, EngineConformance, until

pytestmark = pytest.mark.integration


class TestProcessEngine(EngineConformance):
    kind = ProcessEngine

    @pytest.fixture
    def image(self) -> str:
        return IMAGE

    async def test_nothing_is_left_after_removal(
        self, engine: Engine, image: str, mounts: tuple[BoundMount, ...], tmp_path: Path
    ) -> None:
        state = await self.run(engine, self.spec(image, SERVE), mounts)
        assert process_table.marked(state.native_id)
        await engine.stop(state.identity, 1)
        await engine.remove(state.identity)
        assert process_table.marked(state.native_id) == []
        assert list((tmp_path / "agent/scratch").iterdir()) == []
        assert not list(Path("/sys/fs/cgroup").glob(f"**/{state.native_id}"))

    async def test_what_hides_its_environment_ends_with_its_run(
        self, engine: ProcessEngine, image: str, mounts: tuple[BoundMount, ...]
    ) -> None:
        if engine._groups is None:
            pytest.skip("no control groups can be made here")
        hides = ("sh", "-c", "env -i setsid sleep 600 & exec sleep 600")
        state = await self.run(engine, self.spec(image, hides), mounts)
        groups, mark = engine._groups, state.native_id

        def unmarked() -> set[int]:
            return groups.members(mark) - set(process_table.marked(mark))

        hidden = await until(unmarked, "it does not run")
        await engine.stop(state.identity, 1)
        assert process_table.living(hidden) == []
        await engine.remove(state.identity)

    async def test_a_first_process_that_hangs_is_told_and_waited_for_again(
        self,
        engine: Engine,
        image: str,
        mounts: tuple[BoundMount, ...],
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        gate, slow = tmp_path / "gate", tmp_path / "mv"
        os.mkfifo(gate)
        slow.write_text(f'#!/bin/sh\nread line <{gate}\nexec /bin/mv "$@"\n')
        slow.chmod(0o755)
        spec = self.spec(
            image, ("sleep", "600"), environ={"PATH": f"{tmp_path}:{os.environ['PATH']}"}
        )
        with monkeypatch.context() as patch:
            patch.setattr(process, "PATIENCE", 0.2)
            with pytest.raises(EngineError, match="hangs") as told:
                await self.run(engine, spec, mounts)
        assert told.value.retriable
        await asyncio.to_thread(gate.write_text, "go on\n")
        state = await engine.start(Identity(spec.kernel_id, spec.session_id, spec.epoch))
        assert state.phase == "running"

    async def test_a_command_that_ends_at_once_was_started(
        self, tmp_path: Path, image: str, mounts: tuple[BoundMount, ...]
    ) -> None:
        class Dozing(ProcessEngine):
            """Notices a first process only when it has ended."""

            def _reap(self, mark: str) -> bool:
                if mark in self._children:
                    os.waitid(os.P_PID, self._children[mark], os.WEXITED | os.WNOWAIT)
                return super()._reap(mark)

        engine = Dozing()
        await engine.open({"state_dir": str(tmp_path / "agent")})
        state = await self.run(engine, self.spec(image, ("sh", "-c", "exit 3"), ports=()), mounts)
        assert (state.phase, state.exit_code) == ("exited", 3)
        await engine.remove(state.identity)
        await engine.close()

    async def test_the_signal_comes_first_however_long_the_search_takes(
        self,
        engine: Engine,
        image: str,
        mounts: tuple[BoundMount, ...],
        home: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        found = process_table.marked

        def slowly(mark: str) -> list[int]:
            pids = found(mark)
            asyncio.run(asyncio.sleep(0.1))  # as on a busy node with thousands of processes
            return pids

        script = "trap 'touch said-goodbye; exit' TERM; touch ready; while :; do sleep 0.1; done"
        state = await self.run(engine, self.spec(image, ("sh", "-c", script)), mounts)
        await until((home / "ready").exists, "it never began")
        monkeypatch.setattr(process_table, "marked", slowly)
        await engine.stop(state.identity, 5)
        assert (home / "said-goodbye").exists()

    async def test_processes_that_cannot_be_ended_are_told(
        self,
        engine: Engine,
        image: str,
        mounts: tuple[BoundMount, ...],
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        freezer = Path(f"/sys/fs/cgroup/freezer/{tmp_path.name}-{os.getpid()}")
        try:
            freezer.mkdir()
        except OSError:
            pytest.skip("no processes can be frozen here (control groups of version 1, root)")
        try:
            state = await self.run(engine, self.spec(image, ("sleep", "600")), mounts)
            monkeypatch.setattr(process, "PATIENCE", 0.2)
            for pid in process_table.marked(state.native_id):
                (freezer / "cgroup.procs").write_text(str(pid))
            (freezer / "freezer.state").write_text("FROZEN")
            with pytest.raises(EngineError, match="do not end") as told:
                await engine.stop(state.identity, 0)
            assert told.value.retriable
        finally:
            (freezer / "freezer.state").write_text("THAWED")
            for each in await engine.list():
                await engine.remove(each.identity)
            freezer.rmdir()

    async def test_ports_of_a_run_that_could_not_be_made_are_free_again(
        self, engine: Engine, image: str, mounts: tuple[BoundMount, ...]
    ) -> None:
        before = await self.run(engine, self.spec(image, ("sleep", "600")), mounts)
        number = before.endpoints[0].port
        await engine.remove(before.identity)
        ports = (Port("mine", number, "preopen"),)
        wrong = self.spec(
            image, ("sleep", "600"), ports=ports, files=(File("../outside", "", 0o600),)
        )
        with pytest.raises(EngineError, match="outside"):
            await engine.create(wrong, Limits(), mounts)
        state = await self.run(engine, self.spec(image, ("sleep", "600"), ports=ports), mounts)
        assert state.endpoints[0].port == number

    async def test_a_folder_that_cannot_be_protected_is_refused(
        self, engine: Engine, image: str, mounts: tuple[BoundMount, ...], tmp_path: Path
    ) -> None:
        data = BoundMount(str(tmp_path), "/home/work/data", True)
        with pytest.raises(EngineError, match="read-only"):
            await engine.create(self.spec(image, SERVE), Limits(), (*mounts, data))

    async def test_a_service_that_knows_its_port_gets_it_unless_somebody_has_it(
        self, engine: Engine, image: str, mounts: tuple[BoundMount, ...]
    ) -> None:
        number = free_port()
        serve = ("python3", "-m", "http.server", str(number), "--bind", "127.0.0.1")
        kind = {"session_type": "inference", "ports": (Port("service", number),)}
        state = await self.run(engine, self.spec(image, serve, **kind), mounts)
        assert state.endpoints[0].port == number
        with pytest.raises(
            EngineError, match=rf"port {number} is in use .*listen on {{bind_port}}"
        ):
            await engine.create(self.spec(image, serve, **kind), Limits(), mounts)
        asking = ("python3", "-m", "http.server", "{bind_port}")
        other = await self.run(engine, self.spec(image, asking, **kind), mounts)
        assert other.endpoints[0].port != number
        await engine.remove(state.identity)
        preopen = (Port("preopen", number, "preopen"),)
        third = await self.run(engine, self.spec(image, ("sleep", "9"), ports=preopen), mounts)
        assert third.endpoints[0].port == number

    async def test_a_half_made_scratch_folder_is_removed_at_the_next_start(
        self, engine: Engine, settings: Mapping[str, Any], tmp_path: Path
    ) -> None:
        folder = tmp_path / f"agent/scratch/half-1{UNFINISHED}"
        folder.mkdir()
        (folder / "run.json").write_text("{")
        assert await engine.list() == ()
        await engine.close()
        await engine.open(settings)
        assert not folder.exists()


class TestProcessEngineWithoutControlGroups(TestProcessEngine):
    """The same where control groups may not be used: ``ulimit`` and the watch over memory."""

    @pytest.fixture(autouse=True)
    def _no_groups(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(ControlGroups, "_probe", lambda self: False)

    test_what_hides_its_environment_ends_with_its_run = None  # nothing finds it then

    async def test_processes_are_bounded(
        self, engine: Engine, image: str, mounts: tuple[BoundMount, ...]
    ) -> None:
        """A watch ends the run; it looks when somebody listens to events, as the agent does."""
        program = "import os, time\nfor _ in range(80):\n    os.fork() or time.sleep(600)\ntime.sleep(600)"
        spec = self.spec(image, ("python3", "-c", program))
        state = await self.run(engine, spec, mounts, pids=64)
        async with asyncio.timeout(20):
            async for event in engine.events():
                assert (event.identity, event.what) == (state.identity, "exited")
                break
        assert (await self.ends(engine, state.identity)).exit_code == 137
        assert "more than 64 processes" in await engine.logs(state.identity, 5)
        await until(lambda: not process_table.marked(state.native_id), "some went on")

    async def test_a_run_is_kept_to_the_processors_that_it_asked_for(
        self, engine: Engine, image: str, mounts: tuple[BoundMount, ...]
    ) -> None:
        usable = os.sched_getaffinity(0)
        program = "import os; print(*sorted(os.sched_getaffinity(0)), flush=True)"
        kept = []
        for quota in (0.5, 0.5, float(len(usable))):
            spec = self.spec(image, ("python3", "-c", program))
            state = await self.run(engine, spec, mounts, cpu_quota=quota)
            await self.ends(engine, state.identity)
            line = await engine.logs(state.identity, 1)
            kept.append({int(word) for word in line.split()})
        assert kept[2] == usable
        assert os.sched_getaffinity(0) == usable, "the agent itself is not"
        if len(usable) > 1:
            assert [len(each) for each in kept[:2]] == [1, 1]
            assert kept[0] != kept[1], "each has its own while there are enough"

    async def test_too_much_memory_is_told_apart(  # type: ignore[override]
        self, engine: Engine, image: str, mounts: tuple[BoundMount, ...]
    ) -> None:
        program = "b = bytearray(200 * 2**20)"
        state = await self.run(
            engine, self.spec(image, ("python3", "-c", program)), mounts, memory_bytes=64 * MIB
        )
        ended = await self.ends(engine, state.identity)
        assert ended.exit_code == 1
        assert "MemoryError" in await engine.logs(state.identity, 5)

    async def test_dotfiles_and_the_bootstrap_script_come_first(
        self, engine: Engine, image: str, mounts: tuple[BoundMount, ...], home: Path
    ) -> None:
        files = (
            File("dotfiles/.profile", "mine\n", 0o664),
            File("bootstrap", "echo prepared > made", 0o700),
        )
        command = ("sh", "-c", "cat .profile made; stat -c %a .profile")
        spec = self.spec(image, command, ports=(), files=files, bootstrap="bootstrap")
        state = await self.run(engine, spec, mounts)
        assert (await self.ends(engine, state.identity)).exit_code == 0
        assert "mine\nprepared\n664" in await engine.logs(state.identity, 10)
        assert (home / "made").exists()
