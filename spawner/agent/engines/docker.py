"""Kernels as containers of a Docker engine, through the ``docker`` package.

Calls block, so they run in a small thread pool of their own; a frozen engine can hold those threads
but never the agent's loop. All sessions of a node share one bridge network whose members cannot reach
each other (``enable_icc=false``); their ports are published on one address of the host for the proxy.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import functools
import hashlib
import json
import os
import threading
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import docker
from docker.errors import APIError, DockerException, ImageNotFound, NotFound
from requests.exceptions import RequestException

from spawner.agent.engines.base import (
    BoundMount,
    Endpoint,
    Engine,
    EngineError,
    EngineEvent,
    EngineState,
    Identity,
    Limits,
)
from spawner.agent.protocol import ImageReport, KernelSpec, Share
from spawner.agent.substitution import Substitution

T = TypeVar("T")

NETWORK = "perijove"
BRIDGE = "perijove0"
HOME = "/home/work"
LABEL = "ai.perijove"
IMAGE_LABEL = "ai.perijove.image"
COMMAND_LABEL = "ai.perijove.command"
RECIPE_LABEL = "ai.perijove.recipe"
CALL_TIMEOUT = 60
THREADS = 8
_NETFILTER = Path("/proc/sys/net/bridge/bridge-nf-call-iptables")


def ensure_network(client: docker.DockerClient | None = None) -> str:
    """Create the sessions' network unless it is there; the host's address in it. Blocks.

    Raises ``DockerException`` when the engine does not answer, ``EngineError`` when a network of this
    name would let sessions reach each other.
    """
    own = client is None
    client = client or docker.from_env(timeout=CALL_TIMEOUT)
    try:
        found = client.networks.list(names=[f"^{NETWORK}$"])
        if not found:
            with contextlib.suppress(APIError):  # somebody else may have been faster
                client.networks.create(
                    NETWORK,
                    driver="bridge",
                    check_duplicate=True,
                    labels={f"{LABEL}.network": "sessions"},
                    options={
                        "com.docker.network.bridge.enable_icc": "false",
                        "com.docker.network.bridge.name": BRIDGE,
                    },
                )
            found = client.networks.list(names=[f"^{NETWORK}$"])
        if not found:
            raise EngineError(f"the network {NETWORK!r} cannot be created")
        attributes = found[0].attrs
        _check_isolation(attributes)
        return str(attributes["IPAM"]["Config"][0]["Gateway"])
    finally:
        if own:
            client.close()


def _check_isolation(attributes: Mapping[str, Any]) -> None:
    """Raise ``EngineError`` unless members of the network cannot reach each other."""
    options = attributes.get("Options") or {}
    if options.get("com.docker.network.bridge.enable_icc") != "false":
        raise EngineError(
            f"the network {NETWORK!r} lets its members reach each other: remove it"
            f" (docker network rm {NETWORK}), it is made anew"
        )
    local = Path(f"/sys/class/net/{BRIDGE}").exists()
    if local and (not _NETFILTER.exists() or _NETFILTER.read_text().strip() != "1"):
        raise EngineError(
            "sessions could reach each other: the kernel does not filter bridged traffic"
            " (modprobe br_netfilter; sysctl net.bridge.bridge-nf-call-iptables=1)"
        )


class DockerEngine(Engine):
    """Settings of ``open``: ``state_dir``, ``publish_host``, ``uid``, ``gid``, ``read_only_root``.

    Containers carry a digest of ``state_dir``: several agents on one Docker engine leave each other's alone.
    """

    name = "docker"

    def __init__(self) -> None:
        self._client: docker.DockerClient | None = None
        self._pool: ThreadPoolExecutor | None = None
        self._gateway = ""
        self._home = ""
        self._publish_host = "127.0.0.1"
        self._user = "1000:1000"
        self._read_only_root = True
        self._pulls: dict[str, asyncio.Lock] = {}

    async def open(self, config: Mapping[str, Any]) -> None:
        """Connect, make the network, check that it isolates."""
        folder = str(Path(str(config.get("state_dir") or "")).resolve())
        self._home = hashlib.sha256(folder.encode()).hexdigest()[:16]
        self._publish_host = str(config.get("publish_host") or "127.0.0.1")
        root = os.geteuid() == 0
        uid = config.get("uid") or (1000 if root else os.geteuid())
        gid = config.get("gid") or (1000 if root else os.getegid())
        self._user = f"{uid}:{gid}"
        self._read_only_root = bool(config.get("read_only_root", True))
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="docker")
        self._client = await self._call(
            lambda: docker.from_env(timeout=CALL_TIMEOUT, max_pool_size=THREADS + 2)
        )
        self._gateway = await self._call(ensure_network, self._client)

    async def close(self) -> None:
        """Close connections; containers go on."""
        if self._client is not None:
            client, self._client = self._client, None
            await self._call(client.close)
        if self._pool is not None:
            pool, self._pool = self._pool, None
            pool.shutdown(wait=False, cancel_futures=True)

    async def session_address(self) -> str:
        """The gateway of the sessions' network."""
        return self._gateway

    async def images(self) -> tuple[ImageReport, ...]:
        """Images with our label, one name each: ``:latest`` where there is one."""
        client = self._open_client()
        found = await self._call(client.api.images, filters={"label": [IMAGE_LABEL]})
        architecture = _architecture(await self._call(client.version))
        reports = []
        for image in found:
            tags = sorted(tag for tag in image.get("RepoTags") or [] if tag != "<none>:<none>")
            if not tags:
                continue
            labels = image["Labels"] or {}
            name = next((tag for tag in tags if tag.endswith(":latest")), tags[0])
            if name.rpartition(":")[2] == labels.get(RECIPE_LABEL):
                continue  # an older build of a recipe: kept by the engine, not offered any more
            reports.append(ImageReport(name, architecture, image["Id"], image["Size"], labels))
        return tuple(sorted(reports, key=lambda report: report.name))

    async def ensure_image(self, name: str) -> AsyncIterator[str]:
        """Pull ``name`` unless it is there; pulls of one image run one after the other."""
        async with self._pulls.setdefault(name, asyncio.Lock()):
            client = self._open_client()
            try:
                await self._call(client.api.inspect_image, name)
                return
            except _Missing:
                pass
            yield f"pulling the image {name}"
            async for sentence in self._pull(name):
                yield sentence

    async def _pull(self, name: str) -> AsyncIterator[str]:
        """Pull in a thread; progress as sentences with bytes."""
        client = self._open_client()
        loop = asyncio.get_running_loop()
        lines: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()

        def read() -> None:
            try:
                for line in client.api.pull(name, stream=True, decode=True):
                    loop.call_soon_threadsafe(lines.put_nowait, line)
            finally:
                loop.call_soon_threadsafe(lines.put_nowait, None)

        pull = asyncio.ensure_future(self._call(read))
        layers: dict[str, tuple[int, int]] = {}
        try:
            while (line := await lines.get()) is not None:
                if "error" in line:
                    raise EngineError(str(line["error"]))
                detail = line.get("progressDetail") or {}
                if line.get("status") == "Downloading" and detail.get("total"):
                    layers[line["id"]] = (detail["current"], detail["total"])
                    done, total = (sum(column) for column in zip(*layers.values(), strict=True))
                    yield f"pulling the image: {done / 1e6:.0f} of {total / 1e6:.0f} MB"
            await pull
        except _Missing as error:
            raise EngineError(f"there is no image {name} and it cannot be pulled") from error
        except EngineError as error:
            raise EngineError(
                f"there is no image {name} and it cannot be pulled: {error}",
                retriable=error.retriable,
            ) from error
        finally:
            if not pull.done():
                await asyncio.wait([pull])

    async def create(
        self, spec: KernelSpec, limits: Limits, mounts: tuple[BoundMount, ...]
    ) -> EngineState:
        """Create the container; the one that is there already when this run was created before."""
        client = self._open_client()
        command = spec.command or await self._own_command(spec.image)
        port = spec.ports[0].container_port if spec.ports else 0
        tokens = Substitution("0.0.0.0", port, HOME, self._gateway)  # noqa: S104 - inside the container
        identity = Identity(spec.kernel_id, spec.session_id, spec.epoch)
        host_config = client.api.create_host_config(**self._host_options(spec, limits, mounts))
        call = functools.partial(
            client.api.create_container,
            image=spec.image,
            command=[tokens.text(item) for item in command] or None,
            name=_container_name(identity),
            hostname=spec.hostname,
            user=self._user,
            working_dir=HOME,
            environment={
                "HOME": HOME,
                **tokens.environ(limits.environ),
                **tokens.environ(spec.environ),
            },
            labels={**_labels(spec, identity), f"{LABEL}.home": self._home},
            ports=[port.container_port for port in spec.ports],
            host_config=host_config,
        )
        try:
            answer = await self._call(call)
        except _Conflict:
            state = await self.inspect(identity)
            if state is None:
                raise EngineError(
                    "the container vanished while it was created", retriable=True
                ) from None
            return state
        except _Missing as error:
            raise EngineError(f"there is no image {spec.image}") from error
        return EngineState(identity, "created", answer["Id"], (), spec.shares)

    async def start(self, identity: Identity) -> EngineState:
        """Start the container and read where its ports were published."""
        client = self._open_client()
        try:
            await self._call(client.api.start, _container_name(identity))
        except _Missing as error:
            raise EngineError("the container is gone before it was started") from error
        state = await self.inspect(identity)
        if state is None:
            raise EngineError("the container vanished while it was started")
        return state

    async def stop(self, identity: Identity, grace: float) -> None:
        """SIGTERM, then SIGKILL; a container that is gone is stopped."""
        client = self._open_client()
        seconds = max(0, round(grace))
        with contextlib.suppress(_Missing):
            call = functools.partial(client.api.stop, _container_name(identity), timeout=seconds)
            await self._call(call)

    async def remove(self, identity: Identity) -> None:
        """Remove the container with its anonymous volumes."""
        client = self._open_client()
        with contextlib.suppress(_Missing, _Conflict):  # gone, or its removal is under way
            call = functools.partial(
                client.api.remove_container, _container_name(identity), v=True, force=True
            )
            await self._call(call)

    async def list(self) -> tuple[EngineState, ...]:
        """All containers with our labels, in any phase."""
        client = self._open_client()
        call = functools.partial(
            client.api.containers, all=True, filters={"label": [*self._ours()]}
        )
        states = []
        for entry in await self._call(call):
            with contextlib.suppress(_Missing):
                facts = await self._call(client.api.inspect_container, entry["Id"])
                states.append(self._state(facts))
        return tuple(states)

    async def inspect(self, identity: Identity) -> EngineState | None:
        """State of the container of this run."""
        client = self._open_client()
        try:
            name = _container_name(identity)
            return self._state(await self._call(client.api.inspect_container, name))
        except _Missing:
            return None

    async def logs(self, identity: Identity, tail: int) -> str:
        """Last lines of stdout and stderr."""
        client = self._open_client()
        call: Callable[..., Any] = functools.partial(
            client.api.logs, _container_name(identity), tail=tail
        )
        try:
            raw: bytes = await self._call(call)
        except _Missing:
            return ""
        return raw.decode("utf-8", "replace")

    async def events(self) -> AsyncIterator[EngineEvent]:
        """Deaths and removals of our containers; ends when the engine closes the stream."""
        client = self._open_client()
        filters = {"type": "container", "event": ["die", "destroy"], "label": [*self._ours()]}
        stream: Any = await self._call(
            functools.partial(client.api.events, decode=True, filters=filters)
        )
        loop = asyncio.get_running_loop()
        queue: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()

        def read() -> None:
            # The engine going away ends the stream; the agent opens another.
            with contextlib.suppress(DockerException, RequestException, OSError, AttributeError):
                for event in stream:
                    loop.call_soon_threadsafe(queue.put_nowait, event)
            with contextlib.suppress(RuntimeError):  # the loop may be closed by now
                loop.call_soon_threadsafe(queue.put_nowait, None)

        threading.Thread(target=read, name="docker-events", daemon=True).start()
        try:
            while (event := await queue.get()) is not None:
                labels = event["Actor"]["Attributes"]
                what = "removed" if event["Action"] == "destroy" else "exited"
                yield EngineEvent(_identity(labels), what)
        finally:
            stream.close()

    def _ours(self) -> tuple[str, ...]:
        """Labels that all containers of this agent carry, and no others."""
        return f"{LABEL}.kernel", f"{LABEL}.home={self._home}"

    def _open_client(self) -> docker.DockerClient:
        if self._client is None:
            raise EngineError("the Docker engine is not connected")
        return self._client

    def _host_options(
        self, spec: KernelSpec, limits: Limits, mounts: tuple[BoundMount, ...]
    ) -> dict[str, Any]:
        """Everything that confines the container."""
        options: dict[str, Any] = {
            "binds": [
                f"{mount.source}:{mount.target}:{'ro' if mount.read_only else 'rw'},rprivate"
                for mount in mounts
            ],
            "cap_drop": ["ALL"],
            "security_opt": ["no-new-privileges"],
            "pids_limit": limits.pids,
            "shm_size": limits.shm_bytes,
            "init": True,
            "read_only": self._read_only_root,
            "tmpfs": {"/tmp": "rw,nosuid,nodev,mode=1777", "/run": "rw,nosuid,nodev,mode=755"},  # noqa: S108
            "log_config": {"type": "json-file", "config": {"max-size": "10m", "max-file": "2"}},
            "port_bindings": {
                port.container_port: (self._publish_host, None) for port in spec.ports
            },
            "devices": [f"{node}:{node}:rw" for node in limits.devices],
            "network_mode": NETWORK,
        }
        if limits.memory_bytes is not None:
            options |= {"mem_limit": limits.memory_bytes, "memswap_limit": limits.memory_bytes}
        if limits.cpu_quota is not None:
            options["nano_cpus"] = int(limits.cpu_quota * 1e9)
        if limits.cpuset is not None:
            options["cpuset_cpus"] = limits.cpuset
        return options

    async def _own_command(self, image: str) -> tuple[str, ...]:
        """The command that the image's label names; empty where it names none."""
        client = self._open_client()
        try:
            facts = await self._call(client.api.inspect_image, image)
        except _Missing as error:
            raise EngineError(f"there is no image {image}") from error
        text = (facts["Config"].get("Labels") or {}).get(COMMAND_LABEL)
        if text is None:
            return ()
        try:
            items = json.loads(text)
        except ValueError:
            items = None
        if not isinstance(items, list) or not all(isinstance(item, str) for item in items):
            raise EngineError(
                f"image {image}: its label {COMMAND_LABEL} is not a JSON list of texts"
            )
        return tuple(items)

    def _state(self, facts: Mapping[str, Any]) -> EngineState:
        labels = facts["Config"]["Labels"]
        state = facts["State"]
        status = state["Status"]
        phase = {"created": "created", "running": "running", "paused": "running"}.get(
            status, "exited"
        )
        names = json.loads(labels[f"{LABEL}.ports"])
        published = facts["NetworkSettings"]["Ports"] or {}
        endpoints = []
        for name, protocol, number in names:
            bindings = published.get(f"{number}/tcp")
            if bindings:
                host_port = int(bindings[0]["HostPort"])
                endpoints.append(Endpoint(name, protocol, number, self._publish_host, host_port))
        return EngineState(
            identity=_identity(labels),
            phase=phase,
            native_id=facts["Id"],
            endpoints=tuple(endpoints),
            shares=tuple(Share(*item) for item in json.loads(labels[f"{LABEL}.shares"])),
            started_at=_timestamp(state["StartedAt"]),
            exit_code=state["ExitCode"] if phase == "exited" else None,
            oom_killed=bool(state.get("OOMKilled")),
        )

    async def _call(self, function: Callable[..., T], *arguments: Any, **named: Any) -> T:
        """Run a blocking call in the pool; its errors become ``EngineError`` or one of the two below."""
        loop = asyncio.get_running_loop()
        call = functools.partial(function, *arguments, **named)
        try:
            return await loop.run_in_executor(self._pool, call)
        except (NotFound, ImageNotFound) as error:
            raise _Missing(str(error.explanation)) from error
        except APIError as error:
            if error.status_code == 409:
                raise _Conflict(str(error.explanation)) from error
            retriable = error.is_server_error()
            raise EngineError(
                f"the Docker engine refused: {error.explanation}", retriable=retriable
            ) from error
        except (DockerException, RequestException) as error:
            raise EngineError(
                f"the Docker engine does not answer: {error}", retriable=True
            ) from error


