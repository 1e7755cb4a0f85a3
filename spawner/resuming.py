"""A hub that starts again while a session of its waits in the queue goes on as if it had never stopped.

JupyterHub checks its servers when it starts: it polls, asks ``get_url`` and waits for the answer without a
limit. Meanwhile the server is "pending check", in which JupyterHub 6.1 shows no progress, refuses a second
start and answers a stop with HTTP 500. A ``ResumedStart`` presents the check as the pending spawn that it is:
progress, start and cancel then work as before the restart. It leans on four attributes of JupyterHub's
Spawner (``_spawn_pending``, ``_spawn_future``, ``_check_pending``, ``_server``); the integration tests in
``tests/integration/spawner/test_restart.py`` hold JupyterHub to them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TYPE_CHECKING, Any

import jupyterhub
from jupyterhub.objects import Server as HubServer

from spawner.starting import StartRefused

if TYPE_CHECKING:
    from spawner.spawner import PerijoveSpawner


class _Given:
    """An answer of a server, as far as JupyterHub looks at one."""

    headers = {"X-JupyterHub-Version": jupyterhub.__version__}  # noqa: RUF012 - read only


class _CancelledServer(HubServer):
    """Stands in for a server whose start was cancelled, so that the hub's check ends without a stop of its own."""

    async def wait_up(self, *args: Any, **kwargs: Any) -> Any:
        return _Given()


class _FailedServer(HubServer):
    """Stands in for a server that will never come up, so that the hub's check need not wait to see it."""

    async def wait_up(self, *args: Any, **kwargs: Any) -> Any:
        raise TimeoutError("the session ended before it ran")


class ResumedStart:
    """The rest of a start that an earlier hub process began."""

    def __init__(self, spawner: PerijoveSpawner) -> None:
        self.spawner = spawner
        self.future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        # The future is for handlers that may or may not look at it.
        self.future.add_done_callback(lambda f: f.cancelled() or f.exception())

    async def url(self, waiting: Awaitable[str]) -> str:
        """The URL that ``waiting`` comes to; the hub's own (useless) one when it fails or is cancelled.

        On failure JupyterHub then stops and cleans up the server; on cancellation its handler does.
        """
        spawner = self.spawner
        spawner._spawn_pending = True
        spawner._spawn_future = self.future
        task = asyncio.ensure_future(waiting)
        either: list[asyncio.Future[Any]] = [task, self.future]
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if self.future.cancelled():
            task.cancel()
            await asyncio.wait([task])
            spawner._spawn_pending = False
            spawner._spawn_future = None
            return self._stand_in(_CancelledServer)
        try:
            return task.result()
        except StartRefused as failure:
            spawner.log.error("Not starting %s: %s", spawner._log_name, failure)
            self.future.set_exception(failure)
            return self._stand_in(_FailedServer)

    async def finish(self) -> None:
        """The server answers: give it its route (JupyterHub would only at its next check) and end the start."""
        spawner = self.spawner
        if self.future.done():
            return
        proxy = spawner.user.settings.get("proxy")
        try:
            if proxy is not None:
                await proxy.add_user(spawner.user, spawner.name)
        except Exception:
            spawner.log.warning("No route for %s yet", spawner._log_name, exc_info=True)
        spawner._spawn_pending = False
        spawner._spawn_future = None
        if not self.future.done():
            self.future.set_result(None)

    def abandon(self) -> None:
        """The server was stopped while it was being resumed."""
        if not self.future.done():
            self.future.set_exception(
                StartRefused("The server was stopped while it started.", reason="stopped")
            )

    def _stand_in(self, kind: type[HubServer]) -> str:
        server = kind(orm_server=self.spawner.orm_spawner.server)
        self.spawner._server = server
        return str(server.url)
