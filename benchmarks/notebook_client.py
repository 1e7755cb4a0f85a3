"""A client that does what a browser does for a first cell: spawn, wait, start a kernel, run code.

Times are wall seconds on this machine's monotonic clock.
"""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from dataclasses import dataclass

import aiohttp

DEADLINE = 240.0


@dataclass(frozen=True, slots=True)
class HubAccess:
    """Where a hub is reached through its proxy, and a token that may start servers of everybody."""

    url: str
    """Ends without a slash."""
    token: str

    def headers(self) -> dict[str, str]:
        """Authorization for the hub's API and for servers."""
        return {"Authorization": f"token {self.token}"}


@dataclass(frozen=True, slots=True)
class Answered:
    """How long a first cell took, in seconds from the POST of the spawn."""

    ready: float
    """Until the hub called the server ready."""
    answered: float
    """Until the result of the cell was there."""


async def create_user(http: aiohttp.ClientSession, hub: HubAccess, user: str) -> None:
    """Make the user known to the hub; harmless when it is there."""
    async with http.post(f"{hub.url}/hub/api/users/{user}", headers=hub.headers()) as answer:
        if answer.status not in (201, 409):
            raise RuntimeError(f"create user {user}: {answer.status} {await answer.text()}")


async def first_answer(
    http: aiohttp.ClientSession, hub: HubAccess, user: str, options: dict[str, object]
) -> Answered:
    """From the POST of the spawn to the answer of ``1+1`` over the proxy's WebSocket."""
    async with asyncio.timeout(DEADLINE):
        begin = time.monotonic()
        api = f"{hub.url}/hub/api/users/{user}/server"
        body = {"user_options": options}
        async with http.post(api, headers=hub.headers(), json=body) as answer:
            if answer.status not in (201, 202):
                raise RuntimeError(f"spawn for {user}: {answer.status} {await answer.text()}")
        await _ready(http, hub, user)
        ready = time.monotonic() - begin
        await _run(http, hub, user, "1+1", "2")
        return Answered(ready, time.monotonic() - begin)


async def stop(http: aiohttp.ClientSession, hub: HubAccess, user: str) -> None:
    """Stop the user's server and wait until the hub says that it is gone."""
    async with asyncio.timeout(DEADLINE):
        api = f"{hub.url}/hub/api/users/{user}"
        async with http.delete(f"{api}/server", headers=hub.headers()) as answer:
            if answer.status not in (202, 204):
                raise RuntimeError(f"stop for {user}: {answer.status} {await answer.text()}")
        while True:
            async with http.get(api, headers=hub.headers()) as answer:
                model = await answer.json()
            if not model["servers"]:
                return
            await asyncio.sleep(0.2)


async def _ready(http: aiohttp.ClientSession, hub: HubAccess, user: str) -> None:
    """Follow the hub's progress events until the server is ready."""
    api = f"{hub.url}/hub/api/users/{user}/server/progress"
    async with http.get(api, headers=hub.headers()) as answer:
        answer.raise_for_status()
        async for line in answer.content:
            if not line.startswith(b"data:"):
                continue
            event = json.loads(line[5:])
            if event.get("ready"):
                return
            if event.get("failed"):
                raise RuntimeError(f"spawn for {user} failed: {event.get('message')}")
    raise RuntimeError(f"spawn for {user}: progress ended without an answer")


async def _run(
    http: aiohttp.ClientSession, hub: HubAccess, user: str, code: str, expected: str
) -> None:
    """Start a kernel, run ``code`` over its WebSocket and check the result."""
    server = f"{hub.url}/user/{user}"
    async with http.post(f"{server}/api/kernels", headers=hub.headers(), json={}) as answer:
        answer.raise_for_status()
        kernel = (await answer.json())["id"]
    session = uuid.uuid4().hex
    channel = f"{server}/api/kernels/{kernel}/channels?session_id={session}"
    async with http.ws_connect(channel, headers=hub.headers()) as socket:
        message_id = uuid.uuid4().hex
        await socket.send_json(_execute_request(session, message_id, code))
        async for frame in socket:
            if frame.type is not aiohttp.WSMsgType.TEXT:
                continue
            message = json.loads(frame.data)
            mine = message["parent_header"].get("msg_id") == message_id
            if mine and message["msg_type"] == "execute_result":
                text = message["content"]["data"]["text/plain"]
                if text != expected:
                    raise RuntimeError(f"{code} gave {text}, not {expected}")
                return
    raise RuntimeError(f"the kernel of {user} closed its WebSocket without an answer")


def _execute_request(session: str, message_id: str, code: str) -> dict[str, object]:
    return {
        "channel": "shell",
        "header": {
            "msg_id": message_id,
            "msg_type": "execute_request",
            "session": session,
            "username": "",
            "version": "5.3",
        },
        "parent_header": {},
        "metadata": {},
        "content": {"code": code, "silent": False, "store_history": False},
    }
