"""What every engine guarantees (``spawner.agent.engines.base``), one test a guarantee.

Subclass ``EngineConformance`` in a ``test_*`` module; give it the ``kind`` of engine and the fixture ``image``.
Kernels run ``python3``.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
import urllib.request
import uuid
import zlib
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from spawner.agent.engines.base import (
    BoundMount,
    Engine,
    EngineError,
    EngineState,
    Exec,
    Identity,
    Limits,
    Measured,
)
from spawner.agent.logs import MAX_LOG, pack
from spawner.agent.protocol import KernelSpec, Port, Share

MIB = 1024 * 1024
SERVE = ("python3", "-m", "http.server", "--bind", "{bind_host}", "{bind_port}")
BUSY = ("python3", "-c", "while True: pass")
SLEEP = ("python3", "-c", "import time; time.sleep(600)")


async def until(condition: Callable[[], Any], what: str, seconds: float = 30) -> Any:
    """The first true answer of ``condition`` (which may be a coroutine function)."""
    async with asyncio.timeout(seconds):
        while True:
            answer = condition()
            if asyncio.iscoroutine(answer):
                answer = await answer
            if answer:
                return answer
            await asyncio.sleep(0.05)
    raise AssertionError(what)


async def output_of(program: Exec, until_text: bytes | None = None, seconds: float = 20) -> bytes:
    """All that a program writes, or all up to a text."""
    data = b""
    async with asyncio.timeout(seconds):
        while until_text is None or until_text not in data:
            more = await program.read()
            if not more:
                break
            data += more
    return data


async def code_of(program: Exec) -> int:
    """Its exit status, once it has one."""

    async def ended() -> tuple[int] | None:
        code = await program.exit_code()
        return None if code is None else (code,)

    return int((await until(ended, "it never ended"))[0])


async def _at_least(count: Callable[[], Any], least: int) -> bool:
    return (await count() or 0) >= least


async def _none(count: Callable[[], Any]) -> bool:
    return await count() == 0


class EngineRig:
    """An open engine, a home folder, and runs of kernels on it."""

    kind: type[Engine]

    @pytest.fixture
    def fresh(self) -> Callable[[], Engine]:
        """Makes an engine that is not open yet."""
        return self.kind

    @pytest.fixture
    def settings(self, tmp_path: Path) -> Mapping[str, Any]:
        return {"state_dir": str(tmp_path / "agent")}

    @pytest.fixture
    async def engine(
        self, fresh: Callable[[], Engine], settings: Mapping[str, Any]
    ) -> AsyncIterator[Engine]:
        engine = fresh()
        await engine.open(settings)
        before = {state.native_id for state in await engine.list()}
        yield engine
        for state in await engine.list():
            if state.native_id not in before:
                await engine.stop(state.identity, 0)
                await engine.remove(state.identity)
        await engine.close()

    @pytest.fixture
    def home(self, tmp_path: Path) -> Path:
        folder = tmp_path / "home"
        folder.mkdir()
        if os.geteuid() == 0:
            os.chown(folder, 1000, 1000)
        return folder

    @pytest.fixture
    def mounts(self, home: Path) -> tuple[BoundMount, ...]:
        return (BoundMount(str(home), "/home/work", False),)

    def spec(self, image: str, command: tuple[str, ...], **facts: Any) -> KernelSpec:
        given = {
            "kernel_id": str(uuid.uuid4()),
            "session_id": str(uuid.uuid4()),
            "epoch": 1,
            "session_name": "conformance",
            "owner": "tester",
            "hostname": "main1",
            "image": image,
            "command": command,
            "environ": {},
            "mounts": (),
            "ports": (Port("web", 8888, published=True),),
            "shares": (Share("cpu", "cpu", 1_000_000), Share("mem", "mem", 256 * MIB)),
            "shm_bytes": 16 * MIB,
        }
        return KernelSpec(**{**given, **facts})

    async def run(
        self, engine: Engine, spec: KernelSpec, mounts: tuple[BoundMount, ...], **limits: Any
    ) -> EngineState:
        given = {"cpu_quota": 1.0, "memory_bytes": 256 * MIB, "shm_bytes": 16 * MIB, "pids": 256}
        await engine.create(spec, Limits(**{**given, **limits}), mounts)
        return await engine.start(Identity(spec.kernel_id, spec.session_id, spec.epoch))

    async def ends(self, engine: Engine, identity: Identity) -> EngineState:
        async def ended() -> EngineState | None:
            state = await engine.inspect(identity)
            return state if state is not None and state.phase == "exited" else None

        state = await until(ended, "the kernel never ended")
        assert isinstance(state, EngineState)
        return state


class RunConformance(EngineRig):
    """What runs of kernels must be like."""

    async def test_the_image_is_offered(self, engine: Engine, image: str) -> None:
        offered = {report.name: report for report in await engine.images()}
        assert "ai.perijove.image" in offered[image].labels
        assert [sentence async for sentence in engine.ensure_image(image)] == []

    async def test_a_missing_image_is_named(self, engine: Engine) -> None:
        with pytest.raises(EngineError, match="no-such-image"):
            async for _ in engine.ensure_image("localhost:1/no-such-image:none"):
                pass

    async def test_every_step_can_be_repeated(
        self, engine: Engine, image: str, mounts: tuple[BoundMount, ...]
    ) -> None:
        spec = self.spec(image, SERVE)
        identity = Identity(spec.kernel_id, spec.session_id, spec.epoch)
        limits = Limits(cpu_quota=1.0, memory_bytes=256 * MIB)
        created = await engine.create(spec, limits, mounts)
        again = await engine.create(spec, limits, mounts)
        assert created.phase == again.phase == "created"
        assert created.native_id == again.native_id
        started = await engine.start(identity)
        assert (await engine.start(identity)).native_id == started.native_id == created.native_id
        assert (await engine.create(spec, limits, mounts)).phase == "running"
        assert len([s for s in await engine.list() if s.identity == identity]) == 1
        for _ in range(2):
            await engine.stop(identity, 1)
        for _ in range(2):
            await engine.remove(identity)
        assert await engine.inspect(identity) is None
        await engine.stop(identity, 1)

    async def test_the_main_port_is_reached_at_its_endpoint(
        self, engine: Engine, image: str, mounts: tuple[BoundMount, ...], home: Path
    ) -> None:
        (home / "hello.txt").write_text("from home")
        state = await self.run(engine, self.spec(image, SERVE), mounts)
        (endpoint,) = state.endpoints
        assert (endpoint.name, endpoint.container_port) == ("web", 8888)
        url = f"http://{endpoint.host}:{endpoint.port}/hello.txt"

        def fetch() -> bytes:
            try:
                with urllib.request.urlopen(url, timeout=2) as answer:
                    return bytes(answer.read())
            except OSError:
                return b""

        got = await until(lambda: asyncio.to_thread(fetch), "the port never answered")
        assert got == b"from home"

    async def test_environment_tokens_and_logs(
        self, engine: Engine, image: str, mounts: tuple[BoundMount, ...]
    ) -> None:
        program = (
            "import os, sys; print(os.environ['WHERE'], flush=True); print('err', file=sys.stderr)"
        )
        environ = {"WHERE": "{bind_host}|{home}|{session_address}|{other}"}
        spec = self.spec(image, ("python3", "-c", program), environ=environ)
        state = await self.run(engine, spec, mounts, environ={"LIMIT": "1"})
        await self.ends(engine, state.identity)
        text = await engine.logs(state.identity, 10)
        host, home, address, other = next(line for line in text.splitlines() if "|" in line).split(
            "|"
        )
        assert host in ("0.0.0.0", "127.0.0.1")
        assert home.startswith("/")
        assert address == await engine.session_address()
        assert other == "{other}"
        assert "err" in text
        assert len((await engine.logs(state.identity, 1)).splitlines()) == 1

    async def test_secrets_of_the_agent_do_not_leak(
        self,
        engine: Engine,
        image: str,
        mounts: tuple[BoundMount, ...],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setenv("PERIJOVE_AGENT_TOKEN", "canary-canary")
        program = "import os; print(dict(os.environ))"
        state = await self.run(engine, self.spec(image, ("python3", "-c", program)), mounts)
        await self.ends(engine, state.identity)
        assert "canary" not in await engine.logs(state.identity, 100)

    async def test_beginning_and_end_of_the_output_are_kept_after_the_end(
        self, engine: Engine, image: str, mounts: tuple[BoundMount, ...]
    ) -> None:
        program = (
            "import sys\n"
            "print('first of all', flush=True)\n"
            "sys.stdout.writelines(f'{n:07}\\n' for n in range(150_000))\n"
            "print('at last')\n"
        )
        state = await self.run(engine, self.spec(image, ("python3", "-c", program)), mounts)
        await self.ends(engine, state.identity)
        kept = zlib.decompress(await engine.output(state.identity)).decode()
        assert kept.startswith("first of all\n0000000\n")
        assert kept.endswith("0149999\nat last\n")
        assert "bytes of output are not kept" in kept
        assert len(kept) <= MAX_LOG
        assert await engine.output(Identity(str(uuid.uuid4()), "s", 1)) in (b"", pack([]))

    @pytest.mark.parametrize("code", [0, 3])
    async def test_exit_codes_are_told(
        self, engine: Engine, image: str, mounts: tuple[BoundMount, ...], code: int
    ) -> None:
        command = ("python3", "-c", f"raise SystemExit({code})")
        state = await self.run(engine, self.spec(image, command), mounts)
        ended = await self.ends(engine, state.identity)
        assert (ended.exit_code, ended.oom_killed) == (code, False)

    async def test_a_command_begins_with_no_signal_ignored(
        self, engine: Engine, image: str, mounts: tuple[BoundMount, ...]
    ) -> None:
        """Else ^C ends nothing in a terminal, and what a pipe's reader leaves goes on."""
        spec = self.spec(image, ("grep", "SigIgn", "/proc/self/status"), ports=())
        state = await self.run(engine, spec, mounts)
        await self.ends(engine, state.identity)
        ignored = int((await engine.logs(state.identity, 1)).split()[-1], 16)
        names = ("SIGHUP", "SIGINT", "SIGQUIT", "SIGPIPE", "SIGTERM", "SIGXFSZ")
        assert [name for name in names if ignored >> (signal.Signals[name] - 1) & 1] == []

    async def test_too_much_memory_is_told_apart(
        self, engine: Engine, image: str, mounts: tuple[BoundMount, ...]
    ) -> None:
        program = "b = bytearray(); [b.extend(b'x' * 2**20) for _ in range(10**6)]"
        state = await self.run(
            engine, self.spec(image, ("python3", "-c", program)), mounts, memory_bytes=64 * MIB
        )
        ended = await self.ends(engine, state.identity)
        assert ended.oom_killed
        assert ended.exit_code not in (0, None)

    async def test_processes_are_bounded(
        self, engine: Engine, image: str, mounts: tuple[BoundMount, ...]
    ) -> None:
        program = (
            "import os, time\n"
            "n = 0\n"
            "try:\n"
            "    while n < 500:\n"
            "        if os.fork() == 0: time.sleep(20); os._exit(0)\n"
            "        n += 1\n"
            "except OSError: print('bounded after', n < 64, flush=True)\n"
        )
        spec = self.spec(image, ("python3", "-c", program))
        state = await self.run(engine, spec, mounts, pids=64)
        text = await until(lambda: engine.logs(state.identity, 5), "no output")
        assert "bounded after True" in text

    async def test_a_term_signal_comes_first(
        self, engine: Engine, image: str, mounts: tuple[BoundMount, ...], home: Path
    ) -> None:
        program = (
            "import signal, sys, time, pathlib\n"
            "def end(*_):\n"
            "    pathlib.Path('said-goodbye').touch(); sys.exit(0)\n"
            "signal.signal(signal.SIGTERM, end)\n"
            "pathlib.Path('ready').touch()\n"
            "time.sleep(600)\n"
        )
        state = await self.run(engine, self.spec(image, ("python3", "-c", program)), mounts)
        await until((home / "ready").exists, "it never began")
        await engine.stop(state.identity, 10)
        assert (home / "said-goodbye").exists()

    async def test_what_ignores_the_signal_is_killed_with_its_children(
        self, engine: Engine, image: str, mounts: tuple[BoundMount, ...], home: Path
    ) -> None:
        program = (
            "import signal, subprocess, time, pathlib\n"
            "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
            "beat = 'import time, pathlib\\n'\n"
            "beat += 'while True: pathlib.Path(\"beat\").write_text(str(time.time())); time.sleep(.02)'\n"
            "subprocess.Popen(['python3', '-c', beat], start_new_session=True)\n"
            "time.sleep(600)\n"
        )
        state = await self.run(engine, self.spec(image, ("python3", "-c", program)), mounts)
        await until((home / "beat").exists, "its child never began")
        await engine.stop(state.identity, 0.2)
        last = (home / "beat").stat().st_mtime_ns
        await asyncio.sleep(0.3)
        assert (home / "beat").stat().st_mtime_ns == last

    async def test_events_tell_of_an_end(
        self, engine: Engine, image: str, mounts: tuple[BoundMount, ...], home: Path
    ) -> None:
        program = "import pathlib, time\nwhile not pathlib.Path('go').exists(): time.sleep(.02)\n"
        events = engine.events()
        hint = asyncio.ensure_future(anext(aiter(events)))
        state = await self.run(engine, self.spec(image, ("python3", "-c", program)), mounts)
        await until(lambda: engine.list(), "listed")
        await asyncio.sleep(1.2)  # an event stream that polls must have seen it run
        (home / "go").touch()
        event = await asyncio.wait_for(hint, 20)
        assert event.identity == state.identity
        await events.aclose()  # type: ignore[attr-defined]  # an async generator in both engines

    async def test_another_engine_object_adopts_everything(
        self,
        engine: Engine,
        fresh: Callable[[], Engine],
        settings: Mapping[str, Any],
        image: str,
        mounts: tuple[BoundMount, ...],
    ) -> None:
        running = await self.run(engine, self.spec(image, SERVE), mounts)
        waiting = self.spec(image, SLEEP, epoch=7)
        await engine.create(waiting, Limits(memory_bytes=128 * MIB), mounts)
        await engine.close()
        other = fresh()
        await other.open(settings)
        try:
            found = {state.identity.kernel_id: state for state in await other.list()}
            adopted = found[running.identity.kernel_id]
            assert adopted.phase == "running"
            assert (adopted.endpoints, adopted.shares) == (running.endpoints, running.shares)
            created = found[waiting.kernel_id]
            assert (created.phase, created.identity.epoch) == ("created", 7)
            assert (await other.start(created.identity)).phase == "running"
            for state in (adopted, created):
                await other.stop(state.identity, 0)
                await other.remove(state.identity)
        finally:
            await other.close()
        await engine.open(settings)

    async def test_agents_on_one_host_leave_each_others_kernels_alone(
        self,
        engine: Engine,
        fresh: Callable[[], Engine],
        settings: Mapping[str, Any],
        image: str,
        mounts: tuple[BoundMount, ...],
        tmp_path: Path,
    ) -> None:
        ours = await self.run(engine, self.spec(image, SLEEP), mounts)
        neighbour = fresh()
        await neighbour.open({**settings, "state_dir": str(tmp_path / "neighbour")})
        try:
            assert await neighbour.list() == ()
        finally:
            await neighbour.close()
        assert ours.identity in {state.identity for state in await engine.list()}

    async def test_starting_what_is_not_there_is_an_error(self, engine: Engine) -> None:
        with pytest.raises(EngineError, match="gone"):
            await engine.start(Identity(str(uuid.uuid4()), "s", 1))
        assert await engine.inspect(Identity(str(uuid.uuid4()), "s", 1)) is None
        assert await engine.logs(Identity(str(uuid.uuid4()), "s", 1), 5) == ""


