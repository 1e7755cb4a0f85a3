"""What sessions use: their measures and their processes."""

from __future__ import annotations

from authenticator.principals import Scope
from hub.api.endpoints import endpoint
from hub.api.handler import ApiHandler
from hub.api.session_requests import Container, Owner


class SessionStatistics(ApiHandler):
    """What it uses."""

    paths = ("/session/{session}/stats",)

    @endpoint("Newest measures of a session", scope=Scope.SESSIONS_READ, parameters=Owner)
    async def get(self, session: str, given: Owner) -> None:
        """By kernel and metric; after the end the last ones."""
        principal = await self.acting_for(given.owner_access_key)
        found = await self.services.control.observing.measures(principal, session)
        self.answer({"kernels": {str(kernel): metrics for kernel, metrics in found.items()}})


class SessionProcesses(ApiHandler):
    """What runs in it."""

    paths = ("/session/{session}/processes",)

    @endpoint(
        "Processes in one of a session's containers",
        scope=Scope.SESSIONS_READ,
        parameters=Container,
    )
    async def get(self, session: str, given: Container) -> None:
        """Those that used most CPU time first; none when it does not run."""
        principal = await self.acting_for(given.owner_access_key)
        found = await self.services.control.observing.processes(principal, session, given.kernel)
        self.answer({"processes": found})


HANDLERS = (SessionStatistics, SessionProcesses)
