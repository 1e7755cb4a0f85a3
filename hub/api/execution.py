"""Code that programs run in a session: in polls, or over a WebSocket, in Backend.AI's shapes."""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import msgspec
from tornado.websocket import WebSocketClosedError, WebSocketHandler

from authenticator.principals import Principal, Scope
from authenticator.problems import BadRequest, Problem
from hub.api.apps import NORMAL, Socket
from hub.api.connections import CLOSED_BY_POLICY
from hub.api.endpoints import endpoint
from hub.api.handler import ApiHandler, problem_of
from hub.api.parameters import param
from hub.api.session_requests import Owner
from spawner.sessions.execution import MODES
from store.engine import StoreError

WAIT = 20.0
"""Seconds until a silent run is asked for again."""
MOST_ANSWERS = 100
"""Answers of a client that wait for a question; whoever sends more is cut off."""


class Start(msgspec.Struct):
    """The first frame of a WebSocket."""

    mode: str
    code: str = ""
    options: dict[str, Any] = {}


@dataclass(frozen=True, slots=True)
class Execution(Owner):
    """Parameters of ``POST /session/{session}``."""

    mode: str = param("What to do.", default="complete", choices=MODES)
    code: str | None = param("Code, or the answer to a question of the code.", default=None)
    run_id: str | None = param(
        "Run that goes on; none: a new one.", default=None, names=("runId", "run_id"), max_length=64
    )
    options: dict[str, object] = param("Commands of a batch: clean, build, exec.", factory=dict)

    def question(self) -> dict[str, Any]:
        """For the session. Raises ``BadRequest``."""
        if self.mode in ("continue", "input") and not self.run_id:
            raise BadRequest(f"runId is required with the mode {self.mode}")
        return {
            "mode": self.mode,
            "code": self.code or "",
            "runId": self.run_id,
            "options": dict(self.options),
        }


@dataclass(frozen=True, slots=True)
class Completion:
    """Parameters of ``POST /session/{session}/complete``."""

    code: str = param("Code up to the cursor.")
    options: dict[str, object] = param("Where the cursor is.", factory=dict)
    owner_access_key: str | None = param("Access key of the owner.", default=None)


class Complete(ApiHandler):
    """What may follow a piece of code."""

    paths = ("/session/{session}/complete",)

    @endpoint("Complete code in a session", scope=Scope.SESSIONS, parameters=Completion)
    async def post(self, session: str, given: Completion) -> None:
        """By the session's kernel, with what is defined in it."""
        principal = await self.acting_for(given.owner_access_key)
        question = {"mode": "complete", "code": given.code}
        answer = await self.services.control.execution.ask(principal, session, question)
        self.answer({"result": answer})


class Interrupt(ApiHandler):
    """The end of what runs."""

    paths = ("/session/{session}/interrupt",)

    @endpoint("Interrupt code that runs in a session", scope=Scope.SESSIONS, status=204)
    async def post(self, session: str) -> None:
        """As ^C does; harmless when nothing runs."""
        execution = self.services.control.execution
        await execution.ask(self.principal, session, {"mode": "interrupt"})
        self.answer_nothing()


class Execute(Socket):
    """One run, told as it goes."""

    paths = ("/stream/session/{session}/execute",)
    _session = ""
    _running: asyncio.Task[None] | None = None
    _over = False

    @endpoint("Run code over a WebSocket", scope=Scope.SESSIONS, produces="websocket")
    async def get(self, session: str) -> None:  # type: ignore[override]  # `endpoint` returns any awaitable
        """The first frame is the code with its mode; others answer its questions. Whoever leaves interrupts."""
        self.require_own_page()
        await self.services.control.apps.kernel(self.principal, session)
        self._session = session
        self._answers: asyncio.Queue[str] = asyncio.Queue(MOST_ANSWERS)
        await WebSocketHandler.get(self, session)

    def open(self, *args: str, **kwargs: str) -> None:
        """Nothing runs yet."""

    async def on_message(self, message: str | bytes) -> None:
        """Code first, then answers."""
        text = message if isinstance(message, str) else message.decode("utf-8", "replace")
        if self._running is None:
            self._running = asyncio.create_task(self._run(text))
        elif self._answers.full():
            self.close(CLOSED_BY_POLICY, f"{MOST_ANSWERS} answers wait for a question")
        else:
            self._answers.put_nowait(text)

    def on_close(self) -> None:
        """The client left: what still runs is interrupted."""
        if self._running is not None and not self._over:
            self._running.cancel()
            self._running = asyncio.create_task(self._give_up())

    async def _run(self, text: str) -> None:
        try:
            question = _first(text)
            while True:
                told = await self._ask(question)
                self._over = told["status"] == "finished"
                await self.write_message(json.dumps(told))
                if self._over:
                    break
                asked = told["status"] == "waiting-input"
                code = await self._answers.get() if asked else ""
                mode = "input" if asked else "continue"
                question = {"mode": mode, "code": code, "runId": told["runId"]}
        except WebSocketClosedError:
            return  # `on_close` interrupts what runs
        except (Problem, StoreError, LookupError, TypeError) as error:  # or an answer that is none
            self._over = True
            self.log_exception(type(error), error, error.__traceback__)
            told = {"status": "error", "msg": str(problem_of(error))}
            with suppress(WebSocketClosedError):
                await self.write_message(json.dumps(told))
        finally:
            self.close(NORMAL)

    async def _ask(self, question: dict[str, Any]) -> dict[str, Any]:
        execution = self.services.control.execution
        return await execution.ask(self.principal, self._session, {**question, "wait": WAIT})

    async def _give_up(self) -> None:
        try:
            await self._ask({"mode": "interrupt"})
        except (Problem, StoreError):
            return  # the session has ended meanwhile


def _first(text: str) -> dict[str, Any]:
    """The question of a first frame. Raises ``BadRequest``."""
    try:
        first = msgspec.json.decode(text, type=Start)
    except msgspec.DecodeError as error:
        raise BadRequest(str(error)) from error
    if first.mode not in ("query", "batch"):
        raise BadRequest(f"mode {first.mode[:80]!r}: query or batch")
    return msgspec.structs.asdict(first)


async def execute(
    handler: ApiHandler, principal: Principal, session: str, given: Execution
) -> None:
    """Answer ``POST /session/{session}``."""
    told = await handler.services.control.execution.ask(principal, session, given.question())
    handler.answer({"result": told})


HANDLERS = (Complete, Interrupt, Execute)
