"""From the submission of a session until a node is assigned, on an idle cluster, on SQLite and on PostgreSQL.

The whole manager below HTTP is the real one: service, database, scheduler loop, agent protocol. Only the
node is not: its agent (the tests' ``FakeAgent``) pretends to run containers. One session after another is
submitted, runs, and is ended, so that the cluster is idle each time. The moments are those at which a
commit was done. Wall time, which on a busy machine is mostly waiting for a CPU, and beside it the CPU time of
this process, in which SQLite runs as well and PostgreSQL does not. The floor: one row changed and committed
by the same store.

    scripts/bench assignment [--quick]
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import tempfile
import time
import uuid
from collections.abc import Sequence
from pathlib import Path

from sqlalchemy import update
from sqlalchemy.ext.asyncio import AsyncSession

from benchmarks.reporting import finish, note
from spawner.sessions.states import Status
from spawner.sessions.tables import AgentRow
from spawner.sessions.transitions import Change
from store import schema
from store.database import Store
from tests.harness.plane import Rig, rig
from tests.integration.postgres_server import PostgresServer, find_binaries

WARM_UP = 10
"""Submissions before the first that counts: statements are compiled, connections made."""
SPANS = {
    "submitted until accepted": ("", "session_enqueued"),
    "accepted until assigned": ("session_enqueued", "session_scheduled"),
    "submitted until assigned": ("", "session_scheduled"),
    "submitted until running": ("", "session_started"),
}
"""Each from the one event to the other; the empty one is the call."""


Moment = tuple[float, float]
"""Seconds by the wall clock and of CPU time."""


def moment() -> Moment:
    """This one."""
    return time.perf_counter(), time.process_time()


class Moments:
    """When each event of each session was committed."""

    def __init__(self, made: Rig) -> None:
        self.of: dict[uuid.UUID, dict[str, Moment]] = {}
        made.plane.journal.listen(self._committed)

    def _committed(self, change: Change) -> None:
        now = moment()
        for event in change.events:
            self.of.setdefault(event.session_id, {}).setdefault(event.name, now)


async def submissions(made: Rig, count: int) -> list[dict[str, Moment]]:
    """The moments of ``count`` sessions, one after another on an idle cluster."""
    owner, moments = await made.user(), Moments(made)
    found: list[dict[str, Moment]] = []
    for _ in range(count):
        for agent in made.agents:
            agent.beat()
        begin = moment()
        running = await made.run(owner)
        found.append(moments.of[running.session.id] | {"": begin})
        await made.destroy(owner, running)
        await made.wait(running, Status.TERMINATED)
    return found


async def commits(made: Rig, count: int) -> list[dict[str, Moment]]:
    """The moments of ``count`` writes of one row."""

    async def work(db: AsyncSession) -> None:
        await db.execute(update(AgentRow).values(version=uuid.uuid4().hex[:8]))

    found: list[dict[str, Moment]] = []
    for _ in range(count):
        begin = moment()
        await made.store.write(work)
        found.append({"": begin, "committed": moment()})
    return found


def spread(moments: Sequence[dict[str, Moment]], start: str, end: str) -> dict[str, float]:
    """Milliseconds from ``start`` to ``end``: median, 95th percentile and the most; of CPU the median."""
    wall = [(each[end][0] - each[start][0]) * 1000 for each in moments]
    cpu = [(each[end][1] - each[start][1]) * 1000 for each in moments]
    return {
        "p50": round(statistics.median(wall), 2),
        "p95": round(statistics.quantiles(wall, n=20)[-1], 2),
        "max": round(max(wall), 2),
        "cpu_p50": round(statistics.median(cpu), 2),
    }


async def measure(url: str, folder: Path, count: int) -> dict[str, object]:
    """All spans on one database, in milliseconds."""
    await asyncio.to_thread(schema.upgrade, url)
    store = Store(url)
    try:
        async with rig(store, folder) as made:
            await made.agent()
            await submissions(made, WARM_UP)
            moments = await submissions(made, count)
            found: dict[str, object] = {
                span: spread(moments, start, end) for span, (start, end) in SPANS.items()
            }
            found["one row committed"] = spread(await commits(made, count), "", "committed")
            found["load_average"] = round(os.getloadavg()[0], 2)
            return found
    finally:
        await store.close()


def main() -> None:
    """Run it on both databases and print the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="20 submissions in place of 200")
    count = 20 if parser.parse_args().quick else 200
    result: dict[str, object] = {}
    with tempfile.TemporaryDirectory() as name:
        url = f"sqlite:///{Path(name) / 'perijove.sqlite'}"
        result["sqlite"] = asyncio.run(measure(url, Path(name, "sqlite"), count))
        note(f"sqlite: {result['sqlite']}")
        binaries = find_binaries()
        if binaries is None:
            note("without PostgreSQL, which is not installed")
        else:
            server = PostgresServer(binaries)
            try:
                url = server.new_database()
                result["postgresql"] = asyncio.run(measure(url, Path(name, "postgresql"), count))
                note(f"postgresql: {result['postgresql']}")
            finally:
                server.stop()
    finish({"benchmark": "assignment", "submissions": count, "milliseconds": result})


if __name__ == "__main__":
    main()
