"""The daemon: one WebSocket to the manager, kernels underneath, and nothing that must be remembered.

While the manager is away kernels go on; what happened meanwhile is in the whole report that follows
the next hello.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.metadata
import logging
import platform
import random
import time
from collections import deque
from pathlib import Path

import aiohttp

from spawner.accelerators.registry import Accelerators
from spawner.agent import admission, leases
from spawner.agent.apps import Apps
from spawner.agent.calls import Calls
from spawner.agent.config import AgentConfig
from spawner.agent.engines.base import Engine, EngineError, Identity
from spawner.agent.images import ImageTasks
from spawner.agent.inventory import offer_inventory
from spawner.agent.kernels import Kernels
from spawner.agent.leases import Leases
from spawner.agent.logs import frames
from spawner.agent.measuring import Measuring
from spawner.agent.membership import Membership
from spawner.agent.metrics import AgentMetrics
from spawner.agent.networks import NetworkKeeper
from spawner.agent.offering import Offering
from spawner.agent.ports import PortPool, parse_range
from spawner.agent.protocol import (
    MAX_FRAME_BYTES,
    PROTOCOL_VERSION,
    REFUSED,
    Ack,
    Call,
    Hello,
    KernelReport,
    Message,
    ProtocolError,
    Report,
    Share,
    Wanted,
    Welcome,
    decode,
    encode,
)
from spawner.agent.runner import Surroundings

BACK_OFF = (0.2, 10.0)
"""Seconds between attempts to reach the manager: at first, and at most."""
REFUSED_PAUSE = 10.0
WELCOME_PATIENCE = 30.0
"""Seconds that a manager has to take a connection, and as many to say welcome."""
LONGEST_DEAF = 3.0
"""Seconds between attempts to hear the engine's events again, at most."""
log = logging.getLogger(__name__)


class Refused(Exception):
    """The manager does not want this agent (token, version); trying at once again is useless."""


