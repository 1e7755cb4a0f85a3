"""One kernel on this node: makes it run, watches it, ends it, and says what it sees.

A runner is a task that can be thrown away at any point (``kill -9``) and made anew from what the engine
still has: every step finds out by itself whether it was done before.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import os
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

from spawner.accelerators.registry import Accelerators, PluginError
from spawner.agent import health
from spawner.agent.admission import Refused
from spawner.agent.engines.base import (
    BoundMount,
    Endpoint,
    Engine,
    EngineError,
    EngineState,
    Identity,
)
from spawner.agent.mounts import resolve_mounts
from spawner.agent.protocol import REFUSED, KernelReport, KernelSpec, Share

LOG_LINES = 50
TAIL_CHARACTERS = 16_384
PROBE_EVERY = (0.05, 0.25)
"""Seconds between probes of a starting port: at first, and at most."""
PROBE_PATIENCE = 5.0
LOOK_EVERY = 2.0
"""Seconds after which a starting kernel is looked at without a hint that something happened to it."""
AT_ONCE = min(8, 2 * (os.cpu_count() or 2))
"""Containers that are created at a time. More would not be there sooner, but the first ones later."""
MOUNT_PATIENCE = 30.0
"""Seconds that volumes have to tell where folders are."""
RETRIES = 5
RETRY_PAUSE = 0.5
"""Seconds before the first repetition; twice as many before each further one."""
CLOSING_PATIENCE = 2.0
"""Seconds that an agent which stops gives each call of the engine that is under way."""
T = TypeVar("T")
log = logging.getLogger(__name__)


async def _admit_all(identity: Identity, shares: tuple[Share, ...]) -> None:
    """Where nobody counts."""


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What every runner of an agent shares."""

    engine: Engine
    accelerators: Accelerators
    volumes: Mapping[str, str]
    address: str
    max_pids: int
    stop_grace: float
    changed: Callable[[KernelReport], None]
    """Called with each new report."""
    admit: Callable[[Identity, tuple[Share, ...]], Awaitable[None]] = _admit_all
    """Raises ``Refused`` for a placement that does not fit beside the other runs."""
    last_stat: Callable[[Identity], dict[str, Any]] = lambda identity: {}
    """What was measured of a run last."""
    creating: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(AT_ONCE))
    mounting: ThreadPoolExecutor = field(
        default_factory=lambda: ThreadPoolExecutor(AT_ONCE, "mounting")
    )
    """Threads that a volume which does not answer may keep; nothing else of the agent needs them."""


