"""Blocking calls of the ``docker`` package in a small thread pool of their own.

A frozen engine can hold those threads but never the agent's loop.
"""

from __future__ import annotations

import asyncio
import functools
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


class Missing(EngineError):
    """The engine does not know the object."""


class Conflict(EngineError):
    """The name is taken, or the object is in another state."""


class Calls:
    """One connection to the engine; its errors become ``EngineError``, ``Missing`` or ``Conflict``."""

    def __init__(self) -> None:
        self._client: docker.DockerClient | None = None
        self._pool: ThreadPoolExecutor | None = None

    async def open(self) -> None:
        """Connect. Raises ``EngineError``."""
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="docker")
        self._client = await self.run(
            lambda: docker.from_env(timeout=CALL_TIMEOUT, max_pool_size=THREADS + 2)
        )

    async def close(self) -> None:
        """Close connections; containers go on."""
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
        loop = asyncio.get_running_loop()
        call = functools.partial(function, *arguments, **named)
        try:
            return await loop.run_in_executor(self._pool, call)
        except (NotFound, ImageNotFound) as error:
            raise Missing(str(error.explanation)) from error
        except APIError as error:
            if error.status_code == 409:
                raise Conflict(str(error.explanation)) from error
            retriable = error.is_server_error()
            raise EngineError(
                f"the Docker engine refused: {error.explanation}", retriable=retriable
            ) from error
        except (DockerException, RequestException, HTTPError) as error:
            raise EngineError(
                f"the Docker engine does not answer: {error}", retriable=True
            ) from error
