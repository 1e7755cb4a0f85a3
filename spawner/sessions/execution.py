"""Code run in a session for programs: questions to the kernel that its app ``repl`` keeps (``perijove.execution``)."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any

from authenticator.principals import Principal
from authenticator.problems import AgentUnavailable, BadRequest, NotFound
from spawner.sessions.opening import AppService, Wish

APP = "repl"
KEY = "PERIJOVE_EXECUTION_KEY"
"""Name in the session's environment of what the app demands."""
MODES = ("query", "batch", "continue", "input", "complete")
ANSWER_TIMEOUT = 90.0
"""Seconds that an answer may take; the app itself waits two for something to tell."""
CHUNK = 65536
LONGEST_ANSWER = 32 * 1024 * 1024
"""Bytes. The app says less; but whoever works in a session can put anything in its place."""


class ExecutionService:
    """Asks in the name of a session's owner."""

    def __init__(self, apps: AppService) -> None:
        self._apps = apps

    async def ask(
        self, principal: Principal, ref: str, question: Mapping[str, Any]
    ) -> dict[str, Any]:
        """The app's answer. Raises ``NotFound`` for the session, ``BadRequest``, ``AgentUnavailable``."""
        kernel = await self._apps.kernel(principal, ref)
        key = kernel.spec.get("environ", {}).get(KEY)
        if key is None or APP not in {app["name"] for app in kernel.spec.get("apps", ())}:
            raise BadRequest(
                "this session's image cannot run code for programs: it has no app repl"
            )
        try:
            reader, writer = await self._apps.connect(principal, ref, Wish(APP))
        except NotFound as error:
            raise BadRequest(str(error)) from error
        try:
            writer.write(json.dumps({**question, "key": key}).encode() + b"\n")
            await writer.drain()
            async with asyncio.timeout(ANSWER_TIMEOUT):
                answer = json.loads(await _whole(reader))
            if not isinstance(answer, dict):
                raise ValueError("it is no object")
        except (OSError, ValueError, RecursionError) as error:
            raise AgentUnavailable(f"the session gave no answer: {error}") from error
        finally:
            writer.close()
        if "error" in answer:
            raise BadRequest(str(answer["error"]))
        return answer


async def _whole(reader: asyncio.StreamReader) -> bytes:
    """What comes until the end. Raises ``ValueError`` for too much."""
    found = bytearray()
    while chunk := await reader.read(CHUNK):
        found += chunk
        if len(found) > LONGEST_ANSWER:
            raise ValueError(f"it is longer than {LONGEST_ANSWER} bytes")
    return bytes(found)
