"""Sessions: create, look, rename, end, logs, reasons, and their streams of events."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass

from authenticator.principals import Scope, Via
from authenticator.problems import Forbidden, InvalidParameters
from hub.api import views
from hub.api.endpoints import EVENTS, endpoint
from hub.api.handler import ApiHandler
from hub.api.parameters import param
from hub.api.streams import Frame, last_event_id, send_events
from spawner.sessions.requests import HubLaunch, NewSession
from spawner.sessions.states import FINAL, Status

STARTED = frozenset({Status.RUNNING, Status.RUNNING_DEGRADED}) | FINAL


@dataclass(frozen=True, slots=True)
class Launch:
    """The hub's extension of a session request."""

    hub: str = param("Id of the hub.", max_length=64)
    command: list[str] = param("Command of the main kernel.")
    port: int = param("Port that the command listens on.", minimum=1, maximum=65535)
    server: str = param("Name of the server; empty for the default one.", default="", max_length=64)


@dataclass(frozen=True, slots=True)
class Config:
    """What a session consists of."""

    mounts: list[str] = param("Folders to mount: name or name/path.", factory=list)
    mount_map: dict[str, str] = param(
        "Targets of mounts.", factory=dict, names=("mount_map", "mountMap")
    )
    environ: dict[str, str] = param("Environment variables.", factory=dict)
    resources: dict[str, object] = param("Amounts by slot, e.g. cpu and mem.", factory=dict)
    resource_opts: dict[str, object] = param(
        "Options such as shmem.", factory=dict, names=("resource_opts", "resourceOpts")
    )
    resource_group: str | None = param(
        "Resource group.", default=None, names=("scalingGroup", "scaling_group", "resource_group")
    )
    preopen_ports: list[object] = param(
        "Ports to open besides the image's own.",
        factory=list,
        names=("preopen_ports", "preopenPorts"),
    )
    agents: list[str] = param(
        "Agents to run on (superadmins).", factory=list, names=("agentList", "agent_list")
    )
    designation: str = param(
        "Whether it may run elsewhere too: strict or preferred.",
        default="strict",
        names=("agentSelectionPolicy", "agent_selection_policy"),
    )
    session_group: dict[str, object] | None = param(
        "Sessions to be spread or packed: name, rule (spread, pack), strict.",
        default=None,
        names=("sessionGroup", "session_group"),
    )


