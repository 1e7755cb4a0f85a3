"""Questions of the manager to an agent, by method name; each answers with a value or raises a sentence.

``logs``: ``{"kernel_id", "tail"}`` -> text, the last lines of its output. ``spawner.agent.images`` adds those
about images.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from spawner.agent.engines.base import Engine, EngineError, Identity
from spawner.agent.kernels import Kernels
from spawner.agent.protocol import MAX_FRAME_BYTES, Answer, Call, encode

MAX_LOG_LINES = 10_000
MAX_LOG_CHARACTERS = MAX_FRAME_BYTES // 8
"""One may take six bytes of a frame."""
Method = Callable[[Mapping[str, Any]], Awaitable[Any]]
log = logging.getLogger(__name__)


@dataclass(slots=True)
class Calls:
    """The methods of one agent; other modules add theirs with ``offer``."""

    engine: Engine
    kernels: Kernels
    _methods: dict[str, Method] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.offer("logs", self._logs)

    def offer(self, name: str, method: Method) -> None:
        """Answer calls of ``name`` with ``method``, which raises ``EngineError`` or ``ValueError``."""
        self._methods[name] = method

    async def answer(self, call: Call) -> Answer:
        """Answer a question; an error is an answer too, so that nobody waits for one in vain."""
        method = self._methods.get(call.method)
        if method is None:
            known = ", ".join(sorted(self._methods))
            return Answer(
                call.call_id, error=f"method {call.method!r} is not known; there are {known}"
            )
        try:
            answer = Answer(call.call_id, value=await method(call.params))
            size = len(encode(answer).encode())
        except (EngineError, ValueError) as error:
            return Answer(call.call_id, error=str(error))
        except Exception as error:
            log.error("the call %s failed", call.method, exc_info=error)
            return Answer(call.call_id, error=f"the node failed: {type(error).__name__}")
        if size > MAX_FRAME_BYTES:
            return Answer(call.call_id, error=f"the answer has {size} bytes, which is too much")
        return answer

    def running(self, params: Mapping[str, Any]) -> Identity:
        """The run that ``params["kernel_id"]`` names. Raises ``ValueError`` if it is not here."""
        kernel_id = params.get("kernel_id")
        for report in self.kernels.reports():
            if report.kernel_id == kernel_id:
                return Identity(report.kernel_id, report.session_id, report.epoch)
        raise ValueError(f"there is no kernel {kernel_id!r} on this node")

    async def _logs(self, params: Mapping[str, Any]) -> str:
        tail = min(MAX_LOG_LINES, max(1, int(params.get("tail", 1000))))
        text = await self.engine.logs(self.running(params), tail)
        return text[-MAX_LOG_CHARACTERS:]
