"""Kernels as processes of this host: for people who trust each other, on one machine, without Docker.

Each run has a process group and a scratch folder of its own and is found again after the agent died.
CPU, memory and process counts are limited by control groups where this user may make them; elsewhere
a run is kept to as many processors as it asked for, ``ulimit`` bounds each process's memory, and a watch
ends it when all together have too much memory or are too many. There is no isolation of files or ports.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import importlib.util
import json
import math
import os
import platform
import shutil
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from spawner.agent import entering
from spawner.agent.engines import counters, process_leftovers, process_table
from spawner.agent.engines.base import (
    BoundMount,
    Endpoint,
    Engine,
    EngineError,
    EngineEvent,
    EngineState,
    Exec,
    Identity,
    Limits,
    Measured,
    Process,
)
from spawner.agent.engines.cgroups import ControlGroups
from spawner.agent.engines.execs import ProcessExec
from spawner.agent.engines.host_ports import LOOPBACK, HostPorts
from spawner.agent.engines.process_measuring import RunCounters
from spawner.agent.engines.scratch import Run, Scratch
from spawner.agent.logs import pack
from spawner.agent.protocol import ImagePull, ImageReport, KernelSpec
from spawner.agent.substitution import Substitution

IMAGE = "process"
HOME_TARGET = "/home/work"
TICK = 1.0
"""Seconds between looks at memory and logs; ends of processes are noticed at once."""
PATIENCE = 10.0
"""Seconds that a first process has to begin, and processes to end by force: some wait for a disk."""
_KEPT_VARIABLES = ("PATH", "LANG", "LC_ALL", "TZ", "LD_LIBRARY_PATH", "SSL_CERT_FILE")
_JUPYTER: dict[str, dict[str, Any]] = {
    "ContentsManager": {"allow_hidden": True},
    "KernelManager": {"transport": "ipc"},
    "ServerApp": {"jpserver_extensions": {"jupyter_lsp": False, "notebook_shim": False}},
}
"""Settings of Jupyter servers: kernels talk over sockets, and what one person does not need stays off."""
_KERNEL = {
    "argv": [
        *(sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"),
        "--InteractiveShellApp.extra_extensions=perijove.programs",
    ],
    "display_name": "Python 3 (ipykernel)",
    "language": "python",
    "metadata": {"debugger": True},
}
"""The Python kernel of sessions: programs that are started with `!` may ask for input."""
_LAB = {"disabledExtensions": {"@jupyterlab/apputils-extension:announcements": True}}
"""Settings of JupyterLab's pages: the news would be asked of a server on the internet."""
_HINT = "use the docker engine for that"

_REPL = {
    "argv": ["python3", "-m", "perijove.execution", "{bind_host}", "{bind_port}"],
    "protocol": "internal",
    "port": 2000,
}
"""How code of programs is run in a session."""


