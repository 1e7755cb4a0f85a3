"""One start of a session, from the request to its URL, patient with a manager that is away."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from contextlib import aclosing
from functools import partial
from typing import Any, TypeVar

from spawner.client import RUNNING, End, ManagerClient, Refusal, Server, Unreachable
from spawner.starting import PROGRESS_CEILING, StartStory, ended_early

T = TypeVar("T")
AWAY = "The manager does not answer; your request is kept and tried again."
LOG_PATIENCE = 5.0
LONGEST_PAUSE = 5.0


class Launch:
    """Starts, follows and ends the session called ``name`` of ``user``, telling ``story``."""

    def __init__(
        self, client: ManagerClient, hub: str, user: str, name: str, log: logging.Logger
    ) -> None:
        self.client = client
        self.hub = hub
        self.user = user
        self.name = name
        self.log = log
        self.story = StartStory()
        self._submission: asyncio.Task[tuple[str, bool]] | None = None

    async def find(self) -> Server | None:
        """The newest session of the name, asked of the manager now."""
        return await self.client.server(self.user, self.hub, self.name)

    async def answered(self, ask: Callable[[], Awaitable[T]]) -> T:
        """The answer to ``ask``, asked again for as long as the manager is away."""
        pause = 0.2
        while True:
            try:
                return await ask()
            except Unreachable as error:
                self.log.warning("Waiting for the manager to start %s: %s", self.name, error)
                self.story.tell(AWAY)
            await asyncio.sleep(pause)
            pause = min(pause * 2, LONGEST_PAUSE)

    async def submit(self, body: Mapping[str, Any]) -> str:
        """Ask for the session; answers its id. Asking twice comes to the same session."""
        return await self.answered(lambda: self._submit(body))

    async def _submit(self, body: Mapping[str, Any]) -> str:
        # Shielded: a start that is cancelled must not leave a request on its way that nobody waits
        # for; `end` waits for it before it looks for the session.
        self._submission = asyncio.ensure_future(self.client.create(self.user, body))
        session_id, _ = await asyncio.shield(self._submission)
        return session_id

    async def clear_name(self) -> None:
        """End a session that an earlier start left behind: its token is no longer valid."""
        left = await self.answered(self.find)
        if left is None or left.ended:
            return
        self.log.warning("Ending session %s (%s), left from before", left.id, self.name)
        self.story.tell("Ending the session that was left from before")
        while left is not None and not left.ended:
            if not left.ending:
                await self.answered(partial(self.client.destroy, self.user, left.id))
            await asyncio.sleep(0.3)
            left = await self.answered(self.find)

    async def until_running(self, session_id: str) -> str:
        """Follow the session until it runs; answers its URL. Raises ``StartRefused`` when it ended."""
        end = await self._follow(session_id)
        if end.url is not None:
            self.story.tell("Waiting for the server to answer", "RUNNING", PROGRESS_CEILING)
            return end.url
        try:
            async with asyncio.timeout(LOG_PATIENCE):
                log = await self.client.logs(self.user, session_id)
        except (Unreachable, Refusal, TimeoutError):
            log = ""
        raise ended_early(end, log)

    async def _follow(self, session_id: str) -> End:
        """Tell progress until the session runs or ended, by the stream and, where it breaks, by asking."""
        seen = -1
        pause = 0.1
        while True:
            try:
                async with aclosing(self.client.progress(self.user, session_id)) as stream:
                    async for item in stream:
                        if isinstance(item, End):
                            if item.url is not None or item.status not in RUNNING:
                                return item
                        elif item.id > seen:
                            seen, pause = item.id, 0.1
                            self.story.step(item)
            except (Unreachable, Refusal) as error:
                self.log.debug("Progress of %s: %s", self.name, error)
            try:
                server = await self.find()
            except Unreachable:
                self.story.tell(AWAY)
            else:
                if server is None or server.id != session_id:
                    return End("TERMINATED", "the manager no longer knows the session")
                if server.running or server.ended:
                    url = server.url if server.running else None
                    return End(server.status, server.message, url, server.exit_code)
                self.story.tell(server.message or server.status, server.status, server.progress)
            await asyncio.sleep(pause)
            pause = min(pause * 2, LONGEST_PAUSE)

    async def end(self, *, now: bool, timeout: float) -> None:
        """End the session, also a queued one; returns when nothing of it is left.

        After half of ``timeout`` seconds (at once with ``now``) it is ended by force. Raises
        ``TimeoutError`` when it was still there, or the manager away, after all of them.
        """
        if self._submission is not None:
            await asyncio.wait([self._submission], timeout=timeout)
            self._submission = None
        clock = asyncio.get_running_loop().time
        began = clock()
        asked: set[bool] = set()
        pause = 0.05
        while True:
            forced = now or clock() - began > timeout / 2
            try:
                server = await self.find()
                if server is None or server.ended:
                    return
                if forced not in asked or not server.ending:
                    await self.client.destroy(self.user, server.id, forced=forced)
                    asked.add(forced)
            except (Unreachable, Refusal) as error:
                self.log.warning("Cannot end session %s yet: %s", self.name, error)
            if clock() - began > timeout:
                raise TimeoutError(
                    f"session {self.name} could not be ended within {timeout:g} s;"
                    " the next start of this server ends it"
                )
            await asyncio.sleep(pause)
            pause = min(pause * 1.6, 1.0)
