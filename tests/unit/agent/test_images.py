"""Pulls that fail in ways that nobody foresaw."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from spawner.agent.calls import Calls
from spawner.agent.images import FAILED, ImageTasks
from spawner.agent.protocol import Call, ImagePull
from tests.harness.engine import MemoryEngine
from tests.unit.agent.test_kernels import Node


class Faulty(MemoryEngine):
    async def ensure_image(self, name: str, pull: ImagePull | None = None) -> AsyncIterator[str]:
        self.calls.append("image")
        yield "pulling"
        raise ZeroDivisionError("a fault of the engine")


async def test_a_pull_that_broke_off_is_told_and_can_be_asked_for_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    node, ended = Node(Faulty()), asyncio.Event()
    calls = Calls(node.engine, node.kernels)
    tasks = ImageTasks(node.engine, calls, ended.set)
    for count in (1, 2):
        await calls.answer(Call(1, "pull_image", {"name": "image"}))
        await asyncio.wait_for(ended.wait(), 5)
        ended.clear()
        (told,) = (await calls.answer(Call(2, "image_tasks", {"name": "image"}))).value
        assert (told["state"], told["message"]) == (FAILED, "the node failed: ZeroDivisionError")
        assert node.engine.calls.count("image") == count
    assert "a fault of the engine" in caplog.text
    await tasks.close()