class EngineConformance(RunConformance):
    """Runs, and what an engine offers about running ones."""

    async def test_a_running_kernel_is_measured(
        self, engine: Engine, image: str, mounts: tuple[BoundMount, ...]
    ) -> None:
        spec = self.spec(image, BUSY)
        state = await self.run(engine, spec, mounts)

        async def busy() -> Measured | None:
            measured = (await engine.measure()).get(state.identity)
            return measured if measured is not None and measured.cpu_seconds > 0.3 else None

        measured = await until(busy, "its CPU time was never counted")
        assert MIB < measured.memory_bytes < 256 * MIB
        assert measured.processes is None or measured.processes >= 1
        assert measured.connections == 0
        commands = [process.command for process in await engine.processes(state.identity)]
        assert any("while True" in command for command in commands), commands
        pids = [int(name) for name in os.listdir("/proc") if name.isdigit()]
        owners = await engine.owners(pids)
        assert state.identity in owners.values()
        assert os.getpid() not in owners
        await engine.stop(state.identity, 0)
        assert state.identity not in await engine.measure()

    async def test_a_connection_from_outside_is_counted(
        self, engine: Engine, image: str, mounts: tuple[BoundMount, ...]
    ) -> None:
        state = await self.run(engine, self.spec(image, SERVE), mounts)
        endpoint = state.endpoints[0]

        async def connections() -> int | None:
            measured = (await engine.measure()).get(state.identity)
            return None if measured is None else measured.connections

        async def answers() -> asyncio.StreamWriter | None:
            try:
                reader, writer = await asyncio.open_connection(endpoint.host, endpoint.port)
                writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
                if await reader.read(5) == b"HTTP/":
                    return writer
                writer.close()
            except OSError:
                pass
            return None

        (await until(answers, "it never answered")).close()
        _, open_one = await asyncio.open_connection(endpoint.host, endpoint.port)
        assert await until(lambda: _at_least(connections, 1), "the connection was not counted")
        assert await connections() == 1
        open_one.close()
        await until(lambda: _none(connections), "the closed connection still counts")

    async def test_the_end_of_a_run_is_known_afterwards(
        self, engine: Engine, image: str, mounts: tuple[BoundMount, ...]
    ) -> None:
        before = time.time()
        state = await self.run(engine, self.spec(image, ("sh", "-c", "exit 3")), mounts)
        assert (await self.ends(engine, state.identity)).exit_code == 3
        after = time.time()
        ended = (await engine.list())[0].ended_at
        assert ended is not None
        assert before - 2 <= ended <= after + 2

    async def test_a_further_program_has_streams_environment_and_an_exit_code(
        self, engine: Engine, image: str, mounts: tuple[BoundMount, ...]
    ) -> None:
        state = await self.run(engine, self.spec(image, SLEEP), mounts)
        script = 'read line; echo "$WORD $line"; echo fault >&2; exit 3'
        program = await engine.execute(
            state.identity, ("sh", "-c", script), environ={"WORD": "hello"}
        )
        await program.write(b"there\n")
        assert sorted((await output_of(program)).split()) == [b"fault", b"hello", b"there"]
        assert await code_of(program) == 3
        await program.close()

    async def test_a_terminal_is_one(
        self, engine: Engine, image: str, mounts: tuple[BoundMount, ...]
    ) -> None:
        state = await self.run(engine, self.spec(image, SLEEP), mounts)
        program = await engine.execute(state.identity, ("sh", "-i"), terminal=True)
        await program.resize(33, 111)
        await program.write(b"tty | tr a-z A-Z; stty size; echo do''ne\r")
        text = await output_of(program, b"done\r")
        assert {b"/DEV/PTS/" in text, b"33 111" in text} == {True}
        await program.write(b"exit 5\r")
        await output_of(program)
        assert await code_of(program) == 5
        await program.close()

    async def test_closing_a_terminal_ends_what_runs_in_it(
        self, engine: Engine, image: str, mounts: tuple[BoundMount, ...], home: Path
    ) -> None:
        state = await self.run(engine, self.spec(image, SLEEP), mounts)
        script = (
            "import pathlib, signal, sys, time\n"
            "def end(*_):\n"
            "    pathlib.Path('hung-up').touch(); sys.exit(0)\n"
            "signal.signal(signal.SIGHUP, end)\n"
            "print('waiting', flush=True)\n"
            "time.sleep(600)\n"
        )
        program = await engine.execute(state.identity, ("python3", "-c", script), terminal=True)
        await output_of(program, b"waiting")
        await program.close()
        await until((home / "hung-up").exists, "no SIGHUP came")
        assert await code_of(program) is not None

    async def test_further_programs_outlive_the_agent_and_end_with_the_kernel(
        self,
        engine: Engine,
        settings: Mapping[str, Any],
        image: str,
        mounts: tuple[BoundMount, ...],
        home: Path,
    ) -> None:
        state = await self.run(engine, self.spec(image, SLEEP), mounts)
        script = "while :; do date +%N > beat; sleep 0.05; done >/dev/null 2>&1"
        program = await engine.execute(state.identity, ("sh", "-c", script))
        await until((home / "beat").exists, "it never began")
        await program.close()
        await engine.close()
        await engine.open(settings)
        before = (home / "beat").stat().st_mtime_ns
        await until(lambda: (home / "beat").stat().st_mtime_ns > before, "it ended")
        await engine.stop(state.identity, 0)
        last = (home / "beat").stat().st_mtime_ns
        await asyncio.sleep(0.3)
        assert (home / "beat").stat().st_mtime_ns == last
        with pytest.raises(EngineError):
            await engine.execute(state.identity, ("true",))

    async def test_a_program_that_is_not_there_is_an_error_or_ends(
        self, engine: Engine, image: str, mounts: tuple[BoundMount, ...]
    ) -> None:
        state = await self.run(engine, self.spec(image, SLEEP), mounts)
        refused = ""
        try:
            program = await engine.execute(state.identity, ("no-such-program",))
        except EngineError as error:
            refused = str(error)
        else:
            await output_of(program)
            assert await code_of(program) in (126, 127)
            await program.close()
        assert not refused or "no-such-program" in refused
        with pytest.raises(EngineError):
            await engine.execute(Identity(str(uuid.uuid4()), "s", 1), ("true",))

    async def test_a_further_port_is_reached_from_this_host(
        self,
        engine: Engine,
        fresh: Callable[[], Engine],
        settings: Mapping[str, Any],
        image: str,
        mounts: tuple[BoundMount, ...],
        home: Path,
    ) -> None:
        (home / "hello.txt").write_text("from inside")
        state = await self.run(engine, self.spec(image, SLEEP), mounts)
        tokens = await engine.tokens(state.identity, 6006)
        program = await engine.execute(state.identity, [tokens.text(word) for word in SERVE])
        other = fresh()
        await other.open(settings)
        try:
            host, port = await other.reach(state.identity, 6006)
            assert (host, port) == await engine.reach(state.identity, 6006)
        finally:
            await other.close()

        def fetched() -> bytes | None:
            try:
                with urllib.request.urlopen(f"http://{host}:{port}/hello.txt", timeout=2) as answer:
                    data: bytes = answer.read()
                    return data
            except OSError:
                return None

        assert await until(lambda: asyncio.to_thread(fetched), "nothing answers") == b"from inside"
        await program.close()
