"""Hypothesis strategies for small clusters full of corner cases.

Parts are sampled from tables that are built once, so that an example costs few draws.
"""

from __future__ import annotations

import itertools
from dataclasses import replace

from hypothesis import strategies as st

from spawner.scheduler.model import (
    Agent,
    Dependency,
    Device,
    DeviceRules,
    DeviceShare,
    GroupPolicy,
    KernelPlacement,
    KernelRequest,
    PreemptionRules,
    Quota,
    RunningSession,
    SessionGroup,
    SessionRequest,
    Snapshot,
)
from spawner.scheduler.slots import MICRO
from tests.harness.snapshots import NOW

GROUPS = ("east", "west")
AGENTS = ("a1", "a2", "a3", "a10")
OWNERS = ("ada", "bob")
STEP = {"cpu": MICRO // 2, "mem": 1, "cuda.device": MICRO, "cuda.shares": MICRO // 4}


def _peers(slot: str) -> list[tuple[Device, ...]]:
    """No, one or two devices of ``slot`` in every state of fullness."""
    most = 1 if slot == "cuda.device" else 3
    sizes = [(size, free) for size in range(most + 1) for free in range(size + 1)]
    found: list[tuple[Device, ...]] = [()]
    for count in (1, 2):
        for chosen in itertools.product(sizes, repeat=count):
            found.append(
                tuple(
                    Device(slot, f"{slot}-{number}", size * STEP[slot], free * STEP[slot])
                    for number, (size, free) in enumerate(chosen)
                )
            )
    return found


def _needs() -> list[dict[str, int]]:
    """Up to two slots in amounts from zero to three steps, and a few that are not multiples."""
    found: list[dict[str, int]] = [{"cpu": MICRO // 7}, {"cuda.device": MICRO // 2}]
    for pair in itertools.combinations(STEP, 2):
        for amounts in itertools.product(range(4), repeat=2):
            found.append({s: n * STEP[s] for s, n in zip(pair, amounts, strict=True)})
    return [*found, *({slot: STEP[slot] * n} for slot in STEP for n in (1, 2, 3)), {}]


PEERS = {slot: st.sampled_from(_peers(slot)) for slot in STEP}
NEEDS = st.sampled_from(_needs())
ARCHITECTURES = st.sampled_from(("x86_64", "x86_64", "x86_64", "aarch64"))
IMAGES = st.sampled_from(("img1", "img2"))
STATES = st.sampled_from([(True, True)] * 3 + [(False, True), (True, False)])
ROOM = st.sampled_from([(0, None)] * 3 + [(0, 0), (0, 1), (1, 3), (4, 3)])
SOME_AGENTS = st.sampled_from(
    [frozenset()] * 4 + [frozenset(c) for n in (1, 2) for c in itertools.combinations(AGENTS, n)]
)
SHAPES = st.sampled_from(
    (
        (1, "single-node"),
        (1, "multi-node"),
        (2, "single-node"),
        (2, "multi-node"),
        (3, "multi-node"),
    )
)
RULES = st.sampled_from(
    [DeviceRules()] * 3
    + [
        DeviceRules(fill, unfragmented, numa)
        for fill in ("fill", "evenly")
        for unfragmented in (False, True)
        for numa in ("none", "prefer", "require")
    ]
)
NUMA = st.sampled_from((None, None, 0, 1))
SEQUENCERS = st.sampled_from(("fifo", "fifo", "lifo", "drf", "fair-share"))
RUN_TIMES = st.sampled_from((None, 10.0, 20.0, 30.0, 40.0))
ENDS = st.sampled_from((None, None, -1000.0, -5.0, 5.0, 10.0, 15.0, 25.0, 35.0))
PARENTS = st.sampled_from(
    [()] * 5 + [(Dependency("p", state),) for state in ("waiting", "succeeded", "failed")]
)
CIRCLES = st.sampled_from(
    [None] * 3
    + [SessionGroup("g", rule, strict) for rule in ("spread", "pack") for strict in (True, False)]
)
PREEMPTION = st.sampled_from(
    [None] * 4
    + [
        PreemptionRules(order, action, minimum, scope)
        for order, action, minimum, scope in (
            ("oldest", "terminate", 0.0, "group"),
            ("newest", "requeue", 2.0, "user"),
            ("fewest-sessions", "requeue", 0.0, "project"),
            ("smallest-resources", "terminate", 1.0, "domain"),
        )
    ]
)
SERVED = st.sampled_from(
    [None] * 5 + [frozenset({"cpu", "mem"}), frozenset({"cpu", "mem", "cuda.shares"})]
)
REQUIRED = st.sampled_from([frozenset()] * 6 + [frozenset({"cpu"}), frozenset({"cpu", "mem"})])
MINIMUMS = st.sampled_from([{}] * 5 + [{"cpu": STEP["cpu"]}, {"mem": 2, "cuda.shares": 0}])
"""What images need at least."""
SHARED = st.sampled_from((0, 0, 0, 0, 1, 2, 3))
"""Shared memory in bytes, of which kernels have three at most."""
AGES = st.sampled_from((0, 1, 2, 2, 2, -4 * 86400, -5 * 86400, -8 * 86400, -9 * 86400))
ELIGIBLE = st.sampled_from((None, None, None, 0, -4 * 86400, -8 * 86400))
RISES = st.sampled_from((7 * 86400.0, 7 * 86400.0, 86400.0, None))


@st.composite
def agent(draw: st.DrawFn, agent_id: str) -> Agent:
    """An agent of either group, in any state, with devices in every order."""
    alive, schedulable = draw(STATES)
    containers, most = draw(ROOM)
    found = [device for slot in STEP for device in draw(PEERS[slot])]
    if draw(st.booleans()):
        found = [draw(special(device)) for device in found]
    return Agent(
        agent_id,
        draw(st.sampled_from(GROUPS)),
        draw(ARCHITECTURES),
        tuple(reversed(found)),
        containers=containers,
        max_containers=most,
        schedulable=schedulable,
        alive=alive,
        images=draw(
            st.sampled_from((frozenset(), frozenset({"img1"}), frozenset({"img1", "img2"})))
        ),
    )


@st.composite
def special(draw: st.DrawFn, device: Device) -> Device:
    """``device`` on a NUMA node, linked, masked, or with a part that is the host's."""
    step = STEP[device.slot]
    extra = draw(st.sampled_from((0, 0, step)))
    return replace(
        device,
        capacity=device.capacity + extra,
        free=device.free + extra,
        reserved=extra,
        numa_node=draw(NUMA),
        masked=draw(st.sampled_from((False, False, False, True))),
        links=draw(st.sampled_from((frozenset(), frozenset({f"{device.slot}-1"})))),
    )


@st.composite
def session(draw: st.DrawFn, number: int) -> SessionRequest:
    """A session of either group (or none) with ties in time, priority and shape."""
    count, mode = draw(SHAPES)
    equal = draw(st.booleans())
    whole = KernelRequest(
        "",
        draw(NEEDS),
        draw(IMAGES),
        draw(ARCHITECTURES),
        shared_memory=draw(SHARED),
        minimum=draw(MINIMUMS),
    )
    kernels = tuple(
        replace(whole, kernel_id=f"k{number}-{index}", slots=whole.slots if equal else draw(NEEDS))
        for index in range(count)
    )
    owner = draw(st.sampled_from(OWNERS))
    eligible = draw(ELIGIBLE)
    return SessionRequest(
        f"s{number}",
        owner,
        f"key-{owner}",
        "lab",
        "default",
        draw(st.sampled_from((*GROUPS, *GROUPS, *GROUPS, "gone"))),
        draw(st.sampled_from((0, 10, 10, 100))),
        NOW + draw(AGES),
        kernels,
        cluster_mode=mode,
        designated_agents=draw(SOME_AGENTS),
        failed_agents=draw(SOME_AGENTS),
        starts_at=draw(st.sampled_from((None, None, None, NOW - 1, NOW, NOW + 1))),
        designation=draw(st.sampled_from(("strict", "preferred"))),
        run_time=draw(RUN_TIMES),
        dependencies=draw(PARENTS),
        failed_parents=draw(st.sampled_from(("wait", "cancel", "ignore"))),
        session_group=draw(CIRCLES),
        devices=draw(st.sampled_from((None, None, draw(RULES)))),
        eligible_since=None if eligible is None else NOW + eligible,
    )


@st.composite
def residents(draw: st.DrawFn, home: Agent) -> tuple[RunningSession, ...]:
    """Sessions that hold some of what is not free on ``home``, one per device; some end, some may not."""
    found: list[RunningSession] = []
    for device in home.devices:
        held = device.capacity - device.free  # what is reserved is free and nobody's
        if not held or draw(st.booleans()):
            continue
        ends = draw(ENDS)
        share = DeviceShare(device.slot, device.device_id, held)
        name = f"r-{home.agent_id}-{device.device_id}"
        owner = draw(st.sampled_from(OWNERS))
        ending = draw(st.sampled_from((False, False, False, True)))
        found.append(
            RunningSession(
                name,
                owner,
                "lab",
                "default",
                home.resource_group,
                draw(st.sampled_from((0, 5, 10))),
                NOW - draw(st.integers(0, 3)),
                None if ends is None else NOW + ends,
                (KernelPlacement(f"{name}-k", home.agent_id, (share,)),),
                preemptible=draw(st.sampled_from((True, True, False))),
                ending=ending,
                claimed_by=draw(st.sampled_from((None, "s1", "s2"))) if ending else None,
                session_group=draw(CIRCLES),
            )
        )
    return tuple(found)


@st.composite
def clustered(draw: st.DrawFn, found: tuple[RunningSession, ...]) -> tuple[RunningSession, ...]:
    """The same sessions, some of which are parts of one that runs on several nodes."""
    left = list(found)
    while len(left) > 1 and draw(st.booleans()):
        first = left.pop(draw(st.integers(0, len(left) - 1)))
        peers = [each for each in left if each.resource_group == first.resource_group]
        if not peers:
            continue
        other = draw(st.sampled_from(peers))
        left[left.index(other)] = replace(other, kernels=(*other.kernels, *first.kernels))
    return tuple(left)


@st.composite
def quota(draw: st.DrawFn, scope: str, scope_id: str) -> Quota:
    """Limits from nothing to everything, which may already be passed."""
    limit = draw(st.one_of(st.none(), NEEDS))
    return Quota(
        scope,
        scope_id,
        limit,
        draw(NEEDS),
        max_sessions=draw(st.sampled_from((None, None, 0, 1, 2))),
        held_sessions=draw(st.integers(0, 2)),
        max_containers=draw(st.sampled_from((None, None, None, 0, 1, 2))),
    )


@st.composite
def snapshots(
    draw: st.DrawFn, *, plain: bool = False, timeless: bool = False, crowd: bool = False
) -> Snapshot:
    """A snapshot; ``plain`` ones have no quotas, in ``timeless`` ones nobody knows when things end.

    In a ``crowd`` some sessions are there twice.
    """
    scopes = [("keypair", "key-ada"), ("user", "bob"), ("project", "lab"), ("domain", "default")]
    chosen = [] if plain else draw(st.sampled_from([[], scopes[:1], scopes[1:3], scopes]))
    selectors = st.sampled_from(("concentrated", "dispersed", "round-robin", "legacy"))
    agents = tuple(draw(agent(name)) for name in AGENTS[: draw(st.integers(0, 4))])
    pending = tuple(draw(session(number)) for number in range(draw(st.integers(0, 6))))
    if crowd:
        twins = [draw(st.sampled_from(pending)) for _ in range(draw(st.integers(0, 4))) if pending]
        pending += tuple(replace(s, session_id=f"t{n}") for n, s in enumerate(twins))
    runs = () if timeless else tuple(each for home in agents for each in draw(residents(home)))
    return Snapshot(
        NOW,
        tuple(
            GroupPolicy(
                name,
                draw(SEQUENCERS),
                draw(selectors),
                devices=draw(RULES),
                preemption=draw(PREEMPTION),
                rise=draw(RISES),
                served_slots=draw(SERVED),
                required_slots=draw(REQUIRED),
            )
            for name in GROUPS
        ),
        agents,
        tuple(replace(each, run_time=None) for each in pending) if timeless else pending,
        tuple(draw(quota(*scope)) for scope in chosen),
        draw(clustered(runs)) if runs and draw(st.booleans()) else runs,
    )


UNITS = {"cpu": MICRO, "mem": 1, "cuda.shares": MICRO // 2}


@st.composite
def contested(draw: st.DrawFn, name: str) -> tuple[Agent, tuple[RunningSession, ...]]:
    """An agent that is nearly full of sessions, some of which may end."""
    runs: list[RunningSession] = []
    used: dict[str, int] = {}
    sizes = {"cpu": draw(st.integers(1, 4)), "mem": 8, "cuda.shares": draw(st.sampled_from((0, 2)))}
    for number in range(draw(st.integers(0, 3))):
        shares = []
        for slot in ("cpu", "cuda.shares"):
            amount = draw(st.integers(0, min(2, sizes[slot] - used.get(slot, 0))))
            used[slot] = used.get(slot, 0) + amount
            if amount:
                shares.append(DeviceShare(slot, f"{slot}0", amount * UNITS[slot]))
        session_id = f"r{name}-{number}"
        runs.append(
            RunningSession(
                session_id,
                draw(st.sampled_from(OWNERS)),
                "lab",
                "default",
                GROUPS[0],
                draw(st.sampled_from((0, 0, 5, 10))),
                NOW - draw(st.integers(0, 3)),
                None,
                (KernelPlacement(f"{session_id}-k", name, tuple(shares)),),
                preemptible=draw(st.sampled_from((True, True, True, False))),
                ending=draw(st.sampled_from((False, False, False, True))),
            )
        )
    devices = tuple(
        Device(slot, f"{slot}0", n * UNITS[slot], (n - used.get(slot, 0)) * UNITS[slot])
        for slot, n in sizes.items()
    )
    held = len(runs)
    most = draw(st.sampled_from((None, None, held, held + 1, max(0, held - 1))))
    home = Agent(name, GROUPS[0], "x86_64", devices, containers=held, max_containers=most)
    return home, tuple(runs)


@st.composite
def contests(draw: st.DrawFn) -> Snapshot:
    """Agents that are nearly full, sessions that may end there, and one of a higher priority that waits."""
    places = [draw(contested(name)) for name in AGENTS[: draw(st.integers(1, 3))]]
    runs = tuple(each for _, here in places for each in here)
    count, mode = draw(st.sampled_from(((1, "single-node"), (2, "multi-node"), (3, "multi-node"))))
    wants = st.fixed_dictionaries({"cpu": st.integers(1, 3), "cuda.shares": st.integers(0, 2)})
    first = draw(wants)
    equal = draw(st.booleans())
    asked = [first if equal else draw(wants) for _ in range(count)]
    kernels = tuple(
        KernelRequest(f"k{n}", {s: m * UNITS[s] for s, m in each.items()}, "img1", "x86_64")
        for n, each in enumerate(asked)
    )
    waits = SessionRequest(
        "s1", "ada", "key-ada", "lab", "default", GROUPS[0], 10, NOW, kernels, cluster_mode=mode
    )
    rules = PreemptionRules(
        draw(st.sampled_from(("oldest", "newest", "fewest-sessions", "smallest-resources"))),
        "requeue",
        draw(st.sampled_from((0.0, 2.0))),
        draw(st.sampled_from(("group", "user"))),
    )
    group = GroupPolicy(GROUPS[0], devices=draw(RULES), preemption=rules)
    agents = tuple(home for home, _ in places)
    return Snapshot(NOW, (group,), agents, (waits,), running=draw(clustered(runs)))
