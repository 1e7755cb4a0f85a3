"""Ask for a plan, have it validated, and read the answer by session."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from spawner.scheduler.model import Explanation, Plan, Snapshot
from spawner.scheduler.plan import plan
from tests.harness.plans.validate import validate


def planned(case: Snapshot) -> Plan:
    """The plan of ``case``, which keeps all invariants."""
    answer = plan(case)
    validate(case, answer)
    return answer


def started(case: Snapshot) -> dict[str, str]:
    """Agent of each session that starts."""
    return {each.session_id: each.kernels[0].agent_id for each in planned(case).placements}


def told(case: Snapshot, session_id: str) -> Explanation:
    """The explanation of a session that waits."""
    waiting = {each.session_id: each for each in planned(case).waiting}
    return waiting[session_id]


def reasons(explanation: Explanation) -> dict[str, int]:
    """Names of the reasons with the agents each removed."""
    return {reason.name: reason.removed for reason in explanation.reasons}


def after(case: Snapshot, gone: Collection[str]) -> Snapshot:
    """The snapshot in which these running sessions have ended and their devices are free."""
    over = [each for each in case.running if each.session_id in gone]
    agents = []
    for agent in case.agents:
        kernels = [k for each in over for k in each.kernels if k.agent_id == agent.agent_id]
        back: dict[tuple[str, str], int] = {}
        for share in (share for kernel in kernels for share in kernel.shares):
            place = (share.slot, share.device_id)
            back[place] = back.get(place, 0) + share.amount
        freed = (
            replace(d, free=d.free + back.get((d.slot, d.device_id), 0)) for d in agent.devices
        )
        left = agent.containers - len(kernels)
        agents.append(replace(agent, containers=left, devices=tuple(freed)))
    running = tuple(each for each in case.running if each not in over)
    return replace(case, agents=tuple(agents), running=running)