class ProcessEngine(Engine):
    """Settings of ``open``: ``state_dir`` (scratch folders lie in its ``scratch/``)."""

    name = "process"

    def __init__(self) -> None:
        self._scratch = Path()
        self._jupyter = Path()
        self._groups: ControlGroups | None = None
        self._children: dict[str, int] = {}
        self._ports = HostPorts()
        self._changed = asyncio.Event()
        self._watched: dict[str, int] = {}
        self._counters = RunCounters()

    async def open(self, config: Mapping[str, Any]) -> None:
        """Make the scratch folder, see whether control groups may be used."""
        if not Path("/proc/self/environ").exists():
            raise EngineError("the process engine needs Linux with /proc")
        self._scratch = Path(str(config["state_dir"])).absolute() / "scratch"
        self._scratch.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._jupyter = self._scratch.with_name("jupyter")
        self._jupyter.mkdir(exist_ok=True, mode=0o755)
        _configure_jupyter(self._jupyter)
        home = hashlib.sha256(str(self._scratch.resolve()).encode()).hexdigest()[:16]
        groups = await asyncio.to_thread(ControlGroups, home)
        self._groups = groups if groups.usable else None
        await asyncio.to_thread(process_leftovers.sweep, self._scratch, self._groups)

    async def close(self) -> None:
        """Stop watching; processes go on."""
        loop = asyncio.get_running_loop()
        for descriptor in self._watched.values():
            loop.remove_reader(descriptor)
            os.close(descriptor)
        self._watched.clear()

    async def session_address(self) -> str:
        """Sessions share the host's loopback."""
        return LOOPBACK

    async def images(self) -> tuple[ImageReport, ...]:
        """One: the Python environment of this agent."""
        labels = {
            "ai.perijove.image": "jupyterlab",
            "ai.perijove.label": f"This machine's Python {platform.python_version()}",
            "ai.backend.service-ports": "jupyterlab:http:8888",
            "ai.perijove.app.repl": json.dumps(_REPL),
        }
        return (ImageReport(IMAGE, platform.machine(), None, 0, labels),)

    async def ensure_image(self, name: str, pull: ImagePull | None = None) -> AsyncIterator[str]:
        """Only the one image is there."""
        if name != IMAGE:
            raise EngineError(f"the process engine has no image {name!r}: {_HINT}")
        nothing: tuple[str, ...] = ()
        for sentence in nothing:
            yield sentence

    async def create(
        self, spec: KernelSpec, limits: Limits, mounts: tuple[BoundMount, ...]
    ) -> EngineState:
        """Write the run down; nothing starts yet."""
        identity = Identity(spec.kernel_id, spec.session_id, spec.epoch)
        scratch = self._of(identity)
        present = scratch.read()
        if present is not None:
            return self._state(scratch, present)
        if spec.seccomp not in (None, "default"):
            raise EngineError(f"the process engine has no seccomp profiles: {_HINT}")
        home = await asyncio.to_thread(_home, mounts)
        ports = self._ports.of(spec)
        try:
            run = await self._write(scratch, spec, limits, home, ports)
        except BaseException:
            self._ports.give_back(ports)
            raise
        return self._state(scratch, run)

    async def _write(
        self, scratch: Scratch, spec: KernelSpec, limits: Limits, home: str, ports: Sequence[int]
    ) -> Run:
        endpoints = tuple(
            Endpoint(port.name, port.protocol, port.container_port, LOOPBACK, number)
            for port, number in zip(spec.ports, ports, strict=True)
        )
        tokens = Substitution(LOOPBACK, endpoints[0].port if endpoints else 0, home, LOOPBACK)
        cgroups: tuple[str, ...] = ()
        if self._groups is not None:
            cgroups = await asyncio.to_thread(self._groups.create, scratch.mark, limits)
        environ = {name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ}
        environ["PATH"] = f"{Path(sys.executable).parent}:{environ.get('PATH', os.defpath)}"
        environ |= {"HOME": home, "SHELL": "/bin/bash"}
        environ |= {"JUPYTER_PREFER_ENV_PATH": "1", "JUPYTER_CONFIG_PATH": str(self._jupyter)}
        environ["JUPYTER_PATH"] = str(self._jupyter)
        environ["JUPYTER_RUNTIME_DIR"] = str(process_leftovers.sockets(scratch.mark))
        environ |= {**tokens.environ(limits.environ), **limits.host_environ}
        environ |= {**tokens.environ(spec.environ), **limits.enforced}
        run = Run(
            kernel_id=spec.kernel_id,
            session_id=spec.session_id,
            epoch=spec.epoch,
            argv=tuple(tokens.text(item) for item in spec.command or _own_command()),
            environ=environ,
            cwd=home,
            endpoints=endpoints,
            shares=spec.shares,
            memory_bytes=limits.memory_bytes,
            cgroups=cgroups,
            cpus=() if cgroups else self._processors(limits.cpu_quota),
            pids=None if cgroups else limits.pids,
            before=entering.words(spec, str(scratch.config)),
        )
        process_leftovers.make_sockets(scratch)
        await asyncio.to_thread(scratch.write, run, entering.files(spec))
        return run

    async def start(self, identity: Identity) -> EngineState:
        """Start the run's first process unless it started before."""
        scratch, run = self._known(identity)
        if self._state(scratch, run).phase == "created" and not await self._begun(scratch):
            if shutil.which(run.argv[0], path=run.environ.get("PATH")) is None:
                raise EngineError(f"the command {run.argv[0]!r} is not installed on this node")
            try:
                self._children[scratch.mark] = await asyncio.to_thread(
                    scratch.launch, run, limit_data=self._groups is None
                )
            except OSError as error:
                raise EngineError(f"the session cannot be started: {error}") from error
            if not await self._begun(scratch):
                raise EngineError(f"the session cannot be started: {scratch.tail(5)}")
        self._watch(scratch)
        return self._state(scratch, run)

    async def _begun(self, scratch: Scratch) -> bool:
        """Whether the run's first process wrote itself down; waits while it is about to.

        It may have been started by an agent that died since. Raises ``EngineError``.
        """
        loop, mark = asyncio.get_running_loop(), scratch.mark
        deadline = loop.time() + PATIENCE
        while scratch.process() is None:
            if mark in self._children:
                lives = not self._reap(mark)
            else:
                lives = bool(await asyncio.to_thread(process_table.marked, mark))
            if not lives:
                return scratch.process() is not None
            if loop.time() > deadline:
                raise EngineError("the session's first process hangs", retriable=True)
            await asyncio.sleep(0.01)
        return True

    async def stop(self, identity: Identity, grace: float) -> None:
        """SIGTERM to everything of the run, SIGKILL to what is left after ``grace`` seconds."""
        mark, loop = self._of(identity).mark, asyncio.get_running_loop()
        deadline = None if grace > 0 else loop.time()
        while pids := await asyncio.to_thread(_pids, mark, self._groups):
            if deadline is None:
                process_table.send(pids, signal.SIGTERM)
                deadline = loop.time() + grace
            elif loop.time() >= deadline:
                process_table.send(pids, signal.SIGKILL)
            if loop.time() >= deadline + PATIENCE:
                told = f"processes of the session do not end: {', '.join(map(str, pids))}"
                raise EngineError(told, retriable=True)
            self._reap(mark)
            await asyncio.sleep(0.05)
        self._reap(mark)

    async def remove(self, identity: Identity) -> None:
        """End what is left of the run and remove its folder and control groups."""
        scratch = self._of(identity)
        await self.stop(identity, grace=0)
        self._unwatch(scratch.mark)
        run, ports = scratch.read(), scratch.ports().values()
        if self._groups is not None:
            await asyncio.to_thread(self._groups.remove, scratch.mark)
        await asyncio.to_thread(
            shutil.rmtree, process_leftovers.sockets(scratch.mark), ignore_errors=True
        )
        await asyncio.to_thread(scratch.delete)
        if run is not None:  # now only: ``list`` keeps the ports of what is there
            self._ports.give_back([*(endpoint.port for endpoint in run.endpoints), *ports])

    async def list(self) -> tuple[EngineState, ...]:
        """All runs that were created."""
        states = []
        for scratch in process_leftovers.runs(self._scratch):
            run = scratch.read()
            if run is None:
                continue  # removed while we looked
            self._ports.keep(endpoint.port for endpoint in run.endpoints)
            self._ports.keep(scratch.ports().values())
            state = self._state(scratch, run)
            if state.phase == "running":
                self._watch(scratch)
            states.append(state)
        return tuple(states)

    async def inspect(self, identity: Identity) -> EngineState | None:
        """State of one run."""
        scratch = self._of(identity)
        run = scratch.read()
        return None if run is None else self._state(scratch, run)

    async def logs(self, identity: Identity, tail: int) -> str:
        """Last lines of its output."""
        return await asyncio.to_thread(self._of(identity).tail, tail)

    async def output(self, identity: Identity) -> bytes:
        """Beginning and end of the file that it wrote to."""

        def read() -> bytes:
            try:
                with self._of(identity).log.open("rb") as file:
                    return pack(iter(lambda: file.read(65536), b""))
            except FileNotFoundError:
                return b""

        return await asyncio.to_thread(read)

    async def leftovers(self) -> tuple[str, ...]:
        """What there is of no run, and running ones whose control group allows other than they asked for."""
        told = await asyncio.to_thread(process_leftovers.abandoned, self._scratch, self._groups)
        for state in await self.list():
            place = None if self._groups is None else self._groups.place(state.native_id)
            memory = sum(share.amount for share in state.shares if share.slot == "mem")
            if state.phase == "running" and memory and place is not None:
                wrong = counters.wrong_limit(place, memory)
                told += [] if wrong is None else [f"{state.identity.kernel_id}: {wrong}"]
        return tuple(told)

    async def events(self) -> AsyncIterator[EngineEvent]:
        """Ends of runs as they happen, and runs that vanish; looks after memory and logs meanwhile."""
        alive: dict[str, Identity] = {}
        while True:
            now = {state.native_id: state for state in await self.list()}
            for mark, identity in list(alive.items()):
                if mark not in now or now[mark].phase == "exited":
                    del alive[mark]
                    yield EngineEvent(identity, "exited" if mark in now else "removed")
            alive |= {m: s.identity for m, s in now.items() if s.phase == "running"}
            for mark in alive:
                await asyncio.to_thread(self._look_after, Scratch(self._scratch / mark))
            self._changed.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(TICK):
                    await self._changed.wait()

    async def execute(
        self,
        identity: Identity,
        argv: Sequence[str],
        *,
        environ: Mapping[str, str] | None = None,
        terminal: bool = False,
    ) -> Exec:
        """Start a program with the environment and the limits of the run."""
        scratch, run = self._running(identity)
        program = ProcessExec(run, scratch.mark, terminal=terminal)
        program.start(argv, environ or {})
        return program

    async def reach(self, identity: Identity, port: int) -> tuple[str, int]:
        """On the host's loopback: at the port of the run's own choice, or at that very port."""
        scratch, run = self._running(identity)
        given = {endpoint.container_port: endpoint.port for endpoint in run.endpoints}
        return LOOPBACK, (given | scratch.ports()).get(port, port)

    async def tokens(self, identity: Identity, port: int) -> Substitution:
        """All sessions share the host's ports: a free one is chosen, once for each run."""
        scratch, run = self._running(identity)
        ports = scratch.ports()
        if port not in ports:
            ports[port] = self._ports.free()
            scratch.write_ports(ports)
        return Substitution(LOOPBACK, ports[port], run.cwd, LOOPBACK)

    def _running(self, identity: Identity) -> tuple[Scratch, Run]:
        scratch = self._of(identity)
        run = scratch.read()
        if run is None or self._state(scratch, run).phase != "running":
            raise EngineError("the session does not run")
        return scratch, run

    async def measure(self) -> Mapping[Identity, Measured]:
        """From control groups where runs have them, else from their processes."""
        running = [state for state in await self.list() if state.phase == "running"]
        marks = [state.native_id for state in running]
        sizes = {mark: Scratch(self._scratch / mark).size() for mark in marks}
        return await asyncio.to_thread(self._counters.read, running, self._groups, sizes)

    async def processes(self, identity: Identity) -> tuple[Process, ...]:
        """By the mark in their environment, or their control group."""
        pids = await asyncio.to_thread(_pids, self._of(identity).mark, self._groups)
        return await asyncio.to_thread(process_table.describe, pids)

    async def owners(self, pids: Collection[int]) -> Mapping[int, Identity]:
        """By the mark in their environment."""
        marks = await asyncio.to_thread(process_table.by_mark, pids)
        states = {state.native_id: state.identity for state in await self.list()}
        return {pid: states[mark] for mark in marks.keys() & states for pid in marks[mark]}

    def _look_after(self, scratch: Scratch) -> None:
        """Bound the log; without control groups, end a run that uses more than it asked for."""
        scratch.bound_log()
        run = scratch.read()
        if self._groups is not None or run is None:
            return
        pids = process_table.marked(scratch.mark)
        if run.pids is not None and len(pids) > run.pids:
            scratch.note(f"ended: it had more than {run.pids} processes")
            process_table.send(pids, signal.SIGKILL)
        elif run.memory_bytes is not None and process_table.resident_bytes(pids) > run.memory_bytes:
            scratch.note_out_of_memory()
            process_table.send(pids, signal.SIGKILL)

    def _processors(self, quota: float | None) -> tuple[int, ...]:
        """As many whole processors as ``quota`` needs, those that the fewest runs are kept to."""
        usable = os.sched_getaffinity(0)
        if quota is None or (count := max(1, math.ceil(quota))) >= len(usable):
            return ()
        runs = [each.read() for each in process_leftovers.runs(self._scratch)]
        taken = Counter(cpu for run in runs if run is not None for cpu in run.cpus)
        return tuple(sorted(sorted(usable, key=lambda cpu: (taken[cpu], cpu))[:count]))

    def _of(self, identity: Identity) -> Scratch:
        return Scratch(self._scratch / f"{identity.kernel_id}-{identity.epoch}")

    def _known(self, identity: Identity) -> tuple[Scratch, Run]:
        scratch = self._of(identity)
        run = scratch.read()
        if run is None:
            raise EngineError("the session's scratch folder is gone before it was started")
        return scratch, run

    def _state(self, scratch: Scratch, run: Run) -> EngineState:
        self._reap(scratch.mark)
        groups = self._groups
        return scratch.state(
            run, oom_killed=groups is not None and groups.out_of_memory(scratch.mark)
        )

    def _watch(self, scratch: Scratch) -> None:
        """Wake ``events`` when the run's first process ends, whoever its parent is."""
        process = scratch.process()
        if process is None or scratch.mark in self._watched or not process.alive():
            return
        try:
            descriptor = os.pidfd_open(process.pid)
        except OSError:
            return
        self._watched[scratch.mark] = descriptor
        asyncio.get_running_loop().add_reader(descriptor, self._ended, scratch.mark)

    def _ended(self, mark: str) -> None:
        self._unwatch(mark)
        self._reap(mark)
        self._changed.set()

    def _unwatch(self, mark: str) -> None:
        descriptor = self._watched.pop(mark, None)
        if descriptor is not None:
            asyncio.get_running_loop().remove_reader(descriptor)
            os.close(descriptor)

    def _reap(self, mark: str) -> bool:
        """Bury our own child once it ended, and say whether it did; init buries an earlier agent's."""
        child = self._children.get(mark)
        if child is None:
            return False
        try:
            pid, _ = os.waitpid(child, os.WNOHANG)
        except ChildProcessError:
            pid = child
        if pid:
            del self._children[mark]
        return bool(pid)


