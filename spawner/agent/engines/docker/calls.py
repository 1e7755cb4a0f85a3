"""Blocking calls of the ``docker`` package in a small thread pool of their own.

A frozen engine can hold those threads but never the agent's loop. What takes long by its nature, the end of a
container above all, has a thread for itself: starts and looks do not queue behind it.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import docker
from docker.errors import APIError, DockerException, ImageNotFound, NotFound
from requests.exceptions import RequestException
from urllib3.exceptions import HTTPError

from spawner.agent.engines.base import EngineError

T = TypeVar("T")

CALL_TIMEOUT = 60
THREADS = 8
PING_TIMEOUT = 5
NO_RUNTIME = "could not select device driver"
WITHOUT_RUNTIME = "this node needs its vendor's container toolkit, or another way to inject devices"
"""What Docker means by ``NO_RUNTIME``, for those who never heard of its drivers."""


class Outages:
    """When the engine did not answer, of late."""

    MARGIN = 10.0
    """Seconds before the first call that failed: an engine that ends is not asked in that very moment."""

    def __init__(self) -> None:
        self._since: float | None = None
        self._over: deque[tuple[float, float]] = deque(maxlen=8)

    def failed(self) -> None:
        """A call was not answered."""
        if self._since is None:
            self._since = time.time()

    def answered(self) -> None:
        """A call was answered."""
        if self._since is not None:
            self._over.append((self._since, time.time()))
            self._since = None

    def cover(self, moment: float) -> bool:
        """Whether the engine was away at ``moment``, in seconds since the epoch, or went soon after."""
        return any(since - self.MARGIN <= moment <= until for since, until in self._over)


class Missing(EngineError):
    """The engine does not know the object."""


FULL = "no space left on device"
"""The engine's words for a full disk: it stays full while a call is repeated."""


class Conflict(EngineError):
    """The name is taken, or the object is in another state."""


class Calls:
    """One connection to the engine; its errors become ``EngineError``, ``Missing`` or ``Conflict``."""

    def __init__(self) -> None:
        self._client: docker.DockerClient | None = None
        self._hasty: docker.DockerClient | None = None
        self._pool: ThreadPoolExecutor | None = None
        self.outages = Outages()

    async def open(self) -> None:
        """Connect. Raises ``EngineError``."""
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="docker")
        self._client = await self.run(
            lambda: docker.from_env(timeout=CALL_TIMEOUT, max_pool_size=THREADS + 2)
        )

    async def ping(self) -> None:
        """Whether the engine takes new connections, apart from all other calls. Raises ``EngineError``.

        One that ends still answers on connections that it has, and ends containers meanwhile.
        """

        def ask() -> None:
            if self._hasty is None:
                self._hasty = docker.from_env(timeout=PING_TIMEOUT)
                self._hasty.api.headers["Connection"] = "close"
            self._hasty.ping()

        try:
            await asyncio.to_thread(ask)
        except (APIError, DockerException, RequestException, HTTPError) as error:
            self.outages.failed()
            raise EngineError(f"the Docker engine does not answer: {error}") from error

    async def close(self) -> None:
        """Close connections; containers go on."""
        if self._hasty is not None:
            self._hasty.close()
        if self._client is not None:
            client, self._client = self._client, None
            await self.run(client.close)
        if self._pool is not None:
            pool, self._pool = self._pool, None
            pool.shutdown(wait=False, cancel_futures=True)

    @property
    def client(self) -> docker.DockerClient:
        """The client. Raises ``EngineError`` while there is none."""
        if self._client is None:
            raise EngineError("the Docker engine is not connected")
        return self._client

    async def run(self, function: Callable[..., T], *arguments: Any, **named: Any) -> T:
        """Run a blocking call in the pool."""
        return await self._run(self._pool, functools.partial(function, *arguments, **named))

    async def wait(self, function: Callable[..., T], *arguments: Any) -> T:
        """Run one that may take long in a thread of its own, which ends with it."""
        pool = ThreadPoolExecutor(1, thread_name_prefix="docker-patient")
        try:
            return await self._run(pool, functools.partial(function, *arguments))
        finally:
            pool.shutdown(wait=False)

    async def stop(self, container: str, seconds: int) -> None:
        """Let a container end: SIGTERM, after some seconds SIGKILL. Raises ``EngineError``, ``Missing``."""
        connect = functools.partial(
            docker.from_env, version=self.client.api.api_version, timeout=CALL_TIMEOUT
        )

        def stop() -> None:
            with contextlib.closing(
                connect()
            ) as client:  # else each keeps a connection of the pool's
                client.api.stop(container, timeout=seconds)

        await self.wait(stop)

    async def _run(self, pool: ThreadPoolExecutor | None, call: Callable[[], T]) -> T:
        try:
            answer = await asyncio.get_running_loop().run_in_executor(pool, call)
            self.outages.answered()
            return answer
        except (NotFound, ImageNotFound) as error:
            self.outages.answered()
            raise Missing(str(error.explanation)) from error
        except APIError as error:
            if error.status_code == 409:
                raise Conflict(str(error.explanation)) from error
            told = f"the Docker engine refused: {error.explanation}"
            if NO_RUNTIME in told:
                raise EngineError(f"{told}; {WITHOUT_RUNTIME}", retriable=False) from error
            retriable = error.is_server_error() and FULL not in told
            raise EngineError(told, retriable=retriable) from error
        except (DockerException, RequestException, HTTPError) as error:
            self.outages.failed()
            raise EngineError(
                f"the Docker engine does not answer: {error}", retriable=True
            ) from error
