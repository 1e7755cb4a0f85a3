"""What the hub tells about a start while it happens, and how a failed one is explained."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from html import escape
from typing import Any

from jupyterhub.spawner import SpawnException

from authenticator.problems import InvalidParameters
from spawner.client import End, Refusal, Step
from spawner.options import sentence

MAX_EVENTS = 500
LOG_TAIL_LINES = 40
LOG_TAIL_CHARACTERS = 6000
QUOTED = "Last lines of its output:"
"""Before the end of the session's output in the manager's message; the whole log says it better."""
LOG_HEADING = "\nLast lines of its log:\n"
PROGRESS_CEILING = 95
"""The hub itself says 100, once the server answers."""

REASONS = {401: "configuration", 403: "forbidden", 404: "not-found", 412: "quota"}


class StartStory:
    """The events of one start, for any number of listeners, each from the beginning.

    Events are those of ``Spawner.progress``; ``status`` and ``at`` are added for our page.
    """

    def __init__(self) -> None:
        self._events: list[dict[str, Any]] = []
        self._dropped = 0
        self._closed = False
        self._news = asyncio.Event()

    @property
    def untold(self) -> bool:
        """Whether nothing has been told yet."""
        return not self._events and not self._closed

    def tell(
        self, message: str, status: str = "", progress: int | None = None, at: Any = None
    ) -> None:
        """Add an event, unless it repeats the last one."""
        event: dict[str, Any] = {"message": sentence(message), "status": status}
        if progress is not None:
            event["progress"] = max(0, min(PROGRESS_CEILING, progress))
        last = self._events[-1] if self._events else {}
        if all(last.get(key) == event.get(key) for key in ("message", "status")):
            return
        if at is not None:
            event["at"] = at
        self._events.append(event)
        if len(self._events) > MAX_EVENTS:
            del self._events[1]
            self._dropped += 1
        self._wake()

    def step(self, step: Step) -> None:
        """Tell an event of the manager."""
        self.tell(step.message or step.status, step.status, step.progress, step.at)

    def close(self) -> None:
        """No more events follow; listeners come to their end."""
        self._closed = True
        self._wake()

    async def listen(self) -> AsyncIterator[dict[str, Any]]:
        """All events from the first, then each as it comes, until the story is closed."""
        told = 0
        while True:
            while told < len(self._events) + self._dropped:
                # Old events are dropped behind the first one, so positions shift by that many.
                position = max(told - self._dropped, 1) if told else 0
                told = position + self._dropped + 1
                yield dict(self._events[position])
            if self._closed:
                return
            await self._news.wait()

    def _wake(self) -> None:
        self._news.set()
        self._news = asyncio.Event()


class StartRefused(SpawnException):
    """A start that was refused or failed: a sentence, HTML for pages, a reason label for metrics."""

    def __init__(
        self,
        message: str,
        *,
        reason: str,
        status_code: int = 400,
        html: str = "",
        fields: dict[str, str] | None = None,
    ) -> None:
        html = html or escape(message)
        # The hub's log gets one line, and none of what a session wrote.
        line = " ".join(message.partition(LOG_HEADING)[0].split())
        super().__init__(
            message, reason=reason, log_message=line, message_html=html, status_code=status_code
        )
        self.jupyterhub_message = message
        self.jupyterhub_html_message = html
        self.fields = fields or {}


def invalid_options(problem: InvalidParameters) -> StartRefused:
    """The refusal of malformed or impossible options: HTTP 400, all fields in one sentence."""
    sentence = problem.sentence()
    rows = "".join(
        f"<li><strong>{escape(name)}</strong> {escape(why)}</li>"
        for name, why in problem.fields.items()
    )
    html = f'Please change your choice:<ul class="mb-0">{rows}</ul>'
    return StartRefused(sentence, reason="invalid-options", html=html, fields=problem.fields)


def refused(refusal: Refusal) -> StartRefused:
    """What the user is told when the manager refuses the session."""
    if refusal.slug == "invalid-api-params" and refusal.fields:
        return invalid_options(InvalidParameters(refusal.fields))
    reason = REASONS.get(refusal.status, "refused")
    if reason == "configuration":
        return StartRefused(
            "The hub may not talk to the manager: an administrator must check the hub secret.",
            reason=reason,
            status_code=500,
        )
    return StartRefused(refusal.message, reason=reason, status_code=refusal.status)


def never_fits(message: str, fields: dict[str, str]) -> StartRefused:
    """The refusal of a request that no node could ever hold."""
    return StartRefused(sentence(message), reason="capacity", fields=fields)


def ended_early(end: End, log: str) -> StartRefused:
    """The failure of a session that ended before it could be used: cause, what to do, last lines of its log."""
    cause, _, quoted = end.message.partition(QUOTED)
    cause = cause.rstrip(" .:") or f"the session is {end.status}"
    if end.status == "CANCELLED":
        return StartRefused(
            f"The start was cancelled: {cause}", reason="cancelled", status_code=409
        )
    code = end.exit_code
    if code is not None and "exit code" not in cause:
        cause += f" (exit code {code})"
    message = f"The session ended while it was starting: {cause}."
    advice = (
        "Start it again; if it fails in the same way, choose more memory or another image, "
        "or show this page to an administrator."
    )
    lines = (log.strip() or quoted.strip())[-LOG_TAIL_CHARACTERS:].splitlines()[-LOG_TAIL_LINES:]
    html = f"<strong>{escape(message)}</strong><br>{advice}"
    if lines:
        tail = escape("\n".join(lines))
        html += (
            '<details class="perijove-log" open><summary>Last lines of its log</summary>'
            f"<pre>{tail}</pre></details>"
        )
        message += LOG_HEADING + "\n".join(lines)
    reason = "start-failed" if end.status == "ERROR" else "exited"
    return StartRefused(f"{message}\n{advice}", reason=reason, html=html, status_code=500)
