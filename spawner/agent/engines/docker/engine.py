"""Kernels as containers of a Docker engine, through the ``docker`` package.

All sessions of a node share one bridge network whose members cannot reach each other
(``enable_icc=false``). The port of JupyterHub's server is published on one address of the host for the proxy;
the agent reaches all others at the container's own address.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import hashlib
import logging
import os
import signal
import threading
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from docker.errors import DockerException
from requests.exceptions import RequestException

from spawner.agent import entering
from spawner.agent.engines.base import (
    BoundMount,
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
from spawner.agent.engines.config_files import ConfigFiles
from spawner.agent.engines.docker import accounts, clusters, firewall, inside, traces
from spawner.agent.engines.docker.addresses import address_of
from spawner.agent.engines.docker.calls import Calls, Conflict, Missing
from spawner.agent.engines.docker.execs import DockerExec
from spawner.agent.engines.docker.images import Images
from spawner.agent.engines.docker.manifest import (
    GOING,
    HOME,
    LABEL,
    ROOT_LABEL,
    container_name,
    environment,
    host_options,
    identity_of,
    labels_of,
    phase_of,
    published,
    read_state,
)
from spawner.agent.engines.docker.measuring import ContainerCounters
from spawner.agent.engines.docker.networks import ensure_network
from spawner.agent.engines.docker.session_networks import SessionNetworks
from spawner.agent.logs import pack
from spawner.agent.protocol import ImagePull, ImageReport, KernelSpec, Network
from spawner.agent.substitution import Substitution

TAKEN_ALONG = (128 + signal.SIGTERM, 128 + signal.SIGKILL, 255)
"""Exit codes of containers that an engine ends with itself, or finds ended when it comes back."""
log = logging.getLogger(__name__)


class DockerEngine(Engine):
    """Settings of ``open``: ``state_dir``, ``publish_host``, ``app_ports``, ``uid``, ``gid``, ``read_only_root``.

    Containers carry a digest of ``state_dir``: several agents on one Docker engine leave each other's alone.
    """

    name = "docker"

    def __init__(self) -> None:
        self._calls = Calls()
        self._images = Images(self._calls)
        self._accounts = accounts.Accounts(self._calls)
        self._networks = SessionNetworks(self._calls)
        self._files = ConfigFiles(Path(), 0, 0)
        self._traces = traces.Traces(Path(os.devnull))
        self._profiles = Path()
        self._counters = ContainerCounters()
        self._gateway = ""
        self._prepared = True
        self._home = ""
        self._publish_host = "127.0.0.1"
        self._relays = ""
        self._shield: firewall.Rules = ()
        self._user = (1000, 1000)
        self._read_only_root = True

    async def open(self, config: Mapping[str, Any]) -> None:
        """Connect, make the network, check that it isolates."""
        folder = str(Path(str(config.get("state_dir") or "")).resolve())
        self._home = hashlib.sha256(folder.encode()).hexdigest()[:16]
        self._networks.home = self._home
        self._publish_host = str(config.get("publish_host") or "127.0.0.1")
        self._relays = str(config.get("app_ports") or "")
        root = os.geteuid() == 0
        uid = config.get("uid") or (1000 if root else os.geteuid())
        gid = config.get("gid") or (1000 if root else os.getegid())
        self._user = (int(uid), int(gid))
        self._files = ConfigFiles(Path(folder) / "config", *self._user)
        self._profiles = Path(folder) / "seccomp"
        self._read_only_root = bool(config.get("read_only_root", True))
        await self._calls.open()
        await self._prepare()
        await self._accounts.sweep(self._home)
        await asyncio.to_thread(os.makedirs, folder, mode=0o700, exist_ok=True)
        self._traces = traces.Traces(Path(folder) / "containers")
        known = self._traces.known
        present = await self.list()
        self._files.sweep([state.identity for state in present])
        await asyncio.to_thread(self._traces.look, known - {each.native_id for each in present})

    async def _prepare(self) -> None:
        """The sessions' network and the rules around it; harmless when they are there."""
        self._gateway = await self._calls.run(ensure_network, self._calls.client)
        bridges = (firewall.BRIDGES, await self._networks.way_out())
        rules = firewall.rules(self._publish_host, self._relays, bridges)
        why = await asyncio.to_thread(firewall.shield, rules)
        self._shield = () if why else rules
        if why is not None:
            log.warning("the firewall does not shield the sessions of this node: %s", why)

    async def close(self) -> None:
        """Close connections; containers go on."""
        self._images.pulls.close()
        await self._calls.close()

    async def session_address(self) -> str:
        """The gateway of the sessions' network."""
        return self._gateway

    async def images(self) -> tuple[ImageReport, ...]:
        """Images with our label, one name each: ``:latest`` where there is one."""
        return await self._images.list()

    async def ensure_image(self, name: str, pull: ImagePull | None = None) -> AsyncIterator[str]:
        """Pull ``name`` unless it is there; all who want it follow one pull."""
        async for sentence in self._images.ensure(name, pull or ImagePull()):
            yield sentence

    async def remove_image(self, name: str) -> None:
        """Remove the tag, and the image with its last one."""
        await self._images.remove(name)

    async def commit(self, identity: Identity, name: str, labels: Mapping[str, str]) -> ImageReport:
        """An image of the container's own file system: no folders, no environment of the session."""
        return await self._images.commit(container_name(identity), name, labels)

    async def create(
        self, spec: KernelSpec, limits: Limits, mounts: tuple[BoundMount, ...]
    ) -> EngineState:
        """Create the container; the one that is there already when this run was created before."""
        client = self._calls.client
        image = await self._images.config(spec.image)
        labels = image.get("Labels") or {}
        command = spec.command or self._images.own_command(spec.image, labels)
        port = spec.ports[0].container_port if spec.ports else 0
        tokens = Substitution("0.0.0.0", port, HOME, self._gateway)  # noqa: S104 - inside the container
        identity = Identity(spec.kernel_id, spec.session_id, spec.epoch)
        kept = await asyncio.to_thread(
            inside.host_options, spec, labels, limits, mounts, self._profiles
        )
        people = await self._accounts.files(spec.image, *self._user, kept["group_add"])
        files = (*entering.files(spec), *people)
        written = await asyncio.to_thread(self._files.write, identity, files)
        written += accounts.mounts(written, people)
        arguments = [tokens.text(item) for item in command]
        network = None if spec.cluster is None else spec.cluster.network
        if network is not None:
            arguments = clusters.beginning(spec, arguments)
            written += clusters.ssh_settings(written, files)
            if network.driver == "bridge":
                await self._networks.ensure(network, "")
        options = host_options(
            spec,
            limits,
            (*mounts, *written),
            publish_host=self._publish_host,
            read_only_root=self._read_only_root and labels.get(ROOT_LABEL) != "writable",
        )
        host_config = client.api.create_host_config(**{**options, **kept})
        call = functools.partial(
            client.api.create_container,
            image=spec.image,
            **inside.command_options(spec, image, arguments),
            name=container_name(identity),
            hostname=spec.hostname,
            user=":".join(map(str, self._user)),
            working_dir=HOME,
            environment=inside.environment(labels, environment(limits, spec, tokens)),
            labels={**labels_of(spec, identity), f"{LABEL}.home": self._home},
            ports=published(spec),
            host_config=host_config,
            networking_config=clusters.endpoint(spec),
        )
        try:
            answer = await self._calls.run(call)
        except Conflict:
            state = await self.inspect(identity)
            if state is None:
                raise EngineError(
                    "the container vanished while it was created", retriable=True
                ) from None
            return state
        except Missing as error:
            raise EngineError(f"there is no image {spec.image}") from error
        return EngineState(identity, "created", answer["Id"], (), spec.shares)

    async def start(self, identity: Identity) -> EngineState:
        """Start the container and read where its ports were published."""
        client = self._calls.client
        try:
            await self._calls.run(client.api.start, container_name(identity))
        except Missing as error:
            if "network" in str(error):
                told = "the network between the session's containers is not there yet"
                raise EngineError(told, retriable=True) from error
            raise EngineError("the container is gone before it was started") from error
        state = await self.inspect(identity)
        if state is None:
            raise EngineError("the container vanished while it was started")
        return state

    async def stop(self, identity: Identity, grace: float) -> None:
        """SIGTERM, then SIGKILL; a container that is gone is stopped."""
        with contextlib.suppress(Missing):
            await self._calls.stop(container_name(identity), max(0, round(grace)))

    async def remove(self, identity: Identity) -> None:
        """Remove the container with its anonymous volumes."""
        remove = self._calls.client.api.remove_container
        with contextlib.suppress(Missing, Conflict):  # gone, or its removal is under way
            await self._calls.run(remove, container_name(identity), v=True, force=True)
        await asyncio.to_thread(self._files.remove, identity)

    async def list(self) -> tuple[EngineState, ...]:
        """All containers with our labels, in any phase, but those that are being removed."""
        inspect = self._calls.client.api.inspect_container
        states = []
        for entry in await self._containers():
            with contextlib.suppress(Missing):
                facts = await self._calls.run(inspect, entry["Id"])
                if facts["State"]["Status"] not in GOING:
                    states.append(self._read(facts))
        return tuple(states)

    async def phases(self) -> Mapping[Identity, str]:
        """One call for all containers, however many there are."""
        known = self._traces.known
        entries = await self._containers()
        gone = known - {entry["Id"] for entry in entries}
        if len(gone) > traces.MANY:
            await asyncio.to_thread(self._traces.look, gone)
        return {identity_of(entry["Labels"]): phase_of(entry["State"]) for entry in entries}

    async def inspect(self, identity: Identity) -> EngineState | None:
        """State of the container of this run; None as well while somebody removes it."""
        client = self._calls.client
        try:
            facts = await self._calls.run(client.api.inspect_container, container_name(identity))
        except Missing:
            return None
        if facts["State"]["Status"] in GOING:
            return None
        state = self._read(facts)
        if state.exit_code in TAKEN_ALONG and not (state.oom_killed or state.engine_died):
            await self._calls.ping()  # if it ends just now, it says more when it is back
        return state

    async def logs(self, identity: Identity, tail: int) -> str:
        """Last lines of stdout and stderr."""
        logs: Callable[..., bytes] = self._calls.client.api.logs
        try:
            raw = await self._calls.run(logs, container_name(identity), tail=tail)
        except Missing:
            return ""
        return raw.decode("utf-8", "replace")

    async def output(self, identity: Identity) -> bytes:
        """Beginning and end of all that the container printed, read piece by piece."""
        client = self._calls.client

        def read() -> bytes:
            return pack(client.api.logs(container_name(identity), stream=True, follow=False))

        try:
            kept: bytes = await self._calls.run(read)
        except Missing:
            return b""
        return kept

    async def events(self) -> AsyncIterator[EngineEvent]:
        """Deaths and removals of our containers; ends when the engine closes the stream."""
        events: Callable[..., Any] = self._calls.client.api.events
        filters = {"type": "container", "event": ["die", "destroy"], "label": self._ours()}
        stream = await self._calls.run(events, decode=True, filters=filters)
        loop = asyncio.get_running_loop()
        queue: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()

        def read() -> None:
            # The engine going away ends the stream, maybe within a word (a RuntimeError); the agent opens another.
            broken = (DockerException, RequestException, OSError, AttributeError, RuntimeError)
            with contextlib.suppress(*broken):
                for event in stream:
                    loop.call_soon_threadsafe(queue.put_nowait, event)
            with contextlib.suppress(RuntimeError):  # the loop may be closed by now
                loop.call_soon_threadsafe(queue.put_nowait, None)

        threading.Thread(target=read, name="docker-events", daemon=True).start()
        try:
            while (event := await queue.get()) is not None:
                labels = event["Actor"]["Attributes"]
                what = "removed" if event["Action"] == "destroy" else "exited"
                yield EngineEvent(identity_of(labels), what)
            self._calls.outages.failed()  # an engine that only restarts is not missed otherwise
        finally:
            with contextlib.suppress(OSError):  # the connection is gone already
                stream.close()

    async def features(self) -> Mapping[str, Any]:
        """Clusters, and this node's place in a swarm."""
        return await self._networks.features()

    async def keep_networks(self, networks: tuple[Network, ...], deployment: str) -> bool:
        """Bridges of this agent's sessions, overlays of the deployment's."""
        return await self._networks.keep(networks, deployment)

    async def ping(self) -> None:
        """Over a connection of its own, however busy the others are; an engine that is back is prepared again."""
        try:
            await self._calls.ping()
        except EngineError:
            self._prepared = False
            raise
        if not self._prepared:
            await self._prepare()
            self._prepared = True

    async def networks(self, deployment: str) -> tuple[str, ...]:
        """As ``keep_networks`` sees them."""
        return await self._networks.names(deployment)

    async def leftovers(self) -> tuple[str, ...]:
        """What is left of containers that are gone, and running ones whose control group allows other than asked."""
        known = self._traces.known
        present = await self.list()
        found = self._files.abandoned([state.identity for state in present])
        told = [f"the folder {folder} belongs to no container" for folder in found]
        told += [
            f"the container {each[:12]} is left of a look into an image"
            for each in await self._accounts.looking()
        ]
        gone = known - {state.native_id for state in present}
        told += await asyncio.to_thread(self._traces.look, gone)
        told += await self._network_leftovers()
        for state in present:
            memory = sum(share.amount for share in state.shares if share.slot == "mem")
            if state.phase == "running" and memory:
                wrong = await asyncio.to_thread(self._counters.unconfined, state.identity, memory)
                told += [] if wrong is None else [f"{state.identity.kernel_id}: {wrong}"]
        return tuple(told)

    async def _network_leftovers(self) -> tuple[str, ...]:
        api = self._calls.client.api
        addresses = {
            str(network["IPAddress"])
            for each in await self._calls.run(api.containers)
            for network in each["NetworkSettings"]["Networks"].values()
        }
        networks = await self._calls.run(api.networks)
        told = await asyncio.to_thread(traces.network_leftovers, networks, addresses)
        told += await asyncio.to_thread(firewall.missing, self._shield)
        return tuple(told)

    async def execute(
        self,
        identity: Identity,
        argv: Sequence[str],
        *,
        environ: Mapping[str, str] | None = None,
        terminal: bool = False,
    ) -> Exec:
        """Start a program in the container, with its user and environment."""
        program = DockerExec(self._calls, container_name(identity), terminal=terminal)
        await program.start(argv, environ or {})
        return program

    async def reach(self, identity: Identity, port: int) -> tuple[str, int]:
        """At the container's own address, to which this host has a route."""
        client = self._calls.client
        try:
            facts = await self._calls.run(client.api.inspect_container, container_name(identity))
        except Missing as error:
            raise EngineError("the session's container is gone") from error
        if not facts["State"]["Running"]:
            raise EngineError("the session does not run")
        address = await asyncio.to_thread(address_of, facts)
        if address is None:
            raise EngineError("this node has no way to the session's container")
        return address, port

    async def tokens(self, identity: Identity, port: int) -> Substitution:
        """A container has all ports for itself."""
        return Substitution("0.0.0.0", port, HOME, self._gateway)  # noqa: S104 - inside the container

    async def measure(self) -> Mapping[Identity, Measured]:
        """From control groups and network namespaces; the engine is not asked."""
        return await asyncio.to_thread(self._counters.read)

    async def processes(self, identity: Identity) -> tuple[Process, ...]:
        """From its control group."""
        return await asyncio.to_thread(self._counters.processes, identity)

    async def owners(self, pids: Collection[int]) -> Mapping[int, Identity]:
        """By their control groups."""
        return await asyncio.to_thread(self._counters.owners, pids)

    def _ours(self) -> Sequence[str]:
        """Labels that all containers of this agent carry, and no others."""
        return [f"{LABEL}.kernel", f"{LABEL}.home={self._home}"]

    async def _containers(self) -> Sequence[Mapping[str, Any]]:
        """All containers of this agent, as a list of the engine shows them."""
        list_them = self._calls.client.api.containers
        found: Sequence[Mapping[str, Any]] = await self._calls.run(
            list_them, all=True, filters={"label": self._ours()}
        )
        return found

    def _read(self, facts: Mapping[str, Any]) -> EngineState:
        self._traces.note(facts)
        state = read_state(facts, self._publish_host)
        pid = int(facts["State"].get("Pid") or 0) if state.phase == "running" else 0
        self._counters.note(state.identity, state.native_id, pid)
        ended = state.ended_at
        if state.exit_code in TAKEN_ALONG and ended and self._calls.outages.cover(ended):
            return replace(state, engine_died=True)
        return state