class AgentDaemon:
    """Runs until cancelled."""

    def __init__(
        self,
        config: AgentConfig,
        engine: Engine,
        accelerators: Accelerators,
        metrics: AgentMetrics,
    ) -> None:
        self._config = config
        self.metrics = metrics
        self._engine = engine
        self._accelerators = accelerators
        self.membership = Membership(Path(config.state_dir), config.read_token())
        self._tls = config.tls()
        self._changed: dict[str, KernelReport] = {}
        self._news = asyncio.Event()
        self.kernels = Kernels(
            Surroundings(
                engine=engine,
                accelerators=accelerators,
                volumes=dict(config.volumes),
                address=config.address,
                max_pids=config.max_pids,
                stop_grace=config.stop_grace,
                changed=self._noticed,
                admit=self._admit,
                last_stat=lambda identity: self.measuring.last(identity),
            ),
            config.orphan_grace,
        )
        self.calls = Calls(engine, self.kernels)
        self.measuring = Measuring(
            engine,
            self.kernels,
            accelerators,
            folder=config.state_dir,
            interval=config.measure_interval,
            running=self.calls.running,
            seen=lambda: self._apps.seen(),
        )
        self.calls.offer("processes", self.measuring.processes)
        self.hurry = asyncio.Event()
        """Set when the next sign of life should not wait: the images, or the engine's health, may be others."""
        self._images = ImageTasks(engine, self.calls, self.hurry.set)
        self._leases = Leases(Path(config.state_dir) / "leases.json")
        pool = PortPool(parse_range(config.app_ports), config.app_port_rest)
        self._apps = Apps(engine, self.calls, config.address, pool)
        offer_inventory(self.calls, self._apps)
        self.offering = Offering(engine, accelerators, self.hurry.set)

    async def run(self) -> None:
        """Open the engine, adopt what is there, then serve the manager for ever."""
        config = self._config
        await self._engine.open(
            {
                "state_dir": config.state_dir,
                "publish_host": config.address,
                "app_ports": config.app_ports,
                "uid": config.uid,
                "gid": config.gid,
                "read_only_root": config.read_only_root,
            }
        )
        try:
            await self.offering.open()
            await self.kernels.adopt(self._leases.fenced)
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._follow_events())
                tasks.create_task(self._relist())
                tasks.create_task(self.offering.watch())
                tasks.create_task(self._keep_leases())
                tasks.create_task(self.measuring.run())
                tasks.create_task(self._stay_connected())
        finally:
            await self.offering.close()
            await self._images.close()
            await self._apps.close()
            await self.kernels.close()
            await self._engine.close()

    def _noticed(self, report: KernelReport) -> None:
        """A kernel has a new report."""
        self._changed[report.kernel_id] = report
        self._news.set()
        self._apps.noticed(report)
        if report.failure == REFUSED:  # what it was planned with is not what there is
            self.offering.repeat()

    async def _admit(self, identity: Identity, shares: tuple[Share, ...]) -> None:
        """Raise ``Refused`` unless the node has room for ``shares`` of a run that begins."""
        devices = await self._accelerators.devices()
        admission.check(shares, devices, self.kernels.held(identity))

    async def _stay_connected(self) -> None:
        """Dial the manager again whenever the connection ends, with growing random pauses."""
        pause, most = BACK_OFF
        patience = aiohttp.ClientTimeout(total=WELCOME_PATIENCE)  # of the handshake
        async with aiohttp.ClientSession(timeout=patience) as http:
            while True:
                begun = time.monotonic()
                try:
                    await self._converse(http)
                    log.info("the manager closed the connection")
                except Refused as refusal:
                    log.error("the manager refuses this agent: %s", refusal)
                    pause = REFUSED_PAUSE
                except (aiohttp.ClientError, OSError, TimeoutError, ProtocolError) as error:
                    log.warning("no connection to the manager: %s", error or type(error).__name__)
                if time.monotonic() - begun > most:
                    pause = BACK_OFF[0]
                await asyncio.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311 - not a secret
                pause = min(most, pause * 2)

    async def _converse(self, http: aiohttp.ClientSession) -> None:
        """One connection, from hello to its end."""
        url = self._config.manager_url.replace("http", "ws", 1) + "/agents/connect"
        try:
            socket = await http.ws_connect(
                url,
                headers={"Authorization": f"Bearer {self.membership.secret}"},
                max_msg_size=MAX_FRAME_BYTES,
                heartbeat=20.0,
                ssl=self._tls or True,
            )
        except aiohttp.WSServerHandshakeError as error:
            if error.status in (401, 403):
                raise Refused(f"{error.status} {error.message}") from error
            raise
        async with socket:
            await _Conversation(self, socket).run()
            if socket.close_code == aiohttp.WSCloseCode.POLICY_VIOLATION:
                raise Refused("see the manager's log")

    def hello(self) -> Hello:
        """Who this agent is and what it offers."""
        return Hello(
            protocol=PROTOCOL_VERSION,
            agent_id=self._config.agent_id,
            resource_group=self._config.resource_group,
            version=importlib.metadata.version("perijove"),
            architecture=platform.machine(),
            engine=self._engine.name,
            address=self._config.address,
            devices=self.offering.devices,
            images=self.offering.images,
            max_containers=self._config.max_containers,
            slots=self._accelerators.slots(),
            features=self.offering.features(),
        )

    async def _follow_events(self) -> None:
        """Turn the engine's hints into looks; open the stream again when it ends."""
        pause = 0.5
        while True:
            try:
                async for event in self._engine.events():
                    pause = 0.5
                    self.kernels.look(event.identity.kernel_id)
            except EngineError as error:
                log.warning("no events from the engine: %s", error)
            await asyncio.sleep(pause)
            pause = min(LONGEST_DEAF, pause * 2)
            self.kernels.look()

    async def _relist(self) -> None:
        """The slow tick: look at everything, sweep orphans."""
        while True:
            await asyncio.sleep(self._config.relist_interval)
            try:
                await self.kernels.sweep(time.monotonic())
            except (EngineError, OSError) as error:
                log.warning("cleaning up failed: %s", error)

    async def _keep_leases(self) -> None:
        """End what may go on elsewhere when the manager was not heard of for too long."""
        while True:
            for kernel_id in self._leases.over():
                epoch = self.kernels.fence(kernel_id)
                if epoch is not None:
                    self._leases.fence(kernel_id, epoch)
            await asyncio.sleep(leases.LOOK_EVERY)

    def wanted(self, wanted: Wanted) -> list[KernelReport]:
        """The manager's word: leases begin anew, reality is made to match."""
        self._leases.renew(wanted)
        return self.kernels.apply(wanted, time.monotonic())

    def keeper(self, deployment: str) -> NetworkKeeper:
        """Keeps the networks that the manager wants, for one connection."""
        return NetworkKeeper(self._engine, deployment, self._config.relist_interval)

    async def changed(self) -> tuple[KernelReport, ...]:
        """Wait for reports that the manager has not been sent yet: the newest of each kernel."""
        await self._news.wait()
        return self.forget_changes()

    def forget_changes(self) -> tuple[KernelReport, ...]:
        """What has changed so far; it is not told again."""
        found = tuple(self._changed.values())
        self._changed.clear()
        self._news.clear()
        return found


