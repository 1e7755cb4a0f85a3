"""Many starts and stops on one node: nothing of them stays, and no process grows.

``PERIJOVE_SOAK`` is the number of sessions (40); what was counted is written to ``artifacts/soak.csv``.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.cluster.hosts import Host, sh
from tests.cluster.one_node import one_node
from tests.cluster.platform import Platform, until
from tests.integration.docker_engine import TEST_IMAGE

SESSIONS = int(os.environ.get("PERIJOVE_SOAK", "40"))
pytestmark = [
    pytest.mark.integration,
    pytest.mark.docker,
    pytest.mark.timeout(120 + 10 * SESSIONS),
]
AT_ONCE = 8
WARM = 12
"""Sessions before the first count: by then everything that is kept for later is there."""
GROWTH = 24 * 2**20
"""Bytes that agent and manager may be larger after many sessions than after a few."""


@pytest.fixture
def platform() -> Iterator[Platform]:
    with one_node() as made:
        yield made


def submit(platform: Platform, number: int) -> str:
    """One of three kinds: a job, a server, a cluster with a network of its own."""
    config = {"resources": {"cpu": "0.1", "mem": "48m"}, "resource_opts": {"shmem": "8m"}}
    kind: dict[str, object] = {"type": "batch", "startupCommand": "true"} if number % 3 else {}
    size = 2 if number % 10 == 0 else 1
    return platform.create(
        f"soak-{number}", TEST_IMAGE, size, clusterMode="single-node", config=config, **kind
    )


def live_and_die(platform: Platform, numbers: range) -> None:
    """Sessions of these numbers start and end, several at a time."""
    for first in range(numbers.start, numbers.stop, AT_ONCE):
        refs = [submit(platform, n) for n in range(first, min(first + AT_ONCE, numbers.stop))]
        for ref in refs:
            found = platform.wait(ref, "RUNNING", "TERMINATED", seconds=120)
            if found["sessionType"] != "batch":
                platform.call("DELETE", f"/session/{ref}")
        for ref in refs:
            platform.wait(ref, "TERMINATED", seconds=120)


def things(platform: Platform, host: Host) -> dict[str, int]:
    """How many there are of everything that a start makes, as the host itself tells."""
    space = host.inside("sh", "-c")
    engine = ("docker", "-H", host.socket)
    groups = Path("/sys/fs/cgroup").glob(f"*/{host.space}/**/")
    counts = {
        "containers": len(sh(*engine, "ps", "-aq").split()),
        "networks": len(sh(*engine, "network", "ls", "-q").split()),
        "volumes": len(sh(*engine, "volume", "ls", "-q").split()),
        "interfaces": len(sh(*space, "ls /sys/class/net").split()),
        "firewall rules": len(sh(*space, "iptables-save | grep ^-A").splitlines()),
        "mounts": len((Path(f"/proc/{host.holder}") / "mounts").read_text().splitlines()),
        "control groups": len(list(groups)),
        "processes": len(sh("ip", "netns", "pids", host.space).split()),
        "folders": len(list((host.folder / "agent").rglob("*"))),
        "held": sum(float(each["used"]) > 0 for each in platform.agents()["h1"]["devices"]),
    }
    for name in ("manager", "h1"):
        process = psutil.Process(platform.processes[name].pid)
        counts[f"{name}'s threads"] = process.num_threads()
        counts[f"{name}'s sockets and files"] = process.num_fds()
    return counts


def sizes(platform: Platform) -> dict[str, int]:
    """Resident bytes of agent and manager."""
    return {
        name: psutil.Process(platform.processes[name].pid).memory_info().rss
        for name in ("manager", "h1")
    }


def at_rest(now: dict[str, int], before: dict[str, int]) -> bool:
    """Nothing is there more often than before, but a thread or connection that a pool keeps."""
    spare = {name: 6 if "'s" in name else 0 for name in now}
    return all(now[name] <= before[name] + spare[name] for name in now)


def test_nothing_is_left_of_many_sessions(platform: Platform) -> None:
    (host,) = platform.hosts.all
    live_and_die(platform, range(WARM))
    platform.audit()
    before, small = things(platform, host), sizes(platform)
    begun = time.monotonic()
    live_and_die(platform, range(WARM, WARM + SESSIONS))
    seconds = time.monotonic() - begun
    platform.audit()
    after = until(lambda: things(platform, host), lambda now: at_rest(now, before), 90)
    large = sizes(platform)
    report = Path(__file__).parents[2] / "artifacts" / "soak.csv"
    report.parent.mkdir(exist_ok=True)
    with report.open("a") as file:
        file.write(f"sessions,{SESSIONS},{seconds:.0f} s\n")
        file.writelines(f"{name},{before[name]},{after[name]}\n" for name in before)
        file.writelines(f"{name}'s MiB,{small[name] >> 20},{large[name] >> 20}\n" for name in small)
    assert all(large[name] - small[name] < GROWTH for name in small), (small, large)