class KernelRunner:
    """Drives one epoch of one kernel; ``report`` is what it last saw."""

    def __init__(
        self, around: Surroundings, identity: Identity, spec: KernelSpec | None = None
    ) -> None:
        self._around = around
        self.identity = identity
        self._spec = spec
        self._drained = asyncio.Event()
        self._look = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._phase: str | None = None
        self._prober: asyncio.Task[None] | None = None
        self._watched: EngineState | None = None
        self._fenced = False
        self._admitted = False
        self.report = KernelReport(
            identity.kernel_id, identity.session_id, identity.epoch, "PREPARING"
        )

    @property
    def ended(self) -> bool:
        """Whether the kernel has ended and said so."""
        return self.report.status == "TERMINATED"

    @property
    def held(self) -> tuple[Share, ...]:
        """What it holds of the node's devices."""
        if self.ended:
            return ()
        return self._spec.shares if self._admitted and self._spec else self.report.shares

    def start(self) -> None:
        """Begin, or go on from wherever an earlier agent (or a run that broke off) got to."""
        if self._spec is not None and not self._drained.is_set():
            self._begin(self._run())

    def adopt(self, state: EngineState, *, fenced: bool = False) -> None:
        """Take over what the engine has of a run that this process did not start.

        ``fenced``: an earlier process was about to end it because its lease was over.
        """
        self._say(
            "CREATING" if state.phase == "created" else "RUNNING",
            container_id=state.native_id,
            shares=state.shares,
            **self._reached(state),
        )
        self._phase, self._fenced = state.phase, fenced
        if state.phase != "created":
            self._begin(self._watch(state))
        if fenced:
            self.drain()

    def want(self, spec: KernelSpec) -> None:
        """The manager wants this run: go on with it if it waited for that word."""
        self._spec = spec
        self.start()
        self._probe()

    def fence(self) -> bool:
        """End the kernel because its lease is over: it may go on elsewhere. False: it ended before."""
        if self.ended or self._phase == "exited":
            return False
        self._fenced = True
        self.drain()
        return True

    def drain(self) -> None:
        """End the kernel, whatever it is doing."""
        self._drained.set()
        self._begin(self._end())

    def look(self) -> None:
        """Something may have happened to the kernel: ask the engine."""
        self._look.set()

    def compare(self, phase: str | None) -> None:
        """The engine says that the kernel is in this phase (None: gone): look closer if that is news."""
        if phase != self._phase:
            self._look.set()

    async def forget(self) -> None:
        """Remove what the engine still has of the ended kernel. Raises ``EngineError``."""
        await self._around.engine.remove(self.identity)

    async def close(self) -> None:
        """Stop watching; the kernel goes on."""
        self._stop_probing()
        if self._task is None:
            return
        self._task.cancel()
        await asyncio.wait([self._task], timeout=CLOSING_PATIENCE)
        self._task.cancel()  # now it does not wait for a frozen engine either
        await asyncio.wait([self._task])

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        """Let ``work`` be what this runner does, unless it does something or has nothing left to do."""
        if self.ended or (self._task is not None and not self._task.done()):
            work.close()
            return
        self._task = asyncio.create_task(work, name=f"kernel-{self.identity.kernel_id}")
        self._task.add_done_callback(self._broken)

    def _broken(self, task: asyncio.Task[None]) -> None:
        """Tell of a fault that no step foresaw; the next word of the manager begins anew."""
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("kernel %s: the agent failed", self.identity.kernel_id, exc_info=error)

    async def _run(self) -> None:
        """Start the kernel, then watch it; a drain interrupts the start wherever it is."""
        assert self._spec is not None  # noqa: S101 - start() made sure
        starting = asyncio.create_task(self._bring_up(self._spec))
        drained = asyncio.create_task(self._drained.wait())
        try:
            await asyncio.wait({starting, drained}, return_when=asyncio.FIRST_COMPLETED)
            if not starting.done():
                starting.cancel()
                await asyncio.wait([starting])
                if not starting.cancelled():
                    starting.exception()  # it is ended either way
                await self._end()
                return
            state = starting.result()
        except Refused as refusal:
            await self._fail(REFUSED, str(refusal))
            return
        except (EngineError, PluginError, OSError) as error:
            await self._fail("create-failed", str(error))
            return
        except Exception as error:
            log.error("kernel %s: the start failed", self.identity.kernel_id, exc_info=error)
            await self._fail("create-failed", f"the node failed: {type(error).__name__}")
            return
        finally:
            for task in (starting, drained):
                task.cancel()
        if state is not None:
            await self._watch(state)

    async def _bring_up(self, spec: KernelSpec) -> EngineState | None:
        """Image, mounts, container, start, first answer; None when it ended while starting."""
        around = self._around
        await around.admit(self.identity, spec.shares)
        self._admitted = True
        self._say("PREPARING", progress="preparing the image and the folders")
        await self._persist(lambda: self._have_image(spec))
        mounts = await self._mounts(spec)
        limits = around.accelerators.limits(spec.shares, spec.shm_bytes, around.max_pids)
        async with around.creating:
            self._say("CREATING", progress="creating the container")
            state = await self._persist(
                lambda: to_its_end(around.engine.create(spec, limits, mounts))
            )
            if state.phase == "created":
                state = await self._persist(lambda: to_its_end(around.engine.start(self.identity)))
        self._say(
            "CREATING",
            progress=f"starting {_application(spec)}",
            container_id=state.native_id,
            shares=state.shares,
        )
        self._phase = state.phase
        waits = spec.ports and spec.ports[0].protocol != "preopen"  # a user's program comes later
        if state.phase == "running" and waits and not await self._answers(spec, state):
            return None
        healthy = None if spec.health is None else True
        self._say("RUNNING", progress="running", healthy=healthy, **self._reached(state))
        return state

    async def _mounts(self, spec: KernelSpec) -> tuple[BoundMount, ...]:
        """Where its folders are. Raises ``EngineError``, also when a volume does not answer."""
        if not spec.mounts:
            return ()
        resolve = functools.partial(resolve_mounts, spec.mounts, self._around.volumes)
        try:
            async with asyncio.timeout(MOUNT_PATIENCE):
                return await asyncio.get_running_loop().run_in_executor(
                    self._around.mounting, resolve
                )
        except TimeoutError as error:
            names = ", ".join(sorted({mount.volume for mount in spec.mounts}))
            raise EngineError(f"no answer of the node's volumes {names} in time") from error

    async def _have_image(self, spec: KernelSpec) -> None:
        async for sentence in self._around.engine.ensure_image(spec.image, spec.pull):
            self._say("PREPARING", progress=sentence)

    async def _persist(self, step: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Repeat a step that the engine could not do just now, with growing pauses."""
        for attempt in range(RETRIES - 1):
            try:
                return await step()
            except EngineError as error:
                if not error.retriable:
                    raise
                log.warning("kernel %s: %s", self.identity.kernel_id, error)
            await asyncio.sleep(RETRY_PAUSE * 2**attempt)
        return await step()

    async def _answers(self, spec: KernelSpec, state: EngineState) -> bool:
        """Wait until the main port answers; False when the kernel ended instead, which is reported."""
        loop = asyncio.get_running_loop()
        looked = loop.time()
        deadline = looked + spec.start_timeout
        pause, most = PROBE_EVERY
        if spec.health is not None:
            most = max(most, min(1.0, spec.health.interval))
        endpoint = None
        while not await _serves(
            spec, endpoint := endpoint or await _main(self._around.engine, state, spec)
        ):
            if self._look.is_set() or loop.time() - looked >= LOOK_EVERY:
                self._look.clear()
                looked = loop.time()
                if await self._is_over():
                    return False
            if loop.time() > deadline:
                await self._fail(
                    "start-timeout",
                    f"{_application(spec)} did not answer within {spec.start_timeout:.0f} s",
                )
                return False
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._look.wait()
            pause = min(most, pause * 1.5)
        return True

    async def _is_over(self) -> bool:
        """Whether the starting kernel ended, which is reported; an engine that cannot say is asked again."""
        try:
            state = await self._around.engine.inspect(self.identity)
        except EngineError as error:
            log.warning("kernel %s: %s", self.identity.kernel_id, error)
            return False
        if state is None or state.phase == "exited":
            await self._ended(state)
            return True
        return False

    async def _watch(self, state: EngineState | None) -> None:
        """Wait until the kernel ends by itself or is drained."""
        self._watched = state
        self._probe()
        try:
            await self._watch_end(state)
        finally:
            self._stop_probing()

    async def _watch_end(self, state: EngineState | None) -> None:
        while state is not None and state.phase != "exited":
            looking = asyncio.create_task(self._look.wait())
            drained = asyncio.create_task(self._drained.wait())
            try:
                await asyncio.wait({looking, drained}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                looking.cancel()
                drained.cancel()
            if self._drained.is_set():
                await self._end()
                return
            self._look.clear()
            try:
                state = await self._around.engine.inspect(self.identity)
            except EngineError as error:
                log.warning("kernel %s: %s", self.identity.kernel_id, error)
            else:
                self._phase = None if state is None else state.phase
        await self._ended(state)

    async def _end(self) -> None:
        """Stop the kernel as asked and say so; repeated until the engine has done it."""
        state = await self._inspect_quietly()
        if state is not None and state.phase == "exited" and not self._fenced:
            await self._ended(state)  # by itself, before anybody asked
            return
        self._say("TERMINATING", progress="ending the session")
        pause = 0.5
        while True:
            try:
                await self._around.engine.stop(self.identity, self._around.stop_grace)
                break
            except EngineError as error:
                log.warning("kernel %s does not end: %s", self.identity.kernel_id, error)
                await asyncio.sleep(pause)
                pause = min(30.0, pause * 2)
        state = await self._inspect_quietly()
        self._say(
            "TERMINATED",
            progress="ended",
            exit_code=None if state is None else state.exit_code,
            failure="fenced" if self._fenced else None,
            log_tail=await self._tail(),
            log=await self._output(),
        )

    async def _ended(self, state: EngineState | None) -> None:
        """The kernel ended unasked."""
        if state is None:
            self._say("TERMINATED", failure="removed", progress="the container was removed")
            return
        # A main process that copes with the loss of a child for lack of memory has not failed.
        failure, sentence = (
            "exited",
            f"the session's main process ended with status {state.exit_code}",
        )
        if state.oom_killed and state.exit_code != 0:
            failure, sentence = "oom-killed", "the session used more memory than it asked for"
        elif state.engine_died:
            failure, sentence = "engine-restarted", "the node's container engine was restarted"
        self._say(
            "TERMINATED",
            failure="fenced" if self._fenced else failure,
            progress=sentence,
            exit_code=state.exit_code,
            ended_at=state.ended_at,
            log_tail=await self._tail(),
            log=await self._output(),
        )

    async def _fail(self, failure: str, sentence: str) -> None:
        """The start failed: nothing of it may stay, then say why."""
        log.warning("kernel %s: %s", self.identity.kernel_id, sentence)
        tail, output = await self._tail(), await self._output()
        with contextlib.suppress(EngineError):
            await self._around.engine.stop(self.identity, 0)
        self._say("TERMINATED", failure=failure, progress=sentence, log_tail=tail, log=output)

    async def _inspect_quietly(self) -> EngineState | None:
        try:
            return await self._around.engine.inspect(self.identity)
        except EngineError:
            return None

    async def _tail(self) -> str:
        try:
            text = await self._around.engine.logs(self.identity, LOG_LINES)
        except (EngineError, OSError) as error:
            return f"(the log cannot be read: {error})"
        return text[-TAIL_CHARACTERS:]

    async def _output(self) -> bytes:
        try:
            return await self._around.engine.output(self.identity)
        except (EngineError, OSError) as error:
            log.warning("kernel %s: its output is not kept: %s", self.identity.kernel_id, error)
            return b""

    def _probe(self) -> None:
        """Begin to check the health of a kernel that runs, once it is known how."""
        state, spec = self._watched, self._spec
        if self._prober is not None or state is None or spec is None or spec.health is None:
            return
        if state.phase == "running" and not self.ended:
            where = functools.partial(_main, self._around.engine, state, spec)
            patience = 0.0  # an earlier agent may not have seen it answer yet
            if self.report.healthy is None and state.started_at is not None:
                patience = state.started_at + spec.start_timeout - time.time()
            work = health.follow(where, spec.health, self._tell_health, patience)
            self._prober = asyncio.create_task(work, name=f"health-{self.identity.kernel_id}")

    def _stop_probing(self) -> None:
        self._watched = None
        if self._prober is not None:
            self._prober.cancel()
            self._prober = None

    def _tell_health(self, healthy: bool, sentence: str) -> None:
        if self.report.status == "RUNNING" and self.report.healthy is not healthy:
            self._say("RUNNING", healthy=healthy, progress=sentence)

    def _reached(self, state: EngineState) -> dict[str, object]:
        """How a running kernel is reached from the proxy."""
        main = state.endpoints[0] if state.endpoints else None
        host = self._around.address
        ports = tuple(
            {
                "name": endpoint.name,
                "protocol": endpoint.protocol,
                "container_port": endpoint.container_port,
                "host": host,
                "port": endpoint.port,
            }
            for endpoint in state.endpoints
        )
        url = None if main is None else f"http://{host}:{main.port}"
        return {"url": url, "ports": ports, "started_at": state.started_at}

    def _say(self, status: str, **facts: object) -> None:
        """Set and hand on a new report; facts that are not named stay as they were."""
        if status == "TERMINATED":
            facts.setdefault("last_stat", self._around.last_stat(self.identity))
        old = {name: getattr(self.report, name) for name in self.report.__struct_fields__}
        report = KernelReport(**{**old, "status": status, **facts})
        if report != self.report or status == "TERMINATED":
            self.report = report
            self._around.changed(report)


async def to_its_end(step: Coroutine[Any, Any, T]) -> T:
    """Await a step that cannot be taken back: a cancellation waits for its end, a second one does not.

    What such a step makes must be there before somebody cleans up after it.
    """
    task = asyncio.ensure_future(step)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        if not task.cancelled():
            task.exception()  # whoever cancelled does not want to know
        raise


async def _main(engine: Engine, state: EngineState, spec: KernelSpec) -> Endpoint | None:
    """Where the kernel's first port answers: as it is published, else at the kernel itself."""
    if state.endpoints:
        return state.endpoints[0]
    if not spec.ports:
        return None
    main = spec.ports[0]
    try:
        host, port = await engine.reach(state.identity, main.container_port)
    except EngineError as error:
        log.debug("kernel %s: %s", spec.kernel_id, error)
        return None
    return Endpoint(main.name, main.protocol, main.container_port, host, port)


def _application(spec: KernelSpec) -> str:
    """What starts, for people."""
    name = spec.ports[0].name if spec.ports else ""
    return {"jupyterlab": "JupyterLab", "": "the command"}.get(name, name)


async def _serves(spec: KernelSpec, endpoint: Endpoint | None) -> bool:
    """Whether a starting kernel does what it is there for."""
    if spec.health is not None:
        return await health.probe(endpoint, spec.health) is None
    return await _port_answers(endpoint)


async def _port_answers(endpoint: Endpoint | None) -> bool:
    """Whether something behind the port speaks (an HTTP port must answer a request)."""
    if endpoint is None:
        return False
    try:
        async with asyncio.timeout(PROBE_PATIENCE):
            if endpoint.protocol == "http":
                await health.status(endpoint, "/")
            else:
                _, writer = await asyncio.open_connection(endpoint.host, endpoint.port)
                writer.close()
    except (OSError, EOFError, ValueError):  # nobody listens, nobody answers, or not in time
        return False
    return True
