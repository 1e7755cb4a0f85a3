"""Ask for a plan, have it validated, and read the answer by session."""

from __future__ import annotations

from spawner.scheduler.model import Explanation, Plan, Snapshot
from spawner.scheduler.plan import plan
from spawner.scheduler.validate import validate


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