class _Conversation:
    """One connection: reports go up in order and are remembered until they are acknowledged."""

    def __init__(self, daemon: AgentDaemon, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._daemon = daemon
        self._socket = socket
        self._sequence = 0
        self._unacknowledged: deque[tuple[int, tuple[KernelReport, ...]]] = deque()
        self._acknowledged: asyncio.Queue[tuple[KernelReport, ...]] = asyncio.Queue()
        self._calls: set[asyncio.Task[None]] = set()
        self._networks = daemon.keeper("")

    async def run(self) -> None:
        """Until the connection ends."""
        hello = self._daemon.hello()
        await self._send(hello)
        first = await self._socket.receive(timeout=WELCOME_PATIENCE)
        if first.type is not aiohttp.WSMsgType.TEXT:
            if self._socket.close_code == aiohttp.WSCloseCode.POLICY_VIOLATION:
                raise Refused(str(first.extra or "see the manager's log"))
            raise ProtocolError(
                f"the connection ended before a welcome: {first.extra or first.data}"
            )
        welcome = decode(first.data)
        if not isinstance(welcome, Welcome):
            raise ProtocolError(f"the manager began with {type(welcome).__name__}, not Welcome")
        if welcome.credential is not None:
            self._daemon.membership.keep(welcome.credential)
            log.info("this node has joined; its credential is in the state folder")
        log.info("connected to the manager as %s", hello.agent_id)
        self._daemon.forget_changes()  # the whole report holds them all
        await self._report(self._daemon.kernels.reports(), whole=True)
        self._networks = self._daemon.keeper(welcome.deployment)
        tasks = [
            asyncio.create_task(self._read()),
            asyncio.create_task(self._networks.run()),
            asyncio.create_task(self._forget()),
            asyncio.create_task(self._send_reports()),
            asyncio.create_task(self._beat(welcome.heartbeat_interval)),
            asyncio.create_task(self._send_measures()),
        ]
        self._daemon.metrics.connected(True)
        try:  # one that fails ends them all: half a conversation would go unnoticed
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            self._daemon.metrics.connected(False)
            for task in [*tasks, *self._calls]:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _read(self) -> None:
        async for frame in self._socket:
            if frame.type is aiohttp.WSMsgType.TEXT:
                await self._take(decode(frame.data))

    async def _take(self, message: Message) -> None:
        if isinstance(message, Wanted):
            self._networks.want(message.networks)
            answers = self._daemon.wanted(message)
            if answers:
                await self._report(tuple(answers))
        elif isinstance(message, Ack):
            while self._unacknowledged and self._unacknowledged[0][0] <= message.sequence:
                self._acknowledged.put_nowait(self._unacknowledged.popleft()[1])
        elif isinstance(message, Call):
            task = asyncio.create_task(self._answer(message))
            self._calls.add(task)
            task.add_done_callback(self._calls.discard)
        else:
            raise ProtocolError(f"the manager sent {type(message).__name__}")

    async def _forget(self) -> None:
        """Remove what ended and is recorded; the manager is listened to meanwhile, however slow the engine is."""
        while True:
            await self._daemon.kernels.acknowledge(await self._acknowledged.get())

    async def _answer(self, call: Call) -> None:
        answer = await self._daemon.calls.answer(call)
        with contextlib.suppress(
            aiohttp.ClientError, OSError
        ):  # asked by a connection that is gone
            await self._send(answer)

    async def _send_reports(self) -> None:
        while True:
            await self._report(await self._daemon.changed())

    async def _report(self, reports: tuple[KernelReport, ...], *, whole: bool = False) -> None:
        for part, is_whole in frames(reports, whole=whole):
            self._sequence += 1
            self._unacknowledged.append((self._sequence, part))
            await self._send(Report(self._sequence, part, is_whole))

    async def _send_measures(self) -> None:
        while True:
            await self._send(await self._daemon.measuring.following())

    async def _beat(self, interval: float) -> None:
        while True:
            changed = self._daemon.hurry
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(interval):
                    await changed.wait()
            changed.clear()
            await self._send(await self._daemon.offering.heartbeat())
            self._daemon.metrics.beat()

    async def _send(self, message: Message) -> None:
        await self._socket.send_str(encode(message))
