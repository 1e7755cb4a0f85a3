"""Keys wait once, are worked on once at a time, and back off."""

import asyncio

from spawner.sessions.workqueue import WorkQueue


async def test_a_key_waits_once_and_comes_back_when_put_during_work() -> None:
    queue: WorkQueue[str] = WorkQueue()
    queue.put("a")
    queue.put("a")
    queue.put("b")
    assert await queue.get() == "a"
    queue.put("a")
    assert await queue.get() == "b"
    getting = asyncio.ensure_future(queue.get())
    await asyncio.sleep(0)
    assert not getting.done()
    queue.done("a")
    assert await asyncio.wait_for(getting, 1) == "a"
    queue.done("a")
    queue.done("b")
    getting = asyncio.ensure_future(queue.get())
    await asyncio.sleep(0)
    assert not getting.done(), "nothing is left"
    getting.cancel()


async def test_failures_back_off_and_success_forgives() -> None:
    queue: WorkQueue[str] = WorkQueue(base_delay=0.001, max_delay=0.003)
    delays = []
    for _ in range(4):
        queue.put("a")
        key = await queue.get()
        delays.append(queue.failed(key))
    assert delays == [0.001, 0.002, 0.003, 0.003]
    assert await asyncio.wait_for(queue.get(), 1) == "a"
    queue.done("a")
    queue.put("a")
    assert queue.failed(await queue.get()) == 0.001
    queue.close()


async def test_a_put_overtakes_the_back_off() -> None:
    queue: WorkQueue[str] = WorkQueue(base_delay=60)
    queue.put("a")
    queue.failed(await queue.get())
    queue.put("a")
    assert await asyncio.wait_for(queue.get(), 1) == "a"
    queue.done("a")
    queue.close()
