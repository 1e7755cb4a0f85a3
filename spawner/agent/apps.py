"""Apps of kernels: started when somebody opens them first, each behind a relay that lets only the manager in.

An app is a program of the kernel that listens on a port in it. Whether it runs is asked of that port, so
nothing has to be remembered when the agent is started again: who opens an app then gets a new relay to
the same program. What an app is comes with the call, from the manager, which has it from the image's labels.

Calls of the manager: ``start_app`` ``{"kernel_id", "app": App}`` -> ``{"host", "port", "token", "protocol"}``,
``stop_app`` ``{"kernel_id", "name"}``, ``list_apps`` ``{"kernel_id"}`` -> ``[{"name", "port", "connections"}]``.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import secrets
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakValueDictionary

import msgspec

from spawner.agent import preamble
from spawner.agent.calls import Calls
from spawner.agent.engines.base import Engine, EngineError, Exec, Identity
from spawner.agent.ports import PoolExhausted, PortPool
from spawner.agent.programs import PROTOCOL as PROGRAMS
from spawner.agent.programs import Programs
from spawner.agent.protocol import App, KernelReport
from spawner.agent.relay import CHUNK, Relay, pipe
from spawner.agent.terminals import Terminals

START_TIMEOUT = 60.0
PROBE_PAUSES = (0.05, 0.5)
"""Seconds between probes of a starting app: at first, and at most."""
CONNECT_TIMEOUT = 5.0
BIND_ATTEMPTS = 20
MARK = "PERIJOVE_APP"
PTY = "pty"
STOPPING = -1
ENDING = ("TERMINATING", "TERMINATED")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_LOG = (
    'dir=${JUPYTER_RUNTIME_DIR:-/tmp}; [ -w "$dir" ] || dir=/tmp; log="$dir/perijove-app-$1.log"; '
)
_LAUNCH = f'{_LOG}shift; umask 077; : >"$log"; umask 022; exec "$@" >"$log" 2>&1 </dev/null'
_TAIL = f'{_LOG}tail -n 8 "$log"'
_END = r"""
marked() {
    for each in /proc/[0-9]*; do
        tr '\0' '\n' 2>/dev/null <"$each/environ" | grep -qxF "$1" && echo "${each#/proc/}"
    done
}
for signal in TERM TERM TERM TERM TERM KILL; do
    found=$(marked "$1" 2>/dev/null)
    [ -n "$found" ] || exit 0
    kill "-$signal" $found 2>/dev/null
    sleep 0.5
done
"""
"""Ends all processes that carry a mark in their environment, as an app's descendants do."""
Key = tuple[str, str, int]
"""Kernel id, name and port of an app."""
log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Opened:
    """An app of one run of a kernel with its relay."""

    identity: Identity
    app: App
    relay: Relay
    port: int