@dataclass(frozen=True, slots=True)
class Creation:
    """Parameters of ``POST /session``."""

    image: str = param("Image name or alias.", names=("image", "lang"), max_length=255)
    name: str = param(
        "Name, unique among the owner's live sessions.",
        names=("name", "session_name", "clientSessionToken"),
        max_length=200,
    )
    type: str = param(
        "interactive, batch, inference or system.",
        default="interactive",
        names=("type", "sessionType"),
    )
    domain: str | None = param(
        "Domain.", default=None, names=("domain", "domainName", "domain_name")
    )
    project: str | None = param(
        "Project, by name.", default=None, names=("group", "groupName", "group_name")
    )
    architecture: str | None = param("Architecture.", default=None, names=("architecture", "arch"))
    cluster_size: int = param(
        "Number of containers.", default=1, names=("clusterSize", "cluster_size")
    )
    cluster_mode: str = param(
        "single-node or multi-node.", default="single-node", names=("clusterMode", "cluster_mode")
    )
    tag: str | None = param("Free text, for the owner.", default=None, max_length=64)
    priority: int | None = param("0 to 100; higher goes first.", default=None)
    enqueue_only: bool = param(
        "Answer at once instead of when it runs.",
        default=False,
        names=("enqueueOnly", "enqueue_only"),
    )
    max_wait: float = param(
        "Seconds to wait for the start; 0: no limit.",
        default=0,
        minimum=0,
        maximum=86400,
        names=("maxWaitSeconds", "max_wait_seconds"),
    )
    reuse: bool = param(
        "Take a live session of this name.",
        default=True,
        names=("reuseIfExists", "reuse_if_exists"),
    )
    startup_command: str | None = param(
        "Command of a batch, inference or system session.",
        default=None,
        names=("startupCommand", "startup_command"),
    )
    starts_at: str | None = param(
        "Not before this time.", default=None, names=("starts_at", "startsAt")
    )
    bootstrap_script: str | None = param(
        "Script to run first.", default=None, names=("bootstrap_script", "bootstrapScript")
    )
    dependencies: list[str] = param(
        "Batch sessions that must have succeeded, by name or id.",
        factory=list,
        names=("dependencies", "startsAfter"),
    )
    failed_dependencies: str = param(
        "When one of them fails: wait, cancel or ignore.",
        default="wait",
        names=("failedDependencies", "failed_dependencies"),
    )
    run_time: object = param(
        "Duration after which it is ended, such as 2h; it can then start before longer ones.",
        default=None,
        names=("runTime", "run_time", "batchTimeout", "batch_timeout"),
    )
    preemptible: bool = param(
        "Whether it may be ended for sessions of higher priority, where the group allows that.",
        default=True,
        names=("isPreemptible", "is_preemptible"),
    )
    callback_url: str | None = param(
        "URL told of changes.", default=None, names=("callback_url", "callbackUrl", "callbackURL")
    )
    retry_policy: dict[str, object] | None = param(
        "When a failed run is tried again: max_retries, causes, backoff, backoff_limit.",
        default=None,
        names=("retryPolicy", "retry_policy"),
    )
    service: dict[str, object] | None = param(
        "Of an inference session: port, protocol, start_timeout, health_check.", default=None
    )
    owner_access_key: str | None = param("Access key of the owner.", default=None)
    config: Config = param("Resources, mounts and environment.", factory=Config)
    launch: Launch | None = param("For the hub only.", default=None, names=("perijove",))

    def request(self) -> NewSession:
        """As the session service takes it."""
        config, launch = self.config, self.launch
        return NewSession(
            name=self.name,
            image=self.image,
            type=self.type,
            architecture=self.architecture,
            resource_group=config.resource_group,
            slots=config.resources,
            resource_opts=config.resource_opts,
            mounts=config.mounts,
            mount_map=config.mount_map,
            environ=config.environ,
            domain=self.domain,
            project=self.project,
            cluster_mode=self.cluster_mode,
            cluster_size=self.cluster_size,
            priority=self.priority,
            tag=self.tag,
            startup_command=self.startup_command,
            bootstrap_script=self.bootstrap_script,
            starts_at=self.starts_at,
            dependencies=self.dependencies,
            failed_parents=self.failed_dependencies,
            run_time=self.run_time,
            preemptible=self.preemptible,
            designation=config.designation,
            session_group=config.session_group,
            retry_policy=self.retry_policy,
            service=self.service,
            callback_url=self.callback_url,
            preopen_ports=config.preopen_ports,
            designated_agents=config.agents,
            reuse_if_exists=self.reuse,
            hub=None
            if launch is None
            else HubLaunch(launch.hub, launch.server, tuple(launch.command), launch.port),
        )


@dataclass(frozen=True, slots=True)
class Owner:
    """Whose session is meant."""

    owner_access_key: str | None = param(
        "Access key of the owner.", default=None, names=("owner_access_key", "ownerAccessKey")
    )


@dataclass(frozen=True, slots=True)
class Ending:
    """Parameters of ``DELETE /session/{session}``."""

    forced: bool = param("End it without waiting for its processes.", default=False)
    recursive: bool = param("End the sessions that depend on it as well.", default=False)
    owner_access_key: str | None = param("Access key of the owner.", default=None)


@dataclass(frozen=True, slots=True)
class Rename:
    """Parameters of ``POST /session/{session}/rename``."""

    name: str = param("The new name.", names=("name", "session_name"), max_length=200)


