"""The control plane: wires sessions, offers, agents, scheduler loop and reconciler together."""

from __future__ import annotations

import asyncio
import datetime as dt
import json
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field

from spawner.scheduler.policies import BUILT_IN, Policies
from spawner.sessions import live_metrics
from spawner.sessions.administration import Administration
from spawner.sessions.agents import AgentRegistry
from spawner.sessions.audit import AuditService
from spawner.sessions.callbacks import CallbackRules, Callbacks
from spawner.sessions.clusters import deployment_id
from spawner.sessions.events import EventBus
from spawner.sessions.execution import ExecutionService
from spawner.sessions.extending import Extensions
from spawner.sessions.files import SessionFiles
from spawner.sessions.idle_watch import IdleWatch
from spawner.sessions.images import ImageService
from spawner.sessions.metrics import Metrics
from spawner.sessions.nodes import NodeService
from spawner.sessions.observing import Observing
from spawner.sessions.offers import Offers, bootstrap
from spawner.sessions.opening import AppService
from spawner.sessions.reconciler import WATCH_SHARE, Reconciler
from spawner.sessions.scheduling import SchedulerLoop
from spawner.sessions.service import SessionService
from spawner.sessions.snapshot import read_groups
from spawner.sessions.tokens import AgentTokens
from spawner.sessions.transitions import Change, Fence, Journal
from store.database import Store
from store.hints import HintListener, can_hint
from store.leadership import Leadership
from vfolder.folders import FolderService

LEADERSHIP = "scheduler"
RETRY = 1.0

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ControlSettings:
    """Times in seconds; and the agent token that the deployment itself generated, if it did."""

    tick: float = 30.0
    """Slow tick of scheduler and reconciler, which makes up for lost wake-ups."""
    heartbeat_interval: float = 10.0
    agent_timeout: float = 40.0
    """An agent not heard of for this long is LOST."""
    sync_interval: float = 30.0
    call_timeout: float = 10.0
    history: dt.timedelta = dt.timedelta(days=90)
    """How long attempts and messages of ended sessions, and what happened to agents, are kept."""
    agent_token: str | None = field(default=None, repr=False)
    apps_path: str = "/services/perijove-apps/"
    """Where browsers find sessions' apps."""
    callbacks: CallbackRules = field(default_factory=CallbackRules)
    """Where what happens to sessions may be posted."""


