"""The decision code of Backend.AI's manager 23.9 on a workload of ours. Runs under a Python of its own.

    python backendai.py < workloads.jsonl

Reads in each line ``{"sequencer", "selector", "budget", "agents": [{slot: [capacity, used]}], "sessions": [[key,
{slot: amount}]]}`` and prints what it placed and the CPU seconds of that, one line each. The loop is its
dispatcher's: pick a session, seek an agent, count the amounts; rows of its database are plain objects here,
which spares it the ORM. It does no predicate checks, no device placement and no explanations. ``budget``
ends a run early, after so many CPU seconds.
"""

import gc
import importlib.metadata
import json
import sys
import time
from types import SimpleNamespace

from ai.backend.common.types import AgentSelectionStrategy, ResourceSlot
from ai.backend.manager.models.scaling_group import ScalingGroupOpts
from ai.backend.manager.scheduler.drf import DRFScheduler
from ai.backend.manager.scheduler.fifo import FIFOSlotScheduler, LIFOSlotScheduler

SCHEDULERS = {"fifo": FIFOSlotScheduler, "lifo": LIFOSlotScheduler, "drf": DRFScheduler}
PRIORITY = ["cuda", "rocm", "tpu", "cpu", "mem"]


def run(work):
    """What becomes of one workload."""
    strategies = {strategy.value: strategy for strategy in AgentSelectionStrategy}
    name = work["selector"].replace("-", "")
    if work["sequencer"] not in SCHEDULERS or name not in strategies:
        return {"lacks": f"{work['sequencer']} with {work['selector']}"}
    scheduler, strategy = SCHEDULERS[work["sequencer"]](ScalingGroupOpts(), {}), strategies[name]
    slots = sorted({slot for agent in work["agents"] for slot in agent})
    agents = [
        SimpleNamespace(
            id=f"agent-{number:05}",
            available_slots=ResourceSlot({slot: each.get(slot, (0, 0))[0] for slot in slots}),
            occupied_slots=ResourceSlot({slot: each.get(slot, (0, 0))[1] for slot in slots}),
        )
        for number, each in enumerate(work["agents"])
    ]
    total = ResourceSlot(
        {slot: sum(each.get(slot, (0, 0))[0] for each in work["agents"]) for slot in slots}
    )
    pending = [
        SimpleNamespace(
            id=number,
            access_key=key,
            status_data=None,
            requested_slots=ResourceSlot({slot: wants.get(slot, 0) for slot in slots}),
            occupying_slots=ResourceSlot({slot: wants.get(slot, 0) for slot in slots}),
        )
        for number, (key, wants) in enumerate(work["sessions"])
    ]
    by_id = {agent.id: agent for agent in agents}
    running, placed, decided = [], 0, 0
    start = time.process_time()
    while pending and time.process_time() - start < work["budget"]:
        picked = scheduler.pick_session(total, pending, running)
        index = next(n for n, session in enumerate(pending) if session.id == picked)
        session = pending.pop(index)
        decided += 1
        chosen = scheduler.assign_agent_for_session(agents, session, strategy, list(PRIORITY))
        if chosen is None:
            continue
        by_id[chosen].occupied_slots += session.requested_slots
        running.append(session)
        placed += 1
    seconds = time.process_time() - start
    return {
        "version": importlib.metadata.version("backend.ai-manager"),
        "python": sys.version.split()[0],
        "placed": placed,
        "decided": decided,
        "cpu_seconds": round(seconds, 4),
        "out_of_budget": bool(pending),
    }


def main():
    gc.collect()
    for line in sys.stdin:
        print(json.dumps(run(json.loads(line))), flush=True)
        gc.collect()


if __name__ == "__main__":
    main()
