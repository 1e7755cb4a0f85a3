"""Pulls of images: one for all who want it, with progress, again after a break, by digest where one is approved.

The engine keeps the layers that came, so a pull that is begun again goes on where it broke off.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator
from typing import Any

import docker
from docker.errors import DockerException
from docker.utils import parse_repository_tag
from requests.exceptions import RequestException
from urllib3.exceptions import HTTPError

from spawner.agent.engines.base import EngineError
from spawner.agent.engines.docker.calls import FULL, Calls
from spawner.agent.protocol import ImagePull

ATTEMPTS = 6
PAUSE = 1.0
"""Seconds before a broken pull is begun again; twice as many before each further one."""
FINAL = ("not found", "manifest unknown", "denied", "unauthorized", "invalid reference", FULL)
"""Words of an engine's error after which asking again is useless."""


def full_name(name: str) -> str:
    """The name with its tag: none means ``latest``."""
    return name if "@" in name or ":" in name.rpartition("/")[2] else f"{name}:latest"


class Pulls:
    """Pulls under way by name and digest."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls
        self._running: dict[tuple[str, str | None], _Pull] = {}

    async def follow(self, name: str, how: ImagePull) -> AsyncIterator[str]:
        """Sentences about the pull of ``name`` until it is there. Raises ``EngineError``.

        A follower that leaves does not end the pull: what came is kept, and others may wait for it.
        """
        key = (name, how.digest)
        pull = self._running.get(key)
        if pull is None:
            pull = self._running[key] = _Pull(self._calls, name, how)
            pull.task.add_done_callback(lambda _: self._running.pop(key, None))
        async for sentence in pull.sentences():
            yield sentence
        if how.digest is not None and "@" not in name:
            repository, tag = parse_repository_tag(full_name(name))
            tagged, got = self._calls.client.api.tag, f"{repository}@{how.digest}"
            await self._calls.run(tagged, got, repository, tag)

    async def digests(self, name: str) -> tuple[str, ...]:
        """The digests under which an image that is here was got. Raises ``Missing``."""
        facts = await self._calls.run(self._calls.client.api.inspect_image, name)
        return tuple(each.rpartition("@")[2] for each in facts.get("RepoDigests") or ())

    def close(self) -> None:
        """Follow nothing any more."""
        for pull in list(self._running.values()):
            pull.task.cancel()


class _Pull:
    """One pull and the last sentence about it."""

    def __init__(self, calls: Calls, name: str, how: ImagePull) -> None:
        self._calls, self._name, self._how = calls, name, how
        self._sentence = f"pulling the image {name}"
        self._news = asyncio.Event()
        self.task = asyncio.create_task(self._run(), name=f"pull-{name}")

    async def sentences(self) -> AsyncIterator[str]:
        """The last sentence, then each new one, until it is done. Raises ``EngineError``."""
        told = ""
        while not self.task.done():
            if self._sentence != told:
                told = self._sentence
                yield told
            news = asyncio.ensure_future(self._news.wait())
            try:
                await asyncio.wait({news, self.task}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                news.cancel()
        if self.task.cancelled():
            raise EngineError("the agent stops", retriable=True)
        self.task.result()

    def _tell(self, sentence: str) -> None:
        self._sentence = sentence
        self._news.set()
        self._news = asyncio.Event()

    async def _run(self) -> None:
        digest = self._how.digest
        for attempt in range(ATTEMPTS):
            try:
                await self._read()
                return
            except EngineError as error:
                if not error.retriable or attempt == ATTEMPTS - 1:
                    which = (
                        f"{self._name} of the approved digest {digest}" if digest else self._name
                    )
                    raise EngineError(
                        f"there is no image {which} and it cannot be pulled: {error}"
                    ) from error
                self._tell(f"the pull broke off ({error}), going on with it")
            await asyncio.sleep(PAUSE * 2**attempt)

    async def _read(self) -> None:
        """One attempt, in a thread that ends with the engine's answer and holds up nobody."""
        loop = asyncio.get_running_loop()
        lines: asyncio.Queue[dict[str, Any] | Exception | None] = asyncio.Queue()
        client = self._calls.client

        def put(line: dict[str, Any] | Exception | None) -> None:
            with contextlib.suppress(RuntimeError):  # the loop may be closed by now
                loop.call_soon_threadsafe(lines.put_nowait, line)

        def read() -> None:
            try:
                for line in _stream(client, self._name, self._how):
                    put(line)
                put(None)
            except (DockerException, RequestException, HTTPError, OSError) as error:
                put(error)

        threading.Thread(target=read, name="docker-pull", daemon=True).start()
        layers: dict[str, tuple[int, int]] = {}
        while (line := await lines.get()) is not None:
            if isinstance(line, Exception):
                raise _error(str(getattr(line, "explanation", None) or line)) from line
            if "error" in line:
                raise _error(str(line["error"]))
            self._progress(line, layers)

    def _progress(self, line: dict[str, Any], layers: dict[str, tuple[int, int]]) -> None:
        detail = line.get("progressDetail") or {}
        if line.get("status") == "Downloading" and detail.get("total"):
            layers[line["id"]] = (detail["current"], detail["total"])
        elif line.get("status") in ("Download complete", "Pull complete") and line["id"] in layers:
            layers[line["id"]] = (layers[line["id"]][1],) * 2
        else:
            return
        done, total = (sum(column) for column in zip(*layers.values(), strict=True))
        self._tell(f"pulling the image: {done / 1e6:.0f} of {total / 1e6:.0f} MB")


def _stream(client: docker.DockerClient, name: str, how: ImagePull) -> Any:
    repository, tag = parse_repository_tag(full_name(name))
    login = {"username": how.username, "password": how.password} if how.username else None
    tag = how.digest or tag  # whatever has this tag in the registry by now
    return client.api.pull(repository, tag=tag, stream=True, decode=True, auth_config=login)


def _error(text: str) -> EngineError:
    return EngineError(text, retriable=not any(word in text.lower() for word in FINAL))
