"""What becomes of sessions of lost nodes: leases, what is told of them, and what is kept."""

import zlib

import msgspec
import pytest

from authenticator.principals import Role
from spawner.agent.protocol import KernelReport
from spawner.sessions.states import Status
from spawner.sessions.tables import LostRunRow
from tests.harness.agent import FakeAgent, FakeKernel
from tests.harness.plane import FINISHED, REQUEST, Rig, until
from tests.unit.sessions.test_retries import BATCH, KEPT, alive, lose, lost, now, options


class WholeLogs(FakeAgent):
    """Sends the whole output of what ended, as agents do."""

    def seen(self, kernel: FakeKernel) -> KernelReport:
        return msgspec.structs.replace(super().seen(kernel), log=zlib.compress(kernel.log.encode()))


async def test_the_output_of_a_lost_run_counts_too(
    plane: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("spawner.sessions.runs.KEPT_BYTES", 30)
    await options(plane, lost_after={"batch": "10m"})
    agent, ada = await plane.agent(WholeLogs()), await plane.user()
    detail = await plane.run(ada, **BATCH)
    (await alive(agent, 1)).log = "of the lost run"
    await lose(plane, agent)
    other = await plane.agent(WholeLogs("node-2"))
    other.end((await alive(other, 2)).spec.kernel_id, log="of the last run")
    await plane.wait(detail, *FINISHED)
    await plane.connect(agent)

    async def gone() -> list[LostRunRow]:
        return await lost(plane)

    await until(gone, lambda rows: not rows)
    ref = str(detail.session.id)
    told = [await plane.plane.sessions.logs(ada, ref, attempt=each) for each in (1, 2)]
    assert told == [KEPT, "of the last run"]


async def test_what_a_removed_node_held_of_lost_runs_is_free_at_once(plane: Rig) -> None:
    await options(plane, lost_after={"batch": "10m"})
    agent, root = await plane.agent(), await plane.user("root", role=Role.SUPERADMIN)
    await plane.run(await plane.user(), **BATCH)
    await lose(plane, agent)
    assert len(await lost(plane)) == 1
    await plane.plane.nodes.remove(root, "node-1", forced=False, request_id=REQUEST)
    await plane.validate()
    repaired = await plane.plane.reconciler.repair()
    assert (repaired.freed, await lost(plane)) == (0, [])


LEASED = {"interactive": {"after": "10m", "lease": True}}


async def test_a_node_that_is_cut_off_ends_a_leased_session_before_it_is_given_up(
    plane: Rig,
) -> None:
    await options(plane, lost_after=LEASED)
    agent, ada = await plane.agent(), await plane.user()
    detail = await plane.run(ada)
    assert (await alive(agent, 1)).spec.lease == 300
    await options(plane, lost_after={"interactive": {"after": "4m", "lease": True}})
    await agent.disconnect()
    plane.clock.forward(60)
    await plane.plane.reconciler.watch_agents()
    plane.clock.forward(230)
    await plane.plane.reconciler.watch_agents()
    agent.fence()
    assert (await now(plane, ada, detail)).status is Status.RUNNING
    assert agent.kernels
    plane.clock.forward(11)
    agent.fence()
    assert not agent.kernels
    plane.clock.forward(300)
    await plane.plane.reconciler.watch_agents()
    assert (await now(plane, ada, detail)).status is Status.TERMINATED
    await plane.validate()


async def test_a_lease_counts_from_the_last_word_that_a_node_may_have_heard(plane: Rig) -> None:
    await options(plane, lost_after=LEASED)
    agent, ada = await plane.agent(), await plane.user()
    detail = await plane.run(ada)
    await agent.disconnect()
    plane.clock.forward(550)
    await plane.plane.reconciler.watch_agents()
    plane.clock.forward(320)
    await plane.plane.reconciler.watch_agents()
    assert (await now(plane, ada, detail)).status is Status.RUNNING
    plane.clock.forward(10)
    await plane.plane.reconciler.watch_agents()
    assert (await now(plane, ada, detail)).status is Status.TERMINATED


async def test_a_leased_session_that_its_node_ended_does_not_start_again(plane: Rig) -> None:
    await options(plane, lost_after=LEASED)
    agent, ada = await plane.agent(), await plane.user()
    detail = await plane.run(ada)
    await agent.disconnect()
    plane.clock.forward(301)
    agent.fence()
    await plane.connect(agent)
    ended = await plane.wait(detail, *FINISHED)
    assert ended.status is Status.TERMINATED
    assert "could not reach the manager and ended it" in ended.session.status_info


async def test_a_batch_that_its_node_ended_has_failed_whatever_it_says(plane: Rig) -> None:
    await options(plane, lost_after={"batch": {"after": "10m", "then": "terminate", "lease": True}})
    agent, ada = await plane.agent(), await plane.user()
    detail = await plane.run(ada, **BATCH)
    await agent.disconnect()
    plane.clock.forward(301)
    (await alive(agent, 1)).exit_code = 0
    agent.fence()
    await plane.connect(agent)
    ended = await plane.wait(detail, *FINISHED)
    assert (ended.status, ended.session.result) == (Status.TERMINATED, "failure")


async def test_a_session_that_began_without_a_lease_is_not_given_up_for_want_of_one(
    plane: Rig,
) -> None:
    agent, ada = await plane.agent(), await plane.user()
    detail = await plane.run(ada)
    await options(plane, lost_after=LEASED)
    await lose(plane, agent)
    assert (await now(plane, ada, detail)).status is Status.RUNNING
    await plane.destroy(ada, detail)
    await plane.plane.reconciler.watch_agents()
    assert (await now(plane, ada, detail)).status is Status.TERMINATED


async def test_a_batch_that_is_given_up_with_its_node_tells_that_it_failed(plane: Rig) -> None:
    await options(plane, lost_after="5m")
    agent, ada = await plane.agent(), await plane.user()
    detail = await plane.run(ada, **BATCH)
    with plane.plane.bus.subscribe(lambda event: event.session_id == detail.session.id) as told:
        await lose(plane, agent)
    names = [event.name async for event in told]
    assert [name for name in names if name.startswith("session_")] == [
        "session_terminating", "session_failure", "session_terminated",
    ]  # fmt: skip