class ControlPlane:
    """Everything of the manager that is not HTTP. State is in rows only: a new one carries on."""

    def __init__(
        self,
        store: Store,
        folders: FolderService,
        now: Callable[[], dt.datetime],
        settings: ControlSettings | None = None,
        policies: Policies = BUILT_IN,
    ) -> None:
        self.settings = own = settings or ControlSettings()
        self._store, self._now = store, now
        self.bus = EventBus()
        self.metrics = Metrics()
        self.journal = Journal(store, self.bus, now)
        self.tokens = AgentTokens(store, now)
        self.agents = AgentRegistry(
            self.journal,
            heartbeat_interval=own.heartbeat_interval,
            sync_interval=own.sync_interval,
            call_timeout=own.call_timeout,
            patience=own.agent_timeout,
        )
        self.sessions = SessionService(
            self.journal, self.agents, folders, now, own.callbacks, own.apps_path
        )
        self.callbacks = Callbacks(self.journal, self.metrics, own.callbacks, own.tick)
        self.nodes = NodeService(self.journal, self.agents.is_connected)
        self.audit = AuditService(store, self.agents)
        self.images = ImageService(self.journal, self.agents, now)
        self.apps = AppService(store, self.agents, own.apps_path)
        self.observing = Observing(store, self.agents)
        self.execution = ExecutionService(self.apps)
        self.files = SessionFiles(self.apps)
        self.offers = Offers(self.journal, self.agents, now, policies, folders, own.callbacks)
        leading = self.journal.behind(self._fence)
        self.scheduler = SchedulerLoop(leading, self.metrics, own.tick, policies)
        self.extensions = Extensions(self.journal)
        interval = own.agent_timeout / WATCH_SHARE
        self.reconciler = Reconciler(
            leading,
            self.metrics,
            IdleWatch(leading, self.agents.statistics, interval),
            tick=own.tick,
            agent_timeout=own.agent_timeout,
            history=own.history,
            policies=policies,
        )
        self._policies = policies
        self.administration = Administration(self.journal, policies, self.reconciler.repair)
        self.leads = asyncio.Event()
        """Set while this manager schedules and reconciles."""
        self._leadership: Leadership | None = None
        self.journal.listen(self._committed)
        self.hints = HintListener(store.url, self._hinted) if can_hint(store.url) else None
        """What other processes on the database tell this one."""
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Bootstrap groups and presets, resume from rows, start the loops.

        Raises ``PolicyError`` when the options of a resource group cannot be used.
        """
        await bootstrap(self._store, self._now())
        self.agents.deployment = await deployment_id(self._store, self._now())
        await self._store.read(lambda db: read_groups(db, self._policies))
        if self.settings.agent_token is not None:
            await self.tokens.ensure_token(self.settings.agent_token, "made with the deployment")
        self._task = asyncio.create_task(self._run(), name="control-plane")

    async def stop(self) -> None:
        """Stop the loops and close agents' connections; sessions go on."""
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
            self._task = None
        await self.agents.close()
        self.bus.close()

    async def render_metrics(self) -> bytes:
        """Prometheus text of the engine's metrics."""
        own = await self.metrics.render(self._store, self._now())
        return own + await live_metrics.render(self.agents.statistics, self._store)

    def _committed(self, change: Change) -> None:
        """Wake whoever a committed change concerns."""
        if change.schedule:
            self.scheduler.wake()
        if change.callbacks:
            self.callbacks.wake()
        if change.agents:
            self.agents.wake(change.agents)
        if change.networks:
            self.agents.wake_all()

    def _hinted(self, payload: str) -> None:
        """Wake whoever a change of another process concerns."""
        told = json.loads(payload)
        if told["from"] == self.journal.origin:
            return
        if told["schedule"]:
            self.scheduler.wake()
        if told["callbacks"]:
            self.callbacks.wake()
        self.agents.wake(told["agents"])
        if told["all"]:
            self.agents.wake_all()

    async def _run(self) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self._lead_forever(), name="leading")
            if self.hints is not None:
                group.create_task(self._again("hints", self.hints.run), name="hints")

    @staticmethod
    async def _again(what: str, run: Callable[[], Awaitable[None]]) -> None:
        """Do what the rest can do without, and again when it failed: that stops nothing."""
        while True:
            try:
                await run()
            except Exception as error:
                log.exception("no %s for now: %s", what, error)
            await asyncio.sleep(RETRY)

    async def _lead_forever(self) -> None:
        """Wait to lead, lead until leadership is lost, and again."""
        while True:
            try:
                async with self._store.leadership(LEADERSHIP) as leadership:
                    log.info("this manager schedules now")
                    self._leadership = leadership
                    await self._lead(leadership.lost)
            except Exception as error:
                log.exception("the loops stopped, starting them again: %s", error)
                await asyncio.sleep(RETRY)

    def _fence(self) -> Fence | None:
        """While this manager leads: what its loops write is committed by the leader, or not at all."""
        return self._leadership.fence if self._leadership and self.leads.is_set() else None

    async def _lead(self, lost: asyncio.Event) -> None:
        self.leads.set()
        loops = [
            asyncio.create_task(self.scheduler.run(), name="scheduler"),
            asyncio.create_task(self.reconciler.run(), name="reconciler"),
            asyncio.create_task(self._again("callbacks", self.callbacks.run), name="callbacks"),
            asyncio.create_task(lost.wait(), name="leadership"),
        ]
        try:
            done, _ = await asyncio.wait(loops, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
            log.warning("this manager does not schedule any more")
        finally:
            self.leads.clear()
            for task in loops:
                task.cancel()
            await asyncio.wait(loops)
