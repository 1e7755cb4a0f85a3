"""Kernels of an agent on engines that misbehave: nothing hangs, nothing is left, nothing is killed in vain."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import closing, suppress
from dataclasses import replace

import pytest
from msgspec import structs

from spawner.accelerators.registry import Accelerators
from spawner.agent import kernels, runner
from spawner.agent.engines.base import BoundMount, EngineError, EngineState, Identity, Limits
from spawner.agent.kernels import Kernels
from spawner.agent.protocol import (
    HealthCheck,
    ImagePull,
    KernelReport,
    KernelSpec,
    Mount,
    Port,
    Wanted,
)
from spawner.agent.runner import Surroundings
from tests.harness.engine import MemoryEngine

SPEC = KernelSpec(
    kernel_id="11111111-1111-4111-8111-111111111111",
    session_id="22222222-2222-4222-8222-222222222222",
    epoch=1,
    session_name="work",
    owner="ada",
    hostname="main1",
    image="image",
    command=(),
    environ={},
    mounts=(),
    ports=(),
    shares=(),
    shm_bytes=0,
)
IDENTITY = Identity(SPEC.kernel_id, SPEC.session_id, SPEC.epoch)
WANTED = Wanted((SPEC,), ())
SECOND = structs.replace(SPEC, epoch=2)
DRAINED = Wanted((), ((SPEC.kernel_id, SPEC.epoch),))


class Node:
    """Kernels on an engine, and what they reported."""

    def __init__(self, engine: MemoryEngine) -> None:
        self.engine = engine
        self.reports: asyncio.Queue[KernelReport] = asyncio.Queue()
        around = Surroundings(
            engine=engine,
            accelerators=Accelerators([]),
            volumes={},
            address="127.0.0.1",
            max_pids=64,
            stop_grace=0,
            changed=self.reports.put_nowait,
        )
        self.kernels = Kernels(around, orphan_grace=60)

    async def until(self, status: str) -> KernelReport:
        async with asyncio.timeout(5):
            while (report := await self.reports.get()).status != status:
                pass
        return report

    def apply(self, wanted: Wanted) -> None:
        self.kernels.apply(wanted, 0.0)

    async def running(self) -> Node:
        """The same once its kernel runs."""
        self.apply(WANTED)
        await self.until("RUNNING")
        return self


Begin = Callable[[MemoryEngine], Node]


@pytest.fixture
async def node() -> AsyncIterator[Begin]:
    nodes: list[Node] = []

    def make(engine: MemoryEngine) -> Node:
        nodes.append(Node(engine))
        return nodes[-1]

    yield make
    for each in nodes:
        await each.kernels.close()


class Faulty(MemoryEngine):
    """Has a fault that nobody foresaw."""

    async def create(
        self, spec: KernelSpec, limits: Limits, mounts: tuple[BoundMount, ...]
    ) -> EngineState:
        raise ZeroDivisionError("a fault of the engine")


async def test_an_unforeseen_fault_fails_the_start_and_names_itself(
    node: Begin, caplog: pytest.LogCaptureFixture
) -> None:
    here = node(Faulty())
    here.apply(WANTED)
    report = await here.until("TERMINATED")
    assert (report.failure, report.progress) == (
        "create-failed",
        "the node failed: ZeroDivisionError",
    )
    assert "a fault of the engine" in caplog.text


class FaultyWatch(MemoryEngine):
    """Fails in an unforeseen way while a running kernel is looked at, once."""

    faults = 1

    async def inspect(self, identity: Identity) -> EngineState | None:
        if self.faults:
            self.faults -= 1
            raise ZeroDivisionError("a fault of the engine")
        return await super().inspect(identity)


@pytest.mark.parametrize("then", [WANTED, DRAINED])
async def test_a_watch_that_broke_off_begins_again_and_the_kernel_goes_on(
    node: Begin, then: Wanted, caplog: pytest.LogCaptureFixture
) -> None:
    engine = FaultyWatch()
    here = await node(engine).running()
    here.kernels.look()
    async with asyncio.timeout(5):
        while "the agent failed" not in caplog.text:
            await asyncio.sleep(0)
    assert engine.states[IDENTITY].phase == "running"
    here.apply(then)
    if then is DRAINED:
        await here.until("TERMINATED")
        assert engine.states[IDENTITY].phase == "exited"
    else:
        await here.until("RUNNING")
        here.apply(DRAINED)
        await here.until("TERMINATED")


class Slow(MemoryEngine):
    """Creates in a thread of its own, as it were: a cancelled caller does not stop it."""

    def __init__(self) -> None:
        super().__init__()
        self.asked, self.go = asyncio.Event(), asyncio.Event()

    async def create(
        self, spec: KernelSpec, limits: Limits, mounts: tuple[BoundMount, ...]
    ) -> EngineState:
        self.asked.set()
        await self.go.wait()
        return await super().create(spec, limits, mounts)


async def test_a_container_that_appears_after_the_cancel_is_not_left_behind(node: Begin) -> None:
    engine = Slow()
    here = node(engine)
    here.apply(WANTED)
    await engine.asked.wait()
    here.apply(DRAINED)
    await asyncio.sleep(0)
    engine.go.set()
    report = await here.until("TERMINATED")
    await here.kernels.acknowledge((report,))
    assert engine.states == {}
    assert engine.calls.index("create") < engine.calls.index("stop") < engine.calls.index("remove")


class Hiccup(MemoryEngine):
    """Does not answer the first time it is asked for an image."""

    async def ensure_image(self, name: str, pull: ImagePull | None = None) -> AsyncIterator[str]:
        self.calls.append("image")
        if self.calls.count("image") == 1:
            raise EngineError("the engine does not answer", retriable=True)
        yield "there it is"


async def test_a_hiccup_of_the_engine_does_not_fail_a_start(
    node: Begin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "RETRY_PAUSE", 0.0)
    engine = Hiccup()
    await node(engine).running()
    assert engine.calls.count("image") == 2


async def test_what_nobody_knows_is_removed_at_the_second_look(node: Begin) -> None:
    engine = MemoryEngine()
    here = await node(engine).running()
    stray = replace(engine.states[IDENTITY], identity=replace(IDENTITY, kernel_id="stray"))
    engine.states[stray.identity] = stray
    await here.kernels.sweep(0.0)
    assert stray.identity in engine.states
    await here.kernels.sweep(0.0)
    assert set(engine.states) == {IDENTITY}


async def test_an_end_without_an_event_is_seen_at_the_next_look_at_all(node: Begin) -> None:
    engine = MemoryEngine()
    here = await node(engine).running()
    engine.states[IDENTITY] = replace(engine.states[IDENTITY], phase="exited", exit_code=3)
    await here.kernels.sweep(0.0)
    report = await here.until("TERMINATED")
    assert (report.failure, report.exit_code) == ("exited", 3)


async def test_a_newer_run_starts_once_the_end_of_the_older_one_is_recorded(node: Begin) -> None:
    engine = MemoryEngine()
    here = await node(engine).running()
    here.apply(Wanted((SECOND,), ()))
    ended = await here.until("TERMINATED")
    assert (ended.epoch, set(engine.states)) == (1, {IDENTITY})
    await here.kernels.acknowledge((ended,))
    running = await here.until("RUNNING")
    assert (running.epoch, running.healthy) == (2, None)
    assert set(engine.states) == {replace(IDENTITY, epoch=2)}
    here.apply(WANTED)  # late, and stale
    assert set(engine.states) == {replace(IDENTITY, epoch=2)}


async def test_a_late_word_does_not_start_an_ended_run_again(node: Begin) -> None:
    here = await node(MemoryEngine()).running()
    here.engine.states[IDENTITY] = replace(here.engine.states[IDENTITY], phase="exited")
    here.kernels.look()
    ended = await here.until("TERMINATED")
    await here.kernels.acknowledge([ended])
    here.apply(WANTED)  # sent before the manager heard of the end
    here.apply(Wanted((SECOND,), ()))
    await here.until("RUNNING")
    assert here.engine.calls.count("create") == 2
    assert [each.epoch for each in here.engine.states] == [2]


async def test_a_restarted_agent_goes_on_with_a_restart(node: Begin) -> None:
    engine = MemoryEngine()
    before = await node(engine).running()
    before.apply(Wanted((SECOND,), ()))
    await before.kernels.close()
    after = node(engine)
    await after.kernels.adopt()
    after.apply(Wanted((SECOND,), ()))
    await after.kernels.acknowledge((await after.until("TERMINATED"),))
    assert (await after.until("RUNNING")).epoch == 2
    assert engine.calls.count("create") == 2


async def test_a_run_whose_lease_is_over_ends_and_no_newer_one_starts(node: Begin) -> None:
    engine = MemoryEngine()
    here = await node(engine).running()
    assert here.kernels.fence("unknown") is None
    assert here.kernels.fence(SPEC.kernel_id) == 1
    ended = await here.until("TERMINATED")
    assert (ended.failure, engine.states[IDENTITY].phase) == ("fenced", "exited")
    assert here.kernels.fence(SPEC.kernel_id) is None
    here.apply(Wanted((SECOND,), ()))
    assert here.kernels.fence(SPEC.kernel_id) is None  # the second one waits, and must not start
    await here.kernels.acknowledge((ended,))
    assert engine.states == {}


@pytest.mark.parametrize("phase", ["created", "running", "exited"])
async def test_a_restarted_agent_knows_what_it_ended_itself(node: Begin, phase: str) -> None:
    engine = MemoryEngine()
    engine.states[IDENTITY] = EngineState(IDENTITY, phase, "c", (), (), exit_code=143)
    here = node(engine)
    await here.kernels.adopt({SPEC.kernel_id: 1})
    ended = await here.until("TERMINATED")
    assert (ended.failure, engine.states[IDENTITY].phase) == ("fenced", "exited")


async def test_what_ended_by_itself_is_not_fenced_afterwards(node: Begin) -> None:
    engine = MemoryEngine()
    engine.states[IDENTITY] = EngineState(IDENTITY, "exited", "c", (), (), exit_code=0)
    here = node(engine)
    await here.kernels.adopt({SPEC.kernel_id: 7})
    assert here.kernels.fence(SPEC.kernel_id) is None
    ended = await here.until("TERMINATED")
    assert (ended.failure, ended.exit_code) == ("exited", 0)


@pytest.mark.parametrize(("code", "failure"), [(0, "exited"), (137, "oom-killed")])
async def test_a_main_process_that_copes_with_the_loss_of_a_child_has_not_failed(
    node: Begin, code: int, failure: str
) -> None:
    engine = MemoryEngine()
    here = await node(engine).running()
    engine.states[IDENTITY] = replace(
        engine.states[IDENTITY], phase="exited", exit_code=code, oom_killed=True
    )
    here.kernels.look()
    assert (await here.until("TERMINATED")).failure == failure


async def test_the_health_of_an_adopted_kernel_is_followed(node: Begin) -> None:
    engine = MemoryEngine()
    engine.states[IDENTITY] = EngineState(IDENTITY, "running", "c", (), ())
    here = node(engine)
    await here.kernels.adopt()
    check = HealthCheck(interval=0.0, max_failures=1)
    here.apply(Wanted((structs.replace(SPEC, health=check),), ()))
    async with asyncio.timeout(5):
        while (report := await here.reports.get()).healthy is not False:
            pass
    assert report.progress == "its health check failed once: its port is not open"
    here.apply(DRAINED)
    await here.until("TERMINATED")


class Clinging(MemoryEngine):
    """Cannot remove one of its kernels."""

    well = True

    async def ping(self) -> None:
        if not self.well:
            raise EngineError("it does not answer")

    async def remove(self, identity: Identity) -> None:
        if identity.kernel_id == "clinging":
            raise EngineError("its folder is busy")
        await super().remove(identity)


async def test_a_stray_that_cannot_be_removed_does_not_keep_the_others(node: Begin) -> None:
    engine = Clinging()
    here = node(engine)
    for name in ("clinging", *map(str, range(20))):
        identity = replace(IDENTITY, kernel_id=name)
        engine.states[identity] = EngineState(identity, "running", name, (), ())
    await here.kernels.sweep(0.0)
    await here.kernels.sweep(0.0)
    assert [each.kernel_id for each in engine.states] == ["clinging"]
    engine.well = False
    with pytest.raises(EngineError, match="does not answer"):
        await here.kernels.sweep(0.0)


async def test_of_kernels_that_are_gone_the_newest_are_known(
    node: Begin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "REMEMBERED", 2)
    here = await node(MemoryEngine()).running()
    here.apply(DRAINED)
    ended = await here.until("TERMINATED")
    await here.kernels.acknowledge([ended])
    here.apply(WANTED)  # sent before the manager heard of the end
    assert here.engine.calls.count("create") == 1
    here.apply(Wanted((), (("two", 1), ("three", 1))))
    here.apply(Wanted((), ()))
    assert here.kernels._highest == {"two": 2, "three": 2}


class Broken(MemoryEngine):
    """Its disk can be neither read nor written."""

    broken = True

    async def logs(self, identity: Identity, tail: int) -> str:
        raise PermissionError("it is not ours")

    async def output(self, identity: Identity) -> bytes:
        raise PermissionError("it is not ours")

    async def remove(self, identity: Identity) -> None:
        if self.broken:
            raise PermissionError("it is not ours")
        await super().remove(identity)


async def test_a_run_ends_though_its_files_are_out_of_reach(node: Begin) -> None:
    engine = Broken()
    here = await node(engine).running()
    here.apply(DRAINED)
    ended = await here.until("TERMINATED")
    assert (ended.log, ended.log_tail) == (b"", "(the log cannot be read: it is not ours)")
    await here.kernels.acknowledge([ended])
    assert here.kernels.reports() == ()
    await here.kernels.sweep(0.0)
    engine.broken = False
    await here.kernels.sweep(0.0)
    assert engine.states == {}


@pytest.mark.parametrize(("since", "healthy"), [(0.0, True), (3600.0, False)])
async def test_a_service_that_was_still_starting_when_its_agent_ended_is_not_ill(
    node: Begin, since: float, healthy: bool
) -> None:
    engine = Reached()
    begun = time.time() - since
    engine.states[IDENTITY] = EngineState(IDENTITY, "running", "c", (), (), begun)
    here = node(engine)
    await here.kernels.adopt()
    check = HealthCheck(interval=0.0, max_failures=1)
    port = Port("serve", 8000)
    wanted = structs.replace(SPEC, health=check, ports=(port,), session_type="inference")
    here.apply(Wanted((wanted,), ()))
    async with asyncio.timeout(5):
        while (report := await here.reports.get()).healthy is None:
            pass
    assert report.healthy is healthy
    here.apply(DRAINED)
    await here.until("TERMINATED")
    await engine.close()


class Reached(MemoryEngine):
    """Its kernels can be reached from the third time on that they are asked for, and serve then."""

    server: asyncio.Server | None = None

    async def reach(self, identity: Identity, port: int) -> tuple[str, int]:
        self.calls.append("reach")
        if self.calls.count("reach") < 3:
            raise EngineError("it has no address yet")
        if self.server is None:
            self.server = await asyncio.start_server(self.serve, "127.0.0.1", 0)
        host, number = self.server.sockets[0].getsockname()
        return host, number

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with closing(writer), suppress(asyncio.IncompleteReadError):  # who asked may be gone
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\n\r\n")

    async def close(self) -> None:
        if self.server is not None:
            self.server.close()


async def test_a_volume_that_does_not_answer_keeps_its_own_sessions_only(
    node: Begin, monkeypatch: pytest.MonkeyPatch
) -> None:
    over = threading.Event()
    monkeypatch.setattr(runner, "MOUNT_PATIENCE", 0.05)
    monkeypatch.setattr(runner, "resolve_mounts", lambda *_: over.wait(20))
    here = node(MemoryEngine())
    try:
        stuck = structs.replace(SPEC, mounts=(Mount("nas", "home", "/home/work"),))
        every = [structs.replace(stuck, kernel_id=str(n)) for n in range(40)]
        here.apply(Wanted((*every, SPEC), ()))
        reports: dict[str, str] = {}
        async with asyncio.timeout(5):
            while len(reports) < 40:
                if (report := await here.reports.get()).status == "TERMINATED":
                    reports[report.kernel_id] = report.progress
            assert await asyncio.to_thread(lambda: True), "others have threads"
        assert set(reports.values()) == {"no answer of the node's volumes nas in time"}
        assert here.engine.states[IDENTITY].phase == "running"
    finally:
        over.set()