@dataclass(frozen=True, slots=True)
class Logs:
    """Parameters of ``GET /session/{session}/logs``."""

    owner_access_key: str | None = param("Access key of the owner.", default=None)
    tail: int = param("Number of lines from the end.", default=1000, minimum=1, maximum=100_000)
    attempt: int | None = param("Which run; the last one by default.", default=None, minimum=1)
    kernel: str | None = param(
        "Id or host name (sub1) of one of its containers; the main one when left out.",
        default=None,
        names=("kernel_id", "kernelId"),
    )


@dataclass(frozen=True, slots=True)
class Prefix:
    """Parameters of ``GET /session/_/match``."""

    id: str = param("Beginning of an id or name.", max_length=200)


@dataclass(frozen=True, slots=True)
class Listing:
    """Parameters of ``GET /sessions``."""

    everybody: bool = param("Sessions of all owners (superadmins).", default=False, names=("all",))
    status: list[str] = param("Only these statuses.", factory=list)
    limit: int = param("Most sessions to list.", default=100, minimum=1, maximum=1000)
    offset: int = param("Sessions to skip.", default=0, minimum=0)


@dataclass(frozen=True, slots=True)
class Watching:
    """Parameters of ``GET /events/session``."""

    session: str | None = param(
        "Id or name of one session.",
        default=None,
        names=("sessionId", "sessionName", "name", "session_id"),
    )
    scope: str = param("Which events.", default="*", choices=("*", "session", "kernel"))
    owner_access_key: str | None = param(
        "Access key of the owner.", default=None, names=("owner_access_key", "ownerAccessKey")
    )


class Sessions(ApiHandler):
    """``POST /session``."""

    paths = ("/session",)

    @endpoint(
        "Create a session, or take a live one of that name",
        scope=Scope.SESSIONS,
        parameters=Creation,
        status=201,
    )
    async def post(self, given: Creation) -> None:
        """Enqueue, and wait for the start unless told not to."""
        me = self.principal
        if given.launch is not None and me.via is not Via.HUB:
            raise Forbidden("only the hub may say what a session launches ('perijove')")
        owner = await self.acting_for(given.owner_access_key)
        service = self.services.control.sessions
        result = await service.create(me, owner, given.request(), self.request_id)
        status = None
        if not given.enqueue_only and result.detail.status not in STARTED:
            waiting = service.wait(result.detail.session.id, STARTED, given.max_wait or None)
            detail = await self.unless_gone(waiting)
            if detail.status not in STARTED:
                status = "TIMEOUT"
            result = type(result)(detail, result.created)
        self.answer(views.created(result, status))


class SessionCheck(ApiHandler):
    """A dry run."""

    paths = ("/session/_/check",)

    @endpoint(
        "Whether a session would start now, later or never",
        scope=Scope.SESSIONS,
        parameters=Creation,
    )
    async def post(self, given: Creation) -> None:
        """Takes what ``POST /session`` takes; nothing is made or reserved."""
        owner = await self.acting_for(given.owner_access_key)
        offers = self.services.control.offers
        self.answer(views.check(await offers.rehearse(self.principal, owner, given.request())))


class Session(ApiHandler):
    """One session."""

    paths = ("/session/{session}",)

    @endpoint("Describe a session", scope=Scope.SESSIONS_READ, parameters=Owner)
    async def get(self, session: str, given: Owner) -> None:
        """As Backend.AI's clients read it."""
        principal = await self.acting_for(given.owner_access_key)
        service = self.services.control.sessions
        detail = await service.get(principal, session)
        live = await service.measures(principal, str(detail.session.id))
        self.answer(views.session_info(detail, self.services.now(), live.get(detail.main.id)))

    @endpoint(
        "Restart a running interactive session", scope=Scope.SESSIONS, parameters=Owner, status=204
    )
    async def patch(self, session: str, given: Owner) -> None:
        """Backend.AI's name of ``POST /session/{session}/restart``."""
        principal = await self.acting_for(given.owner_access_key)
        await self.services.control.sessions.restart(principal, session, self.request_id)
        self.answer_nothing()

    @endpoint("End a session", scope=Scope.SESSIONS, parameters=Ending)
    async def delete(self, session: str, given: Ending) -> None:
        """Recorded at once; the containers end soon after."""
        principal = await self.acting_for(given.owner_access_key)
        ended = await self.services.control.sessions.destroy(
            principal,
            session,
            forced=given.forced,
            recursive=given.recursive,
            request_id=self.request_id,
        )
        answers = [views.destroyed(each) for each in ended]
        self.answer(answers if given.recursive else answers[0])


