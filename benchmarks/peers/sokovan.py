"""The decision code of Backend.AI's manager 26.9 (Sokovan) on a workload of ours. Runs under a Python of its own.

    python sokovan.py < workloads.jsonl

Reads what ``backendai.py`` beside it reads, and ``goes_on``. It drives the published
``SessionProvisioner.schedule_resource_group`` from the snapshot to the list of allocations: its sequencers,
its validators, its agent selection (filters, orders, strategy) and its trackers. The repository, from which
it would write the allocations, and its metrics do nothing here, so that neither a database nor Prometheus
is counted. The factors of ``fair-share`` come ready made, as if its observer had stored them.

The published pass ends with the first session for which there is no room. With ``goes_on`` its own
``_schedule_workload`` is asked for every session instead, as if that rule were not there.

``budget`` ends a run early, after so many CPU seconds; what it placed until then counts.
"""

import asyncio
import contextlib
import datetime as dt
import gc
import importlib.metadata
import json
import logging
import signal
import sys
import time
import uuid
from decimal import Decimal
from types import SimpleNamespace

from ai.backend.common.data.entity.domain import DomainID
from ai.backend.common.data.entity.project import ProjectID
from ai.backend.common.data.entity.resource_group import ResourceGroupID, ResourceGroupName
from ai.backend.common.data.entity.resource_slot import ResourceSlotName
from ai.backend.common.data.entity.user import UserID
from ai.backend.common.types import (
    AccessKey,
    AgentId,
    AgentSelectionStrategy,
    ArchName,
    ClusterMode,
    KernelId,
    PreemptionOrder,
    SessionId,
    SessionTypes,
)
from ai.backend.manager.data.fair_share import UserFairShareFactors
from ai.backend.manager.data.session.options import AgentSelectionPolicy
from ai.backend.manager.sokovan.recorder import RecorderContext
from ai.backend.manager.sokovan.scheduler.provisioner.provisioner import (
    SchedulingState,
    SessionProvisioner,
    SessionProvisionerArgs,
)
from ai.backend.manager.sokovan.scheduler.provisioner.selectors.pool import create_agent_selector
from ai.backend.manager.sokovan.scheduler.provisioner.sequencers.fifo import FIFOSequencer
from ai.backend.manager.sokovan.scheduler.provisioner.validators.dependencies import (
    DependenciesValidator,
)
from ai.backend.manager.sokovan.scheduler.provisioner.validators.reserved_batch import (
    ReservedBatchSessionValidator,
)
from ai.backend.manager.sokovan.scheduler.provisioner.validators.resource_policy import (
    ResourcePolicyValidator,
)
from ai.backend.manager.sokovan.scheduler.provisioner.validators.validator import (
    SchedulingValidator,
)
from ai.backend.manager.views.sokovan.agent import (
    AgentLimit,
    AgentMeta,
    AgentResource,
    ResourceGroupResource,
    SlotResource,
)
from ai.backend.manager.views.sokovan.resource_group import ResourceGroupMeta
from ai.backend.manager.views.sokovan.scheduling import SchedulingData
from ai.backend.manager.views.sokovan.snapshot import (
    GlobalScopeSnapshot,
    ResourceGroupSchedulingPolicy,
    ResourceGroupScopeSnapshot,
    ResourceOccupancySnapshot,
    ResourcePolicySnapshot,
    SessionDependencySnapshot,
    SystemSnapshot,
)
from ai.backend.manager.views.sokovan.workload import (
    KernelWorkload,
    ResourceRequest,
    SessionPlacement,
    SessionWorkload,
    WorkloadMeta,
    WorkloadOwner,
)

PRIORITY = ["cuda", "rocm", "tpu", "cpu", "mem"]
"""The default of its setting ``agent-selection-resource-priority``."""
ARCHITECTURE = ArchName("x86_64")
STRATEGIES = {"round-robin": "roundrobin"}
PROJECT, DOMAIN = ProjectID(uuid.UUID(int=1)), DomainID(uuid.UUID(int=2))
GROUP = ResourceGroupID(uuid.UUID(int=3))


class OutOfBudget(BaseException):
    """The CPU seconds are spent; no ``except Exception`` of the peer swallows it."""


class Unwritten:
    """What the provisioner writes to and reads factors from, without a database behind."""

    def __init__(self, users):
        """``users``: the UUIDs of all owners, of whom each has used more than the one before."""
        self.factors = {
            user: UserFairShareFactors(
                user, PROJECT, "domain", Decimal(1), Decimal(1), Decimal(1) / (1 + number)
            )
            for number, user in enumerate(users)
        }

    async def allocate_sessions(self, allocations):
        return [allocation.session_id for allocation in allocations]

    async def reserve_sessions(self, allocations):
        return [allocation.session_id for allocation in allocations]

    async def set_pending_queue(self, group, session_ids):
        return None

    async def get_user_fair_share_factors_batch(self, group, owners):
        return self.factors


class Unmeasured:
    """In the place of its Prometheus histograms."""

    def measure_phase(self, component, group, phase):
        return contextlib.nullcontext()


def resources(agents, slots):
    """The agents of the group as its repository reads them."""
    return ResourceGroupResource(
        [
            AgentMeta(
                AgentId(f"agent-{number:05}"),
                "10.0.0.1:6001",
                ARCHITECTURE,
                AgentResource(
                    {
                        slots[slot]: SlotResource(Decimal(has), Decimal(0), Decimal(used))
                        for slot, (has, used) in each.items()
                    }
                ),
                0,
            )
            for number, each in enumerate(agents)
        ]
    )


