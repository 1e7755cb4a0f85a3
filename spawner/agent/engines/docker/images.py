"""Images of a Docker engine: which there are, what their labels say, pulling."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from typing import Any

from spawner.agent.engines.base import EngineError
from spawner.agent.engines.docker.calls import Calls, Missing
from spawner.agent.engines.docker.manifest import COMMAND_LABEL, IMAGE_LABEL, RECIPE_LABEL
from spawner.agent.protocol import ImageReport


class Images:
    """Images of one engine."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls
        self._pulls: dict[str, asyncio.Lock] = {}

    async def list(self) -> tuple[ImageReport, ...]:
        """Images with our label, one name each: ``:latest`` where there is one."""
        client = self._calls.client
        found = await self._calls.run(client.api.images, filters={"label": [IMAGE_LABEL]})
        architecture = engine_architecture(await self._calls.run(client.version))
        reports = []
        for image in found:
            tags = sorted(tag for tag in image.get("RepoTags") or [] if tag != "<none>:<none>")
            if not tags:
                continue
            labels = image["Labels"] or {}
            name = next((tag for tag in tags if tag.endswith(":latest")), tags[0])
            if name.rpartition(":")[2] == labels.get(RECIPE_LABEL):
                continue  # an older build of a recipe: kept by the engine, not offered any more
            reports.append(ImageReport(name, architecture, image["Id"], image["Size"], labels))
        return tuple(sorted(reports, key=lambda report: report.name))

    async def ensure(self, name: str) -> AsyncIterator[str]:
        """Pull ``name`` unless it is there; pulls of one image run one after the other."""
        async with self._pulls.setdefault(name, asyncio.Lock()):
            client = self._calls.client
            try:
                await self._calls.run(client.api.inspect_image, name)
                return
            except Missing:
                pass
            yield f"pulling the image {name}"
            async for sentence in self._pull(name):
                yield sentence

    async def _pull(self, name: str) -> AsyncIterator[str]:
        """Pull in a thread; progress as sentences with bytes."""
        client = self._calls.client
        loop = asyncio.get_running_loop()
        lines: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()

        def read() -> None:
            try:
                for line in client.api.pull(name, stream=True, decode=True):
                    loop.call_soon_threadsafe(lines.put_nowait, line)
            finally:
                loop.call_soon_threadsafe(lines.put_nowait, None)

        pull = asyncio.ensure_future(self._calls.run(read))
        layers: dict[str, tuple[int, int]] = {}
        try:
            while (line := await lines.get()) is not None:
                if "error" in line:
                    raise EngineError(str(line["error"]))
                detail = line.get("progressDetail") or {}
                if line.get("status") == "Downloading" and detail.get("total"):
                    layers[line["id"]] = (detail["current"], detail["total"])
                    done, total = (sum(column) for column in zip(*layers.values(), strict=True))
                    yield f"pulling the image: {done / 1e6:.0f} of {total / 1e6:.0f} MB"
            await pull
        except Missing as error:
            raise EngineError(f"there is no image {name} and it cannot be pulled") from error
        except EngineError as error:
            raise EngineError(
                f"there is no image {name} and it cannot be pulled: {error}",
                retriable=error.retriable,
            ) from error
        finally:
            if not pull.done():
                await asyncio.wait([pull])

    async def own_command(self, image: str) -> tuple[str, ...]:
        """The command that the image's label names; empty where it names none."""
        client = self._calls.client
        try:
            facts = await self._calls.run(client.api.inspect_image, image)
        except Missing as error:
            raise EngineError(f"there is no image {image}") from error
        text = (facts["Config"].get("Labels") or {}).get(COMMAND_LABEL)
        if text is None:
            return ()
        try:
            items = json.loads(text)
        except ValueError:
            items = None
        if not isinstance(items, list) or not all(isinstance(item, str) for item in items):
            raise EngineError(
                f"image {image}: its label {COMMAND_LABEL} is not a JSON list of texts"
            )
        return tuple(items)


def engine_architecture(version: Mapping[str, Any]) -> str:
    """The engine's architecture in the kernel's name for it."""
    names = {"amd64": "x86_64", "arm64": "aarch64"}
    return names.get(version["Arch"], str(version["Arch"]))