@dataclass(slots=True)
class Apps:
    """All apps of this node."""

    engine: Engine
    calls: Calls
    address: str
    pool: PortPool
    start_timeout: float = START_TIMEOUT
    _opened: dict[Key, _Opened] = field(default_factory=dict)
    _locks: WeakValueDictionary[Key, asyncio.Lock] = field(default_factory=WeakValueDictionary)
    _closing: set[asyncio.Task[None]] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.calls.offer("start_app", self._start_app)
        self.calls.offer("stop_app", self._stop_app)
        self.calls.offer("list_apps", self._list_apps)

    def noticed(self, report: KernelReport) -> None:
        """A kernel changed: relays of one that ended are closed."""
        if report.status not in ENDING:
            return
        for key, opened in list(self._opened.items()):
            if key[0] == report.kernel_id and opened.identity.epoch <= report.epoch:
                task = asyncio.create_task(self._close(key))
                self._closing.add(task)
                task.add_done_callback(self._closing.discard)

    def kernels(self) -> frozenset[str]:
        """Ids of the kernels that have an open app."""
        return frozenset(kernel_id for kernel_id, _, _ in self._opened)

    def seen(self) -> Mapping[str, int]:
        """By kernel, connections to its apps that were open at some time since this was asked last."""
        found: Counter[str] = Counter()
        for (kernel_id, _, _), opened in self._opened.items():
            found[kernel_id] += opened.relay.seen()
        return found

    async def close(self) -> None:
        """Close all relays; the programs behind them go on."""
        await asyncio.gather(*(self._close(key) for key in list(self._opened)), *self._closing)

    async def _start_app(self, params: Mapping[str, Any]) -> dict[str, Any]:
        identity = self.calls.running(params)
        try:
            app = msgspec.convert(params.get("app"), App)
        except msgspec.ValidationError as error:
            raise ValueError(f"app: {error}") from error
        if not _NAME.fullmatch(app.name):
            raise ValueError(f"app.name is {app.name!r}: letters, digits, '_', '-' and '.'")
        self._check_alive(identity)
        async with self._lock(identity.kernel_id, app.name, STOPPING):
            pass  # what is being ended is no app any more
        key = (identity.kernel_id, app.name, app.port)
        async with self._lock(*key):
            if app.protocol not in (PTY, PROGRAMS):
                await self._ensure(identity, app)
            opened = self._opened.get(key)
            if opened is not None and opened.identity != identity:
                await self._close(key)
                opened = None
            if opened is None:
                opened = self._opened[key] = await self._open(identity, app)
                try:
                    self._check_alive(identity)
                except EngineError:  # nobody else would close its relay
                    await self._close(key)
                    raise
        return {
            "host": self.address,
            "port": opened.port,
            "token": opened.relay.token,
            "protocol": app.protocol,
        }

    def _check_alive(self, identity: Identity) -> None:
        """Raise ``EngineError`` if a run is ending, or gone."""
        run = identity.kernel_id, identity.epoch
        for each in self.calls.kernels.reports():
            if (each.kernel_id, each.epoch) == run and each.status not in ENDING:
                return
        raise EngineError("the session has ended")

    async def _stop_app(self, params: Mapping[str, Any]) -> None:
        identity = self.calls.running(params)
        name = str(params.get("name"))
        async with self._lock(identity.kernel_id, name, STOPPING):
            for key in [each for each in self._opened if each[:2] == (identity.kernel_id, name)]:
                async with self._lock(*key):
                    await self._close(key)
            argv = ("sh", "-c", _END, "sh", f"{MARK}={_mark(identity, name)}")
            await _output(await self.engine.execute(identity, argv))

    def _lock(self, *key: *Key) -> asyncio.Lock:
        """Held by who opens an app, or (port ``STOPPING``) ends it."""
        return self._locks.setdefault(key, asyncio.Lock())

    async def _list_apps(self, params: Mapping[str, Any]) -> list[dict[str, Any]]:
        kernel_id = self.calls.running(params).kernel_id
        return [
            {"name": name, "port": opened.port, "connections": opened.relay.connections}
            for (owner, name, _), opened in list(self._opened.items())
            if owner == kernel_id
        ]

    async def _open(self, identity: Identity, app: App) -> _Opened:
        """A relay on a port of the pool. Raises ``EngineError``."""
        target = {
            PTY: Terminals(self.engine, identity),
            PROGRAMS: Programs(self.engine, identity),
        }.get(app.protocol, _Target(self.engine, identity, app.port))
        relay = Relay(secrets.token_urlsafe(32), target.serve)
        for _ in range(BIND_ATTEMPTS):
            try:
                port = self.pool.take()
            except PoolExhausted as error:
                raise EngineError(str(error), retriable=True) from error
            try:
                await relay.open(self.address, port)
            except BaseException as error:
                self.pool.give_back(port)  # where it comes last
                if not isinstance(error, OSError):
                    raise
                log.warning("port %d cannot be used for an app: %s", port, error)
                continue
            return _Opened(identity, app, relay, port)
        raise EngineError("no port of this node's app_ports can be listened on")

    async def _close(self, key: Key) -> None:
        opened = self._opened.pop(key, None)
        if opened is not None:
            try:
                await opened.relay.close()
            finally:
                self.pool.give_back(opened.port)

    async def _ensure(self, identity: Identity, app: App) -> None:
        """Make the app's port answer. Raises ``EngineError`` with the end of what it printed."""
        if not app.argv:
            if not await _answers(*await self.engine.reach(identity, app.port)):
                raise EngineError(f"nothing listens on port {app.port} of the session yet")
            return
        # Before the port is asked: where kernels share ports, this is what chooses one of their own.
        tokens = await self.engine.tokens(identity, app.port)
        if await _answers(*await self.engine.reach(identity, app.port)):
            return
        log.info("starting %s in kernel %s", app.name, identity.kernel_id)
        environ = {**tokens.environ(app.environ), MARK: _mark(identity, app.name)}
        words = [tokens.text(word) for word in app.argv]
        argv = ("sh", "-c", _LAUNCH, "sh", app.name, *words)
        program = await self.engine.execute(identity, argv, environ=environ)
        try:
            await self._until_it_answers(identity, app, program)
        finally:
            await program.close()

    async def _until_it_answers(self, identity: Identity, app: App, program: Exec) -> None:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self.start_timeout
        pause, most = PROBE_PAUSES
        while not await _answers(*await self.engine.reach(identity, app.port)):
            code = await program.exit_code()
            late = loop.time() > deadline
            if late or code not in (None, 0):
                tail = await self._tail(identity, app)
                why = (
                    f"did not answer within {self.start_timeout:.0f} s"
                    if late
                    else f"ended with status {code}"
                )
                raise EngineError(f"{app.name} {why}" + (f": {tail}" if tail else ""))
            await asyncio.sleep(pause)
            pause = min(most, pause * 1.5)

    async def _tail(self, identity: Identity, app: App) -> str:
        """The last lines that an app printed."""
        with contextlib.suppress(EngineError):
            program = await self.engine.execute(identity, ("sh", "-c", _TAIL, "sh", app.name))
            text = await _output(program)
            return text.decode("utf-8", "replace").strip()[-1000:]
        return ""


