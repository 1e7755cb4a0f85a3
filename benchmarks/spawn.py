"""From the POST of a spawn to the answer of ``1+1``: Perijove against JupyterHub + DockerSpawner.

Both run on this machine at the same time with the same image, the same limits (1 CPU, 1 GiB) and a home
folder for each user, each behind its own configurable-http-proxy. Rounds alternate between them, and so
does who begins: one start alone, then ten at once. A ratio is Perijove / peer of the medians; below 1
means faster (or less CPU time) than the peer.

    scripts/bench spawn [--quick] [--image NAME]
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import psutil

from benchmarks.interruption import end_on_signals
from benchmarks.notebook_client import create_user, first_answer, stop
from benchmarks.reporting import finish, note, summary
from benchmarks.rigs import Rig, ours, peer

CROWD = 10
"""Servers started at once."""


@dataclass(slots=True)
class Samples:
    """What the rounds of one kind on one platform gave, in seconds; one entry for each round."""

    first: list[float] = field(default_factory=list)
    """Until the first user has an answer."""
    median: list[float] = field(default_factory=list)
    last: list[float] = field(default_factory=list)
    ready: list[float] = field(default_factory=list)
    """Until the hub called the last server ready: the rest is the kernel's start."""
    server_cpu: list[float] = field(default_factory=list)
    """CPU time of each server in its container, on average."""
    platform_cpu: list[float] = field(default_factory=list)
    """CPU time of hub, proxy and all else of the platform for each start (without Docker's own)."""
    others: list[float] = field(default_factory=list)
    """CPUs that were busy meanwhile with something else: Docker's own work, this benchmark, strangers."""


def machine_cpu() -> float:
    """CPU seconds that this machine has worked since it started."""
    times = psutil.cpu_times()
    return float(
        sum(times) - times.idle - times.iowait - times.steal - times.guest - times.guest_nice
    )


async def measure(rig: Rig, users: Sequence[str], samples: Samples | None) -> None:
    """Start all ``users``' servers at once, wait for each one's answer, stop them."""
    async with aiohttp.ClientSession() as http:
        for user in users:
            await create_user(http, rig.hub, user)
        begin, busy, before = time.monotonic(), machine_cpu(), rig.platform_cpu()
        answers = await asyncio.gather(
            *(first_answer(http, rig.hub, user, rig.options) for user in users)
        )
        platform_cpu = (rig.platform_cpu() - before) / len(users)
        server_cpu = await asyncio.to_thread(rig.server_cpu) / len(users)
        others = machine_cpu() - busy - (server_cpu + platform_cpu) * len(users)
        others /= time.monotonic() - begin
        await asyncio.gather(*(stop(http, rig.hub, user) for user in users))
    times = sorted(answer.answered for answer in answers)
    kind = "warm-up" if samples is None else f"{len(users)} at once" if len(users) > 1 else "alone"
    note(
        f"{rig.name:>13}, {kind}: first {times[0]:.2f} s, last {times[-1]:.2f} s;"
        f" CPU {server_cpu:.2f} s in each server, {platform_cpu:.2f} s in the platform for each;"
        f" {others:.2f} CPUs busy with other things"
    )
    if samples is not None:
        samples.first.append(times[0])
        samples.median.append(statistics.median(times))
        samples.last.append(times[-1])
        samples.ready.append(max(answer.ready for answer in answers))
        samples.server_cpu.append(server_cpu)
        samples.platform_cpu.append(platform_cpu)
        samples.others.append(others)


async def compare(
    rigs: Sequence[Rig], users: Sequence[str], rounds: int, crowds: int
) -> dict[str, dict[str, Samples]]:
    """Alternate over the rigs; samples by rig and kind of round."""
    samples: dict[str, dict[str, Samples]] = defaultdict(lambda: defaultdict(Samples))
    for rig in rigs:
        await measure(rig, users[:1], None)
    for kind, number, who in (("alone", rounds, users[:1]), ("crowd", crowds, users)):
        for index in range(number):
            for rig in rigs if index % 2 == 0 else rigs[::-1]:
                await measure(rig, who, samples[rig.name][kind])
    return samples


def ratios_of(samples: dict[str, dict[str, Samples]]) -> dict[str, float]:
    """Perijove / peer of the medians, and the CPU time of whole starts."""

    def ratio(kind: str, what: Callable[[Samples], list[float]]) -> float:
        mine, others = (samples[name][kind] for name in ("perijove", "dockerspawner"))
        return round(statistics.median(what(mine)) / statistics.median(what(others)), 3)

    def cpu(one: Samples) -> list[float]:
        return [sum(both) for both in zip(one.server_cpu, one.platform_cpu, strict=True)]

    return {
        "alone": ratio("alone", lambda one: one.last),
        "crowd_first": ratio("crowd", lambda one: one.first),
        "crowd_median": ratio("crowd", lambda one: one.median),
        "crowd_last": ratio("crowd", lambda one: one.last),
        "alone_cpu": ratio("alone", cpu),
        "crowd_cpu": ratio("crowd", cpu),
    }


def main() -> None:
    """Run the comparison and print the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="two rounds, and three at once")
    parser.add_argument("--image", default="perijove/jupyterlab:latest")
    arguments = parser.parse_args()
    rounds, crowds, crowd = (2, 2, 3) if arguments.quick else (8, 4, CROWD)
    users = [f"u{number}" for number in range(crowd)]
    end_on_signals()
    with contextlib.ExitStack() as stack:
        folder = Path(
            stack.enter_context(tempfile.TemporaryDirectory(prefix="perijove-bench-"))
        ).resolve()
        rigs = [
            stack.enter_context(start(arguments.image, folder / start.__name__, users))
            for start in (ours, peer)
        ]
        samples = asyncio.run(compare(rigs, users, rounds, crowds))
    ratios = ratios_of(samples)
    for name, ratio in ratios.items():
        note(f"{name}: {ratio} of the peer's")
    finish(
        {
            "benchmark": "spawn",
            "ratios": ratios,
            "crowd": crowd,
            "rounds": {"alone": rounds, "crowd": crowds},
            "seconds": {
                name: {
                    kind: {what: summary(getattr(one, what)) for what in Samples.__slots__}
                    for kind, one in kinds.items()
                }
                for name, kinds in samples.items()
            },
        }
    )


if __name__ == "__main__":
    main()
