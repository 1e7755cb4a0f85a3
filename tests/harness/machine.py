"""Random lives of a cluster: users, nodes, networks and managers do what they do, in any order.

After every step all invariants hold, and no run was ever started twice; in the end everything comes
to rest with an empty ledger. Hypothesis shrinks what breaks that to a few steps.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, TypeVar

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from authenticator.principals import Role
from authenticator.problems import BadRequest, NotFound
from spawner.scheduler.model import Plan, Preemption
from spawner.sessions.kinds import TYPES
from spawner.sessions.retries import CAUSES
from spawner.sessions.scheduling import apply
from spawner.sessions.states import FINAL, HOLDS
from spawner.sessions.tables import ResourceGroupRow
from store.database import Store
from tests.harness.agent import FakeAgent, FakeKernel, SlowAgent
from tests.harness.plane import Rig, sqlite_url, until

T = TypeVar("T")
LOSSES = st.sampled_from(
    [
        None,
        "60s",
        "10m",
        {"batch": "3m", "inference": {"after": "3m", "then": "requeue"}, "interactive": "1m"},
        {"batch": {"after": "3m", "then": "terminate"}, "inference": {"then": "wait"}},
        {kind: {"after": "3m", "then": "terminate", "lease": True} for kind in TYPES},
    ]
)
MOODS = st.sampled_from(["obedient", "slow", "refusing", "crashing"])
TEMPLATES = Path(tempfile.mkdtemp(prefix="perijove-templates-"))


class MoodyAgent(SlowAgent):
    """Starts kernels as its mood of the moment is."""

    mood = "obedient"

    def start(self, kernel: FakeKernel) -> None:
        if self.mood == "obedient":
            FakeAgent.start(self, kernel)
        elif self.mood == "slow":
            super().start(kernel)
        elif self.mood == "refusing":
            self.move(kernel, "TERMINATED", failure="create-failed", progress="no space")
        else:
            self.move(kernel, "TERMINATED", failure="exited", exit_code=1)

    def stop(self, kernel: FakeKernel) -> None:
        if self.mood == "slow":
            super().stop(kernel)
        else:
            FakeAgent.stop(self, kernel)


class ClusterMachine(RuleBasedStateMachine):
    """The rules; each one waits for nothing but its own call, so that steps overlap."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="perijove-machine-"))
        self.loop = asyncio.Runner()
        self.nodes: list[MoodyAgent] = []

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.loop.run(work)

    @initialize()
    def begin(self) -> None:
        self.rig = Rig(Store(sqlite_url(self.folder, TEMPLATES)), self.folder)
        self.run(self.rig.start())
        self.ada = self.run(self.rig.user())
        self.root = self.run(self.rig.user("root", Role.SUPERADMIN))
        self.change_losses(None)
        for name, amounts in (
            ("node-a", {"cpu": "4", "mem": "8g"}),
            ("node-b", {"cpu": "2", "mem": "2g"}),
        ):
            node = MoodyAgent(name, amounts)
            self.nodes.append(node)
            self.run(self.rig.agent(node))

    @rule(cpu=st.integers(1, 5), batch=st.booleans(), limited=st.booleans())
    def create(self, cpu: int, batch: bool, limited: bool) -> None:
        fields: dict[str, Any] = {"type": "batch", "startup_command": "x"} if batch else {}
        fields["run_time"] = 60 if limited else None
        self.run(self.rig.create(self.ada, cpu=str(cpu), mem="512m", **fields))

    @rule(
        kind=st.sampled_from(["batch", "inference"]),
        most=st.integers(0, 2),
        causes=st.lists(st.sampled_from(CAUSES), min_size=1, max_size=8, unique=True),
        backoff=st.sampled_from([0, 30]),
    )
    def create_retried(self, kind: str, most: int, causes: list[str], backoff: int) -> None:
        """A session that is tried again, as its owner wants it."""
        policy = {"max_retries": most, "causes": causes, "backoff": backoff}
        fields = {"type": kind, "startup_command": "x", "run_time": 60, "retry_policy": policy}
        self.run(self.rig.create(self.ada, mem="512m", **fields))

    @rule()
    def create_system(self) -> None:
        self.run(self.rig.create(self.root, mem="512m", type="system"))

    @rule(rules=LOSSES)
    def change_losses(self, rules: object) -> None:
        async def work(db: AsyncSession) -> None:
            row = (await db.scalars(select(ResourceGroupRow))).one()
            row.options = {"allowed_session_types": list(TYPES), "lost_after": rules}

        self.run(self.rig.store.write(work))

    @rule(node=st.integers(0, 1), healthy=st.booleans())
    def health(self, node: int, healthy: bool) -> None:
        async def work() -> None:
            for kernel in list(self.nodes[node].kernels.values()):
                if kernel.status == "RUNNING" and kernel.spec.session_type == "inference":
                    self.nodes[node].move(kernel, "RUNNING", healthy=healthy)

        self.run(work())

    @rule(pick=st.integers(0, 7))
    def restart(self, pick: int) -> None:
        async def work() -> None:
            live = await self._live()
            if live:
                with suppress(BadRequest, NotFound):
                    ref = str(live[pick % len(live)].session.id)
                    await self.rig.plane.sessions.restart(self.root, ref, "restart")

        self.run(work())

    @rule(pick=st.integers(0, 7), forced=st.booleans())
    def destroy(self, pick: int, forced: bool) -> None:
        async def work() -> None:
            live = await self._live()
            if live:
                await self._destroy(live[pick % len(live)], forced=forced)

        self.run(work())

    @rule(
        victim=st.integers(0, 7),
        winner=st.integers(0, 7),
        action=st.sampled_from(["requeue", "terminate"]),
    )
    def preempt(self, victim: int, winner: int, action: Literal["requeue", "terminate"]) -> None:
        """Any session makes room for any other, in whatever state the two are by then."""

        async def work() -> None:
            live = [str(detail.session.id) for detail in await self._live()]
            if len(live) < 2:
                return
            pair = Preemption(live[victim % len(live)], live[winner % len(live)], action)
            made = Plan((), (), preemptions=(pair,))
            await self.rig.plane.journal.write("preempt", lambda change: apply(change, made, []))

        self.run(work())

    @rule(node=st.integers(0, 1), mood=MOODS)
    def change_mood(self, node: int, mood: str) -> None:
        self.nodes[node].mood = mood

    @rule(node=st.integers(0, 1))
    def go_on(self, node: int) -> None:
        async def work() -> None:
            self.nodes[node].finish()

        self.run(work())

    @rule(node=st.integers(0, 1), code=st.integers(0, 2), gone=st.booleans())
    def kernel_ends(self, node: int, code: int, gone: bool) -> None:
        async def work() -> None:
            for kernel in list(self.nodes[node].kernels.values())[:1]:
                failure = "removed" if gone else "exited"
                self.nodes[node].move(kernel, "TERMINATED", exit_code=code, failure=failure)

        self.run(work())

    @rule(node=st.integers(0, 1))
    def disconnect(self, node: int) -> None:
        self.run(self.nodes[node].disconnect())

    @rule(node=st.integers(0, 1))
    def connect(self, node: int) -> None:
        async def work() -> None:
            await self.nodes[node].disconnect()
            await self.rig.connect(self.nodes[node])

        self.run(work())

    @rule()
    def time_passes(self) -> None:
        self.rig.clock.forward(45)
        self.run(self._fence())
        self.run(self.rig.plane.reconciler.watch_agents())
        self.run(self.rig.plane.reconciler.end_overdue())

    @rule()
    def sweep(self) -> None:
        self.run(self.rig.plane.reconciler.sweep())

    @rule()
    def crash(self) -> None:
        async def work() -> None:
            await self.rig.crash()
            await self.rig.restart()

        self.run(work())

    async def _fence(self) -> None:
        for node in self.nodes:
            node.fence()

    @precondition(lambda self: hasattr(self, "rig"))
    @invariant()
    def all_is_well(self) -> None:
        self.run(self.rig.validate())
        for node in self.nodes:
            assert len(node.starts) == len(set(node.starts)), f"started twice: {node.starts}"
        starts = [run for node in self.nodes for run in node.starts]
        assert len(starts) == len(set(starts)), f"one run on two nodes: {starts}"
        alive = [kernel_id for node in self.nodes for kernel_id, _ in node.kernels]
        assert len(alive) == len(set(alive)), f"two runs of one kernel live: {alive}"

    def teardown(self) -> None:
        try:
            if hasattr(self, "rig"):
                self.run(self._come_to_rest())
        finally:
            self.loop.close()
            shutil.rmtree(self.folder)

    async def _come_to_rest(self) -> None:
        """Once every node is well, what was asked for happens: nothing hangs, nothing is left."""
        try:
            for node in self.nodes:
                node.mood = "obedient"
                await node.disconnect()
                await self.rig.connect(node)
            for detail in await self._live():
                if detail.status not in FINAL:
                    await self._destroy(detail)

            async def left() -> int:
                for node in self.nodes:
                    node.finish()
                return len(await self._live())

            await until(left, lambda count: count == 0)

            async def held() -> int:
                return sum(len(node.kernels) for node in self.nodes)

            await until(held, lambda count: count == 0)
            await self.rig.validate()
            for detail in await self.rig.plane.sessions.list(self.root, all_owners=True):
                assert detail.occupied == {}
                assert all(kernel.status not in HOLDS for kernel in detail.kernels)
        finally:
            await self.rig.stop()
            await self.rig.store.close()

    async def _destroy(self, detail: Any, forced: bool = False) -> None:
        with suppress(NotFound):  # it may end by itself after we saw it alive
            await self.rig.destroy(self.root, detail, forced=forced)

    async def _live(self) -> list[Any]:
        found = await self.rig.plane.sessions.list(self.root, all_owners=True)
        return [detail for detail in found if detail.status not in FINAL]
