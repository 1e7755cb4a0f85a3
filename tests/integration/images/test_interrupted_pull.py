"""A registry that goes away in the middle of a pull: what came is not fetched again."""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import tarfile
from collections.abc import AsyncIterator
from pathlib import Path

import docker
import pytest

from spawner.agent.engines.docker import DockerEngine
from spawner.agent.protocol import ImagePull
from tests.integration.docker_engine import running_engine
from tests.integration.images.test_registry import PASSWORD, RIGHT, Registry

pytestmark = [pytest.mark.integration, pytest.mark.docker, pytest.mark.timeout(300)]
LAYER = 24 * 1024 * 1024
SMALL = 1024 * 1024


class Cable:
    """A relay in front of the registry that counts what it carries, and breaks when it is told to."""

    def __init__(self, to: int) -> None:
        self._to, self.port = to, 0
        self.carried, self.breaks_at = 0, 0
        self.broken = asyncio.Event()
        self._wires: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server | None = None

    async def join(self) -> None:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def cut(self) -> None:
        if self._server is not None:
            self._server.close()
            for wire in list(self._wires):
                wire.transport.abort()
            await self._server.wait_closed()
            self._server = None

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", self._to)
        self._wires |= {writer, back}
        try:
            await asyncio.gather(self._carry(reader, back, False), self._carry(there, writer, True))
        finally:
            self._wires -= {writer, back}
            for wire in (writer, back):
                wire.close()

    async def _carry(
        self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, counts: bool
    ) -> None:
        with contextlib.suppress(OSError):
            while piece := await source.read(65536):
                if counts:
                    self.carried += len(piece)
                    if self.breaks_at and self.carried > self.breaks_at:
                        self.broken.set()
                        return
                sink.write(piece)
                await sink.drain()


@pytest.fixture
async def cable(tmp_path: Path) -> AsyncIterator[tuple[Cable, str]]:
    """A registry behind a relay, with an image of two layers that is not here."""
    with running_engine():
        (tmp_path / "registry").mkdir()
        registry = Registry(tmp_path / "registry")
        registry.start()
        relay = Cable(int(registry.host.rpartition(":")[2]))
        await relay.join()
        name = f"127.0.0.1:{relay.port}/interrupted:1"
        client = docker.from_env(timeout=120)
        try:
            await asyncio.to_thread(publish, client, name)
            relay.carried = 0
            yield relay, name
        finally:
            with contextlib.suppress(docker.errors.ImageNotFound):
                client.api.remove_image(name)
            client.close()
            await relay.cut()
            registry.stop()


def publish(client: docker.DockerClient, name: str) -> None:
    """An image of random bytes: a small layer and a large one."""
    context = io.BytesIO()
    recipe = b"FROM scratch\nCOPY small /\nCOPY large /\nLABEL ai.perijove.image=test\n"
    with tarfile.open(fileobj=context, mode="w") as archive:
        for path, content in (
            ("Dockerfile", recipe), ("small", os.urandom(SMALL)), ("large", os.urandom(LAYER)),
        ):  # fmt: skip
            entry = tarfile.TarInfo(path)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    context.seek(0)
    client.images.build(fileobj=context, custom_context=True, tag=name, rm=True, nocache=True)
    login = {"username": "puller", "password": PASSWORD}
    for line in client.api.push(name, stream=True, decode=True, auth_config=login):
        assert "error" not in line, line
    client.api.remove_image(name)


async def pulled(engine: DockerEngine, name: str, how: ImagePull = RIGHT) -> list[str]:
    return [sentence async for sentence in engine.ensure_image(name, how)]


async def test_what_came_is_not_fetched_again(tmp_path: Path, cable: tuple[Cable, str]) -> None:
    relay, name = cable
    engine = DockerEngine()
    await engine.open({"state_dir": tmp_path / "agent"})
    relay.breaks_at = LAYER // 2
    pulling = asyncio.create_task(pulled(engine, name))
    await asyncio.wait_for(relay.broken.wait(), 60)
    relay.breaks_at = 0
    await relay.cut()
    await relay.join()
    sentences = await pulling
    await engine.close()
    assert not [each for each in sentences if "broke off" in each], "the engine did it by itself"
    assert relay.carried < SMALL + LAYER + LAYER // 4
