"""Sessions: create, look, rename, end, logs, reasons, and their streams of events."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass

from authenticator.principals import Scope, Via
from authenticator.problems import Forbidden, InvalidParameters
from hub.api import views
from hub.api.endpoints import EVENTS, endpoint
from hub.api.execution import Execution, execute
from hub.api.handler import ApiHandler
from hub.api.parameters import param
from hub.api.session_requests import Container, Creation, Owner
from hub.api.streams import Frame, last_event_id, send_events
from hub.api.web_apps import web_apps
from spawner.sessions.states import FINAL, Status

STARTED = frozenset({Status.RUNNING, Status.RUNNING_DEGRADED}) | FINAL


@dataclass(frozen=True, slots=True)
class Extension(Owner):
    """Parameters of ``POST /session/{session}/extend``."""

    by: str | None = param("How much later its run-time limit comes; 1 hour.", default=None)


@dataclass(frozen=True, slots=True)
class Ending(Owner):
    """Parameters of ``DELETE /session/{session}``."""

    forced: bool = param("End it without waiting for its processes.", default=False)
    recursive: bool = param("End the sessions that depend on it as well.", default=False)


@dataclass(frozen=True, slots=True)
class Rename:
    """Parameters of ``POST /session/{session}/rename``."""

    name: str = param("The new name.", names=("name", "session_name"), max_length=200)


@dataclass(frozen=True, slots=True)
class Logs(Container):
    """Parameters of ``GET /session/{session}/logs``."""

    tail: int = param("Number of lines from the end.", default=1000, minimum=1, maximum=100_000)
    attempt: int | None = param("Which run; the last one by default.", default=None, minimum=1)


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
class Watching(Owner):
    """Parameters of ``GET /events/session``."""

    session: str | None = param(
        "Id or name of one session.",
        default=None,
        names=("sessionId", "sessionName", "name", "session_id"),
    )
    scope: str = param("Which events.", default="*", choices=("*", "session", "kernel"))


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
        self.answer(await offers.rehearse(self.principal, owner, given.request()))


class Session(ApiHandler):
    """One session."""

    paths = ("/session/{session}",)

    @endpoint("Describe a session", scope=Scope.SESSIONS_READ, parameters=Owner)
    async def get(self, session: str, given: Owner) -> None:
        """As Backend.AI's clients read it."""
        principal = await self.acting_for(given.owner_access_key)
        service = self.services.control.sessions
        detail = await service.get(principal, session)
        live = await self.services.control.observing.measures(principal, str(detail.session.id))
        self.answer(views.session_info(detail, self.services.now(), live.get(detail.main.id)))

    @endpoint("Run code in a session", scope=Scope.SESSIONS, parameters=Execution)
    async def post(self, session: str, given: Execution) -> None:
        """Polled with ``continue`` until it is finished; questions are answered with ``input``."""
        await execute(self, await self.acting_for(given.owner_access_key), session, given)

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


class SessionExtension(ApiHandler):
    """More time."""

    paths = ("/session/{session}/extend",)

    @endpoint("Keep a session from ending", scope=Scope.SESSIONS_EXTEND, parameters=Extension)
    async def post(self, session: str, given: Extension) -> None:
        """Idleness counts anew, and a run-time limit moves, within the policy."""
        principal = await self.acting_for(given.owner_access_key)
        row = await self.services.control.extensions.extend(
            principal, session, given.by, self.request_id
        )
        self.answer(views.extended(row, self.services.now()))


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
        rows = [
            {**views.session(each, now), "web_apps": web_apps(each, self.services)}
            for each in found
        ]
        self.answer({"sessions": rows, "total": total})


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
    SessionExtension,
    SessionRename,
    SessionAttempts,
    SessionLogs,
    SessionHistory,
    SessionWhy,
    SessionProgress,
    SessionApps,
    SessionList,
    SessionEvents,
)
