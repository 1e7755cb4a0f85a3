"""A cluster in simulated time: sessions arrive, the scheduler under test places them, they run and end.

The policy under test is a function from a snapshot to a plan: the real ``plan`` or a small baseline.
Everything that it says is checked as it is applied: a device never gives more than it has, a session
starts whole or not at all, and nobody starts twice.
"""

from __future__ import annotations

import heapq
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from spawner.scheduler.model import (
    Agent,
    GroupPolicy,
    KernelPlacement,
    Plan,
    RunningSession,
    SessionRequest,
    Snapshot,
    Usage,
)

Policy = Callable[[Snapshot], Plan]
Device = tuple[str, str, str]
"""Agent, slot, device."""


TICK = 600.0
"""Longest time without a pass while somebody waits."""


class Broken(AssertionError):
    """A plan that cannot be carried out."""


@dataclass(frozen=True, slots=True)
class Job:
    """A session that will be submitted at ``request.submitted_at`` and runs ``duration`` seconds."""

    request: SessionRequest
    duration: float
    kind: str = "session"

    @property
    def slots(self) -> dict[str, int]:
        """What all its containers take together."""
        total: dict[str, int] = defaultdict(int)
        for kernel in self.request.kernels:
            for slot, amount in kernel.slots.items():
                total[slot] += amount
        return dict(total)


@dataclass(slots=True)
class Life:
    """What became of a job."""

    job: Job
    started_at: float | None = None
    ended_at: float | None = None
    preemptions: int = 0
    lost: float = 0.0
    """Seconds that it ran in vain, because it was preempted."""
    cut: bool = False
    """Whether it was ended for another one and not put back."""

    @property
    def owner(self) -> str:
        """Whose job it is."""
        return self.job.request.owner_id

    def waited(self, until: float) -> float:
        """Seconds from submission to (last) start; of one that waits at ``until``, so far."""
        start = until if self.started_at is None else self.started_at
        return start - self.job.request.submitted_at

    def ran(self, since: float, until: float) -> float:
        """Seconds that it ran within a window."""
        if self.started_at is None:
            return 0.0
        ended = until if self.ended_at is None else self.ended_at
        return max(0.0, min(ended, until) - max(self.started_at, since))


@dataclass(frozen=True, slots=True)
class Point:
    """The cluster between two events."""

    at: float
    used: float
    """Part of the CPUs that is held."""
    waiting: int


@dataclass(slots=True)
class Result:
    """What a simulation saw up to ``until``."""

    until: float
    capacity: Mapping[str, int]
    lives: Sequence[Life]
    points: Sequence[Point]
    passes: int
    cpu_seconds: float
    """CPU time of all passes."""
    slowest_pass: float


Event = tuple[float, int, Literal["submit", "end"], str, int]


