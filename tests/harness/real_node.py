"""A manager in this process and a real agent with the process engine, whose accelerators the test sets."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

from store import schema
from store.database import Store
from tests.harness.plane import REQUEST, TOKEN
from tests.unit.api.server import Api, serving

PERIJOVE = str(Path(sys.executable).parent / "perijove")


@asynccontextmanager
async def node(folder: Path, accelerators: Mapping[str, Mapping[str, Any]]) -> AsyncIterator[Api]:
    """The manager's API; the node is connected, and its sessions are ended with the block."""
    url = f"sqlite:///{folder / 'perijove.sqlite'}"
    await asyncio.to_thread(schema.upgrade, url)
    store = Store(url)
    async with serving(store, folder, agent=False) as api:
        agent = await asyncio.create_subprocess_exec(
            *(PERIJOVE, "agent", "--engine=process", "--agent-id=node-1"),
            f"--manager=http://{api.host}",
            f"--AgentConfig.volumes={{'local': '{folder / 'volume'}'}}",
            f"--AgentConfig.accelerators={dict(accelerators)!r}",
            "--AgentConfig.measure_interval=0.2",
            "--AgentConfig.stop_grace=0",
            env={**os.environ, "PERIJOVE_AGENT_TOKEN": TOKEN, "PERIJOVE_STATE": str(folder)},
        )
        try:
            await until(partial(_connected, api), bool)
            yield api
        finally:
            # An agent that stops leaves its kernels running.
            await until(partial(api.plane.plane.sessions.end_all, REQUEST), lambda left: left == 0)
            agent.terminate()
            await agent.wait()
    await store.close()


async def _connected(api: Api) -> bool:
    return api.plane.plane.agents.is_connected("node-1")


async def until(look: Callable[[], Awaitable[Any]], good: Callable[[Any], Any]) -> Any:
    """The answer of ``look`` as soon as it is ``good``."""
    seen = None
    try:
        async with asyncio.timeout(60):
            while not good(seen := await look()):
                await asyncio.sleep(0.05)
    except TimeoutError:
        raise AssertionError(f"still {seen!r}") from None
    return seen