def workload(number, key, user, wants, slots):
    """One pending session of one kernel; what it does not ask for is asked for as zero."""
    request = ResourceRequest({name: Decimal(wants.get(slot, 0)) for slot, name in slots.items()})
    return SessionWorkload(
        WorkloadMeta(
            SessionId(uuid.UUID(int=1000 + number)),
            GROUP,
            WorkloadOwner(AccessKey(key), user, PROJECT, DOMAIN),
        ),
        SessionPlacement(
            ClusterMode.SINGLE_NODE,
            [KernelWorkload(KernelId(uuid.UUID(int=10**9 + number)), ARCHITECTURE, request)],
            AgentSelectionPolicy.PREFERRED,
            None,
            None,
        ),
        10,
        0,
        SessionTypes.INTERACTIVE,
        None,
        False,
    )


def scheduling_data(work):
    """The whole read state of a pass, and all users in it."""
    slots = {
        slot: ResourceSlotName(slot) for slot in sorted({s for a in work["agents"] for s in a})
    }
    keys = sorted({key for key, _ in work["sessions"]})
    users = {key: UserID(uuid.UUID(int=10 + number)) for number, key in enumerate(keys)}
    sessions = [
        workload(number, key, users[key], wants, slots)
        for number, (key, wants) in enumerate(work["sessions"])
    ]
    strategy = AgentSelectionStrategy(STRATEGIES.get(work["selector"], work["selector"]))
    snapshot = SystemSnapshot(
        ResourceGroupScopeSnapshot(
            resources(work["agents"], slots),
            SessionDependencySnapshot({}),
            ResourceGroupSchedulingPolicy(work["sequencer"], strategy, PreemptionOrder.OLDEST),
        ),
        GlobalScopeSnapshot(
            ResourceOccupancySnapshot({}, {}, {}),
            ResourcePolicySnapshot({}, {}, {}),
            AgentLimit(None),
        ),
        dt.datetime.now(dt.UTC),
    )
    group = ResourceGroupMeta(GROUP, ResourceGroupName("default"))
    return SchedulingData(group, sessions, snapshot), list(users.values())


def provisioner_of(users):
    """Its provisioner with the parts that its factory gives it."""
    unwritten = Unwritten(users)
    rules = [DependenciesValidator(), ReservedBatchSessionValidator(), ResourcePolicyValidator()]
    provisioner = SessionProvisioner(
        SessionProvisionerArgs(
            validator=SchedulingValidator(rules),
            default_sequencer=FIFOSequencer(),
            agent_selector=create_agent_selector(list(PRIORITY)),
            repository=unwritten,
            fair_share_repository=unwritten,
            config_provider=SimpleNamespace(),
            valkey_schedule=unwritten,
        )
    )
    provisioner._phase_metrics = Unmeasured()
    return provisioner


async def everyone(provisioner, data, tried):
    """Its pass without the rule that the first session without room ends it."""
    state = SchedulingState.from_scheduling_data(data)
    scheduler = data.system_snapshot.resource_group.policy.scheduler
    for session in await provisioner._sequencer.sequence(
        scheduler, GROUP, state.snapshot, data.workloads
    ):
        with contextlib.suppress(Exception):
            await provisioner._schedule_workload(state, session, set())
        tried.append(session)


def run(work):
    """Placed and decided sessions, the CPU seconds of that, and whether the budget ended it."""
    data, users = scheduling_data(work)
    provisioner = provisioner_of(users)
    tried, out_of_budget = [], False

    def stop(signum, frame):
        raise OutOfBudget

    signal.signal(signal.SIGPROF, stop)
    ids = [session.meta.session_id for session in data.workloads]
    ended = None
    start = time.process_time()
    signal.setitimer(signal.ITIMER_PROF, work["budget"])
    try:
        with RecorderContext[SessionId].scope("schedule", entity_ids=ids):
            if work["goes_on"]:
                asyncio.run(everyone(provisioner, data, tried))
            else:
                ended = asyncio.run(provisioner.schedule_resource_group(data))
            seconds = time.process_time() - start
            signal.setitimer(signal.ITIMER_PROF, 0)
    except OutOfBudget:
        seconds, out_of_budget = time.process_time() - start, True
    signal.setitimer(signal.ITIMER_PROF, 0)
    held = data.system_snapshot.global_scope.occupancy.by_user.values()
    placed = sum(each.session_count for each in held)
    decided = len(tried) if work["goes_on"] else placed
    if ended is not None:
        decided += len(ended.scheduling_failures)
    return placed, decided, seconds, out_of_budget


def main():
    logging.disable(logging.CRITICAL)
    version = importlib.metadata.version("backend.ai-manager")
    gc.collect()
    for line in sys.stdin:
        placed, decided, seconds, out_of_budget = run(json.loads(line))
        answer = {
            "version": version,
            "python": sys.version.split()[0],
            "placed": placed,
            "decided": decided,
            "cpu_seconds": round(seconds, 4),
            "out_of_budget": out_of_budget,
        }
        print(json.dumps(answer), flush=True)
        gc.collect()


if __name__ == "__main__":
    main()
