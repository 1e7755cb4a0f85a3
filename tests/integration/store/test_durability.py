"""What was acknowledged is there after ``kill -9``, on a real process and a real file."""

import asyncio
import os
import signal
import sqlite3
import sys
from contextlib import closing
from pathlib import Path

import pytest

from store.database import Store

pytestmark = pytest.mark.integration

WRITER = """
import asyncio, sys
from sqlalchemy import text
from store.database import Store

async def main():
    store = Store(sys.argv[1])
    await store.open()
    await store.write(lambda s: s.execute(text("CREATE TABLE IF NOT EXISTS notes (n INTEGER PRIMARY KEY)")))
    async def add(n):
        await store.write(lambda s: s.execute(text("INSERT INTO notes VALUES (:n)"), {"n": n}))
        print(n, flush=True)
    async def lane(first):
        for n in range(first, 1_000_000, 8):
            await add(n)
    async with store.leadership("scheduler"):
        await asyncio.gather(*map(lane, range(8)))

asyncio.run(main())
"""


@pytest.mark.parametrize("acknowledged", [1, 30, 200])
async def test_no_acknowledged_write_is_lost(tmp_path: Path, acknowledged: int) -> None:
    path = tmp_path / "notes.sqlite"
    url = f"sqlite:///{path}"
    writer = await asyncio.create_subprocess_exec(
        sys.executable, "-c", WRITER, url, stdout=asyncio.subprocess.PIPE
    )
    assert writer.stdout is not None
    told = [await asyncio.wait_for(writer.stdout.readline(), 60) for _ in range(acknowledged)]
    leadership = Store(url).leadership("scheduler")
    assert not await leadership.try_acquire()
    os.kill(writer.pid, signal.SIGKILL)
    told += (await writer.stdout.read()).splitlines(keepends=True)
    await writer.wait()
    assert await leadership.try_acquire()
    await leadership.release()
    with closing(sqlite3.connect(path)) as database:
        kept = {n for (n,) in database.execute("SELECT n FROM notes")}
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    assert {int(line) for line in told if line.endswith(b"\n")} <= kept