class SessionRestart(ApiHandler):
    """A fresh start in place."""

    paths = ("/session/{session}/restart",)

    @endpoint(
        "Restart a running interactive session", scope=Scope.SESSIONS, parameters=Owner, status=204
    )
    async def post(self, session: str, given: Owner) -> None:
        """On the same node, devices and folders; recorded at once."""
        principal = await self.acting_for(given.owner_access_key)
        await self.services.control.sessions.restart(principal, session, self.request_id)
        self.answer_nothing()


class SessionAttempts(ApiHandler):
    """How its runs ended."""

    paths = ("/session/{session}/attempts",)

    @endpoint("Ended runs of a session", scope=Scope.SESSIONS_READ, parameters=Owner)
    async def get(self, session: str, given: Owner) -> None:
        """Oldest first; what each printed is at ``/session/{session}/logs?attempt=N``."""
        principal = await self.acting_for(given.owner_access_key)
        rows = await self.services.control.sessions.attempts(principal, session)
        self.answer({"attempts": [views.attempt(row) for row in rows]})


class SessionRename(ApiHandler):
    """Another name."""

    paths = ("/session/{session}/rename",)

    @endpoint(
        "Rename a running session",
        scope=Scope.SESSIONS,
        parameters=Rename,
        status=204,
        query_only=True,
    )
    async def post(self, session: str, given: Rename) -> None:
        """The name must be free among the owner's live sessions."""
        service = self.services.control.sessions
        await service.rename(self.principal, session, given.name, self.request_id)
        self.answer_nothing()


class SessionLogs(ApiHandler):
    """What it printed."""

    paths = ("/session/{session}/logs",)

    @endpoint("Output of one of its containers", scope=Scope.SESSIONS_READ, parameters=Logs)
    async def get(self, session: str, given: Logs) -> None:
        """Also after the end, as far as it was kept."""
        principal = await self.acting_for(given.owner_access_key)
        service = self.services.control.sessions
        text = await service.logs(
            principal, session, given.tail, attempt=given.attempt, kernel=given.kernel
        )
        self.answer({"result": {"logs": text}})


class SessionStatistics(ApiHandler):
    """What it uses."""

    paths = ("/session/{session}/stats",)

    @endpoint("Newest measures of a session", scope=Scope.SESSIONS_READ, parameters=Owner)
    async def get(self, session: str, given: Owner) -> None:
        """By kernel and metric; after the end the last ones."""
        principal = await self.acting_for(given.owner_access_key)
        found = await self.services.control.sessions.measures(principal, session)
        self.answer({"kernels": {str(kernel): metrics for kernel, metrics in found.items()}})


class SessionHistory(ApiHandler):
    """When it was what."""

    paths = ("/session/{session}/status-history",)

    @endpoint("When a session reached each status", scope=Scope.SESSIONS_READ, parameters=Owner)
    async def get(self, session: str, given: Owner) -> None:
        """Status names in both spellings that clients look for; beside it, how often it was tried in vain."""
        principal = await self.acting_for(given.owner_access_key)
        rows = await self.services.control.sessions.history(principal, session)
        self.answer({"result": views.status_history(rows), "attempts": views.tries(rows)})


class SessionWhy(ApiHandler):
    """Why it still waits."""

    paths = ("/session/{session}/why",)

    @endpoint(
        "Why a session is in its state: the scheduler's explanation", scope=Scope.SESSIONS_READ
    )
    async def get(self, session: str) -> None:
        """Reasons, counts of nodes and missing amounts; of one that waits, what would become of it now."""
        control = self.services.control
        detail = await control.sessions.get(self.principal, session)
        waits = detail.status is Status.PENDING
        verdict = await control.offers.why(detail.session.id) if waits else None
        shares = await control.offers.shares_of(detail.session.id) if waits else ()
        self.answer(views.why(detail, verdict, shares))


