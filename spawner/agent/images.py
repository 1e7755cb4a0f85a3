"""Images on this node at the manager's word: pulled, removed, made of kernels.

What takes long goes on in the background; ``image_tasks`` tells how far it is. An agent that restarts has
forgotten its tasks: what they made shows in the images, what they did not can be asked for again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import Any

from spawner.agent.calls import Calls
from spawner.agent.engines.base import Engine, EngineError
from spawner.agent.protocol import ImagePull

KEPT = 50
"""Tasks that ended and can still be asked about."""
RUNNING, DONE, FAILED = "running", "done", "failed"

log = logging.getLogger(__name__)


@dataclass(slots=True)
class ImageTask:
    """A pull or a commit."""

    what: str
    name: str
    state: str = RUNNING
    message: str = ""


class ImageTasks:
    """Offers ``pull_image``, ``remove_image``, ``commit`` and ``image_tasks`` to the manager.

    ``pull_image``: ``{"name", "username", "password", "digest"}``; ``commit``: ``{"kernel_id", "name",
    "labels"}``; ``remove_image``: ``{"name"}``; ``image_tasks``: ``{"name"}``. The first two answer at once.
    """

    def __init__(self, engine: Engine, calls: Calls, changed: Callable[[], None]) -> None:
        """``changed`` is called when the images may be others than before."""
        self._engine, self._calls, self._changed = engine, calls, changed
        self._tasks: dict[tuple[str, str], ImageTask] = {}
        self._running: set[asyncio.Task[None]] = set()
        calls.offer("pull_image", self._pull)
        calls.offer("remove_image", self._remove)
        calls.offer("commit", self._commit)
        calls.offer("image_tasks", self._list)

    async def close(self) -> None:
        """Follow nothing any more."""
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)

    async def _pull(self, params: Mapping[str, Any]) -> dict[str, str]:
        name = str(params["name"])
        how = ImagePull(
            str(params.get("username") or ""),
            str(params.get("password") or ""),
            params.get("digest"),
        )

        async def work(task: ImageTask) -> None:
            async for sentence in self._engine.ensure_image(name, how):
                task.message = sentence

        return self._begin(ImageTask("pull", name), work)

    async def _commit(self, params: Mapping[str, Any]) -> dict[str, str]:
        identity = self._calls.running(params)
        name, labels = str(params["name"]), dict(params["labels"])

        async def work(task: ImageTask) -> None:
            task.message = "writing the image"
            made = await self._engine.commit(identity, name, labels)
            task.message = f"{made.size_bytes / 1e6:.0f} MB"

        return self._begin(ImageTask("commit", name), work)

    async def _remove(self, params: Mapping[str, Any]) -> None:
        await self._engine.remove_image(str(params["name"]))
        self._changed()

    async def _list(self, params: Mapping[str, Any]) -> list[dict[str, str]]:
        name = params.get("name")
        return [_plain(each) for each in self._tasks.values() if name in (None, each.name)]

    def _begin(
        self, task: ImageTask, work: Callable[[ImageTask], Coroutine[Any, Any, None]]
    ) -> dict[str, str]:
        """Start a task unless the same one runs."""
        present = self._tasks.get((task.what, task.name))
        if present is not None and present.state == RUNNING:
            return _plain(present)
        self._tasks.pop((task.what, task.name), None)
        self._tasks[(task.what, task.name)] = task
        for key in [k for k, each in self._tasks.items() if each.state != RUNNING][:-KEPT]:
            del self._tasks[key]

        async def run() -> None:
            try:
                await work(task)
            except EngineError as error:
                log.warning("%s of the image %s failed: %s", task.what, task.name, error)
                task.state, task.message = FAILED, str(error)
            except Exception as error:  # it must not count as running for ever
                log.error("%s of the image %s failed", task.what, task.name, exc_info=error)
                task.state, task.message = FAILED, f"the node failed: {type(error).__name__}"
            else:
                task.state = DONE
            self._changed()

        running = asyncio.create_task(run(), name=f"{task.what}-{task.name}")
        self._running.add(running)
        running.add_done_callback(self._running.discard)
        return _plain(task)


def _plain(task: ImageTask) -> dict[str, str]:
    return {"what": task.what, "name": task.name, "state": task.state, "message": task.message}