def _configure_jupyter(folder: Path) -> None:
    """Write the settings that Jupyter servers of this machine read."""
    settings = {**_JUPYTER, "ServerApp": {**_JUPYTER["ServerApp"], "allow_root": os.geteuid() == 0}}
    (folder / "jupyter_server_config.json").write_text(json.dumps(settings))
    (folder / "labconfig").mkdir(exist_ok=True)
    (folder / "labconfig" / "page_config.json").write_text(json.dumps(_LAB))
    package = importlib.util.find_spec("ipykernel")
    if package is not None and package.origin is not None:
        kernel = folder / "kernels" / "python3"
        shutil.copytree(Path(package.origin).with_name("resources"), kernel, dirs_exist_ok=True)
        (kernel / "kernel.json").write_text(json.dumps(_KERNEL))


def _home(mounts: tuple[BoundMount, ...]) -> str:
    """The home folder; other folders appear in it as links. Raises where that cannot be right."""
    home = next((m.source for m in mounts if m.target == HOME_TARGET), None)
    if home is None:
        raise EngineError("the session has no home folder")
    for mount in mounts:
        if mount.target == HOME_TARGET:
            continue
        name = mount.target.removeprefix(f"{HOME_TARGET}/")
        if mount.read_only:
            raise EngineError(f"{mount.target} cannot be mounted read-only here: {_HINT}")
        if "/" in name:
            raise EngineError(f"nothing can be mounted at {mount.target} here: {_HINT}")
        link = Path(home) / name
        if not link.is_symlink() and link.exists():
            raise EngineError(f"{name!r} is already a file or folder in the home folder")
        link.unlink(missing_ok=True)
        link.symlink_to(mount.source)
    return home


def _own_command() -> tuple[str, ...]:
    """JupyterLab behind its own token, for sessions that no hub asked for."""
    options = ("--no-browser", "--ip={bind_host}", "--port={bind_port}")
    return (sys.executable, "-m", "jupyterlab", *options, "--ServerApp.root_dir={home}")


def _pids(mark: str, groups: ControlGroups | None) -> list[int]:
    """Processes of a run; sshd, for one, writes its title over its environment, and is known by its group only."""
    found = process_table.marked(mark)
    if groups is not None:
        found += process_table.living(groups.members(mark) - set(found))
    return found