class SessionProgress(ApiHandler):
    """The way to RUNNING, as it happens."""

    paths = ("/session/{session}/progress",)

    @endpoint(
        "Progress of a start as server-sent events", scope=Scope.SESSIONS_READ, produces=EVENTS
    )
    async def get(self, session: str) -> None:
        """Replayed from the beginning, or after ``Last-Event-ID``."""
        service = self.services.control.sessions
        detail = await service.get(self.principal, session)
        after = last_event_id(self)

        async def frames() -> AsyncIterator[Frame]:
            async for event in service.progress(detail.session.id, after):
                yield Frame("end" if event.end else "progress", views.step(event), event.id)

        await send_events(self, frames())


class SessionMatch(ApiHandler):
    """By prefix."""

    paths = ("/session/_/match",)

    @endpoint(
        "Live sessions whose id or name begins with a text",
        scope=Scope.SESSIONS_READ,
        parameters=Prefix,
    )
    async def get(self, given: Prefix) -> None:
        """Ids, names and statuses."""
        found = await self.services.control.sessions.match(self.principal, given.id)
        self.answer({"matches": [views.match(detail) for detail in found]})


class SessionApps(ApiHandler):
    """What can be opened in it."""

    paths = ("/stream/session/{session}/apps",)

    @endpoint("Service ports of a session", scope=Scope.SESSIONS_READ)
    async def get(self, session: str) -> None:
        """As a list."""
        detail = await self.services.control.sessions.get(self.principal, session)
        self.answer(views.service_ports(detail))


class SessionList(ApiHandler):
    """Many sessions."""

    paths = ("/sessions",)

    @endpoint("List sessions", scope=Scope.SESSIONS_READ, parameters=Listing)
    async def get(self, given: Listing) -> None:
        """Newest first, with owner, resources, age and (for superadmins) node."""
        statuses = _statuses(given.status)
        service = self.services.control.sessions
        found = await service.list(
            self.principal,
            all_owners=given.everybody,
            statuses=statuses,
            limit=given.limit,
            offset=given.offset,
        )
        total = await service.count(self.principal, all_owners=given.everybody, statuses=statuses)
        now = self.services.now()
        self.answer({"sessions": [views.session(each, now) for each in found], "total": total})


class SessionEvents(ApiHandler):
    """What happens to sessions."""

    paths = ("/events/session",)

    @endpoint(
        "Events of sessions as server-sent events",
        scope=Scope.SESSIONS_READ,
        parameters=Watching,
        produces=EVENTS,
    )
    async def get(self, given: Watching) -> None:
        """Live only; the stream stays open until the client leaves."""
        principal = await self.acting_for(given.owner_access_key)
        ref = None if given.session in (None, "*") else given.session
        service = self.services.control.sessions

        async def frames() -> AsyncIterator[Frame]:
            async for event in service.events(principal, ref, given.scope):
                yield Frame(event.name, event.data())

        await send_events(self, frames())


def _statuses(names: list[str]) -> frozenset[Status] | None:
    """Statuses by name, given one by one or separated by commas."""
    wanted = [name.upper() for text in names for name in text.split(",") if name]
    unknown = [name for name in wanted if name not in Status.__members__]
    if unknown:
        allowed = ", ".join(Status.__members__)
        raise InvalidParameters({"status": f"{unknown[0][:40]!r}: one of {allowed}"})
    return frozenset(Status(name) for name in wanted) or None


HANDLERS = (
    Sessions,
    SessionMatch,
    SessionCheck,
    Session,
    SessionRestart,
    SessionRename,
    SessionAttempts,
    SessionLogs,
    SessionStatistics,
    SessionHistory,
    SessionWhy,
    SessionProgress,
    SessionApps,
    SessionList,
    SessionEvents,
)