class _Missing(EngineError):
    """The engine does not know the object."""


class _Conflict(EngineError):
    """The name is taken, or the object is in another state."""


def _container_name(identity: Identity) -> str:
    return f"perijove-{identity.kernel_id}-{identity.epoch}"


def _labels(spec: KernelSpec, identity: Identity) -> dict[str, str]:
    ports = [[port.name, port.protocol, port.container_port] for port in spec.ports]
    shares = [[share.slot, share.device_id, share.amount] for share in spec.shares]
    return {
        **spec.labels,
        f"{LABEL}.kernel": identity.kernel_id,
        f"{LABEL}.session": identity.session_id,
        f"{LABEL}.epoch": str(identity.epoch),
        f"{LABEL}.session-name": spec.session_name,
        f"{LABEL}.owner": spec.owner,
        f"{LABEL}.ports": json.dumps(ports),
        f"{LABEL}.shares": json.dumps(shares),
    }


def _identity(labels: Mapping[str, str]) -> Identity:
    return Identity(
        labels[f"{LABEL}.kernel"], labels[f"{LABEL}.session"], int(labels[f"{LABEL}.epoch"])
    )


def _timestamp(text: str) -> float | None:
    """Seconds since the epoch of Docker's RFC 3339 time with nanoseconds; None for its year 1."""
    if text.startswith("0001-"):
        return None
    return dt.datetime.fromisoformat(text[:19] + "+00:00").timestamp()


def _architecture(version: Mapping[str, Any]) -> str:
    """The engine's architecture in the kernel's name for it."""
    names = {"amd64": "x86_64", "arm64": "aarch64"}
    return names.get(version["Arch"], str(version["Arch"]))