@dataclass(frozen=True, slots=True)
class _Target:
    """Where a relay's connections go: found anew for each, since addresses of containers are used again."""

    engine: Engine
    identity: Identity
    port: int

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Carry bytes between a connection and the app."""
        try:
            host, port = await self.engine.reach(self.identity, self.port)
            async with asyncio.timeout(CONNECT_TIMEOUT):
                theirs, ours = await asyncio.open_connection(host, port, limit=CHUNK)
        except (EngineError, OSError) as error:
            writer.write(preamble.refusal(f"the app does not answer: {error}"))
            return
        try:
            writer.write(b"ok\n")
            await pipe((reader, writer), (theirs, ours))
            await _hang_up(ours)
        finally:
            ours.transport.abort()  # who is cut off does not wait for an app that does not read


def _mark(identity: Identity, name: str) -> str:
    return f"{identity.kernel_id}-{identity.epoch}/{name}"


async def _answers(host: str, port: int) -> bool:
    try:
        async with asyncio.timeout(CONNECT_TIMEOUT):
            _, writer = await asyncio.open_connection(host, port)
    except OSError:
        return False
    await _hang_up(writer)
    return True


async def _hang_up(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()


async def _output(program: Exec) -> bytes:
    """What a short program prints, or the end of it."""
    data = b""
    try:
        async with asyncio.timeout(CONNECT_TIMEOUT):
            while more := await program.read():
                data = (data + more)[-CHUNK:]
    except TimeoutError:
        log.warning("a program of the agent in a kernel did not end in time")
    finally:
        await program.close()
    return data
