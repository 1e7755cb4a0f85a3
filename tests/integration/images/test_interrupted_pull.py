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
from tests.harness.cable import Cable
from tests.integration.docker_engine import running_engine
from tests.integration.images.test_registry import PASSWORD, RIGHT, Registry

pytestmark = [pytest.mark.integration, pytest.mark.docker, pytest.mark.timeout(300)]
LAYER = 24 * 1024 * 1024
SMALL = 1024 * 1024


@pytest.fixture
async def cable(tmp_path: Path) -> AsyncIterator[tuple[Cable, str]]:
    """A registry behind a relay, with an image of two layers that is not here."""
    with running_engine():
        (tmp_path / "registry").mkdir()
        registry = Registry(tmp_path / "registry")
        registry.start()
        relay = Cable(registry.port)
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