@dataclass(slots=True)
class Simulation:
    """One run. ``pause``: seconds that wake-ups are gathered; ``tick``: longest time without a pass."""

    agents: Sequence[Agent]
    jobs: Sequence[Job]
    policy: Policy
    group: GroupPolicy
    until: float
    pause: float = 10.0
    tick: float = TICK
    after_pass: Callable[[Snapshot, Plan], None] | None = None
    """Called with each snapshot and the plan made of it."""
    _now: float = 0.0
    _events: list[Event] = field(default_factory=list)
    _lives: dict[str, Life] = field(default_factory=dict)
    _pending: dict[str, SessionRequest] = field(default_factory=dict)
    _running: dict[str, RunningSession] = field(default_factory=dict)
    _free: dict[Device, int] = field(default_factory=dict)
    _seen: dict[str, Agent] = field(default_factory=dict)
    _stale: set[str] = field(default_factory=set)
    _containers: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    _used: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    _usage: dict[tuple[Literal["domain", "project", "user"], str], dict[str, float]] = field(
        default_factory=dict
    )
    _accounted: float = 0.0
    _again: bool = False
    """The last pass ended sessions, so the next one need not wait for an event."""
    _points: list[Point] = field(default_factory=list)

    def run(self) -> Result:
        """Simulate until the clock says ``until``."""
        self._begin()
        capacity: dict[str, int] = defaultdict(int)
        for agent in self.agents:
            for device in agent.devices:
                capacity[device.slot] += device.capacity
        passes, spent, slowest = 0, 0.0, 0.0
        due: float | None = None
        while self._events or due is not None:
            at = self._events[0][0] if self._events else self.until
            if due is not None and due <= at:
                self._now = due
                took = self._pass() if due <= self.until else 0.0
                passes, spent, slowest = passes + 1, spent + took, max(slowest, took)
                wait = self.pause if self._again else self.tick
                due = due + wait if self._pending else None
                self._note(capacity)
                if self._now >= self.until:
                    break
                continue
            if at >= self.until:
                break
            self._happen(heapq.heappop(self._events))
            due = self._now + self.pause if due is None else min(due, self._now + self.pause)
            self._note(capacity)
        self._now = self.until
        self._note(capacity)
        lives = list(self._lives.values())
        return Result(self.until, dict(capacity), lives, self._points, passes, spent, slowest)

    def _begin(self) -> None:
        for number, job in enumerate(self.jobs):
            request = job.request
            if request.session_id in self._lives:
                raise Broken(f"two jobs are called {request.session_id}")
            self._lives[request.session_id] = Life(job)
            heapq.heappush(
                self._events, (request.submitted_at, number, "submit", request.session_id, 0)
            )
        for agent in self.agents:
            self._seen[agent.agent_id] = agent
            for device in agent.devices:
                self._free[(agent.agent_id, device.slot, device.device_id)] = device.free

    def _happen(self, event: Event) -> None:
        at, _, what, session_id, run = event
        self._now = at
        life = self._lives[session_id]
        if what == "submit":
            self._pending[session_id] = life.job.request
        elif session_id in self._running and life.preemptions == run:
            life.ended_at = at
            self._leave(session_id)

    def _pass(self) -> float:
        self._account()
        snapshot = Snapshot(
            self._now,
            (self.group,),
            self._view(),
            tuple(self._pending.values()),
            running=tuple(self._running.values()),
            usage=self._shares(),
        )
        start = time.process_time()
        plan = self.policy(snapshot)
        took = time.process_time() - start
        self._again = bool(plan.preemptions)
        for preemption in plan.preemptions:
            self._preempt(preemption.victim_id, preemption.action)
        for placement in plan.placements:
            self._start(placement.session_id, placement.kernels)
        for reason in plan.cancelled:
            self._pending.pop(str(reason.data["session_id"]))
        if self.after_pass is not None:
            self.after_pass(snapshot, plan)
        return took

    def _start(self, session_id: str, kernels: Sequence[KernelPlacement]) -> None:
        request = self._pending.pop(session_id, None)
        if request is None:
            raise Broken(f"{session_id} does not wait")
        wanted = {kernel.kernel_id: dict(kernel.slots) for kernel in request.kernels}
        for kernel in kernels:
            given: dict[str, int] = defaultdict(int)
            for share in kernel.shares:
                given[share.slot] += share.amount
            if dict(given) != {k: v for k, v in wanted.pop(kernel.kernel_id).items() if v}:
                raise Broken(f"{session_id} got {dict(given)}")
        if wanted:
            raise Broken(f"{session_id} started without {sorted(wanted)}")
        self._hold(kernels, +1)
        life = self._lives[session_id]
        life.started_at = self._now
        ends_at = None if request.run_time is None else self._now + request.run_time
        self._running[session_id] = RunningSession(
            session_id,
            request.owner_id,
            request.project_id,
            request.domain,
            request.resource_group,
            request.priority,
            self._now,
            ends_at,
            tuple(kernels),
            preemptible=request.preemptible,
            session_group=request.session_group,
        )
        end = self._now + life.job.duration
        heapq.heappush(self._events, (end, len(self._lives), "end", session_id, life.preemptions))

    def _preempt(self, session_id: str, action: str) -> None:
        """The victim leaves at once; one that is put back begins anew."""
        life = self._lives[session_id]
        life.preemptions += 1
        life.lost += self._now - self._running[session_id].started_at
        self._leave(session_id)
        if action == "requeue":
            life.started_at = None
            self._pending[session_id] = life.job.request
        else:
            life.ended_at, life.cut = self._now, True

    def _leave(self, session_id: str) -> None:
        self._account()
        self._hold(self._running.pop(session_id).kernels, -1)

    def _hold(self, kernels: Iterable[KernelPlacement], sign: int) -> None:
        for kernel in kernels:
            for share in kernel.shares:
                device = (kernel.agent_id, share.slot, share.device_id)
                left = self._free[device] - sign * share.amount
                if left < 0:
                    raise Broken(f"{device} would give {-left} more than it has")
                self._free[device] = left
                self._used[share.slot] += sign * share.amount
            self._containers[kernel.agent_id] += sign
            self._stale.add(kernel.agent_id)

    def _view(self) -> tuple[Agent, ...]:
        for agent_id in self._stale:
            agent = self._seen[agent_id]
            self._seen[agent_id] = replace(
                agent,
                containers=self._containers[agent_id],
                devices=tuple(
                    replace(device, free=self._free[(agent_id, device.slot, device.device_id)])
                    for device in agent.devices
                ),
            )
        self._stale.clear()
        return tuple(self._seen.values())

    def _account(self) -> None:
        """Charge what ran since the last account, after what was there has decayed."""
        passed = self._now - self._accounted
        self._accounted = self._now
        if passed <= 0 or self.group.sequencer != "fair-share":
            return
        kept = 0.5 ** (passed / self.group.half_life)
        for slots in self._usage.values():
            for slot in slots:
                slots[slot] *= kept
        for session in self._running.values():
            job = self._lives[session.session_id].job
            scopes: tuple[tuple[Literal["domain", "project", "user"], str], ...] = (
                ("domain", session.domain),
                ("project", session.project_id),
                ("user", f"{session.project_id}/{session.owner_id}"),
            )
            for scope in scopes:
                slots = self._usage.setdefault(scope, {})
                for slot, amount in job.slots.items():
                    slots[slot] = slots.get(slot, 0.0) + amount * passed

    def _shares(self) -> tuple[Usage, ...]:
        return tuple(
            Usage(scope, scope_id, dict(slots), self._now)
            for (scope, scope_id), slots in self._usage.items()
        )

    def _note(self, capacity: Mapping[str, int]) -> None:
        used = self._used["cpu"] / capacity["cpu"]
        self._points.append(Point(self._now, used, len(self._pending)))
