"""An agent's create and start of a container against the bare Docker API's, of the same container.

Ours is the agent's own way of a kernel: look for the image, resolve and check the mounts, derive the
limits, create, start, read where the port was published, see that it answers, report. The peer is
the creation and the start by the ``docker`` package with what Docker says of one of our containers, and
nothing else. That both containers are the same is checked: Docker's description of the one must equal the other's.

Rounds alternate, and so does who begins: one container alone, then twenty at once (the peer with twenty
threads and connections). A ratio is ours / peer. Stopping and removing is not measured. At the end an agent
rests with fifty containers: see ``benchmarks/idle.py``.

    scripts/bench agent [--quick] [--image NAME]
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import statistics
import tempfile
import threading
import time
import uuid
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import docker
from docker.errors import NotFound

from benchmarks.idle import idle
from benchmarks.interruption import end_on_signals, remove_containers
from benchmarks.reporting import finish, note, summary
from spawner.accelerators.registry import Accelerators
from spawner.agent.engines.base import Identity
from spawner.agent.engines.docker import DockerEngine
from spawner.agent.protocol import KernelReport, KernelSpec, Mount, Port, Share
from spawner.agent.runner import KernelRunner, Surroundings

CROWD = 20
"""Containers started at once."""
SLEEPERS = 50
"""Containers while an agent rests."""
GIB = 2**30
SHM = 64 * 2**20
PIDS = 4096
COMMAND = ("sleep", "600")
HOME = "homes/somebody"
ENVIRON = {f"JUPYTERHUB_VARIABLE_{number}": "a value of some length" for number in range(20)}


@dataclass(slots=True)
class Samples:
    """Seconds, one entry for each container (``alone``) or round (``crowd``)."""

    alone: list[float] = field(default_factory=list)
    crowd: list[float] = field(default_factory=list)
    """Until the last of a crowd ran."""
    crowd_each: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    """CPU time of this process for one container started alone (Docker's own is the same for both)."""


class Ours:
    """Kernels run by the agent's runner on its Docker engine."""

    name = "perijove"

    def __init__(self, engine: DockerEngine, accelerators: Accelerators, root: Path, image: str):
        self._image = image
        self._engine = engine
        self._reached: dict[str, dict[str, float]] = defaultdict(dict)
        self._failures: dict[str, str] = {}
        self._running: dict[str, asyncio.Event] = defaultdict(asyncio.Event)
        self._runners: list[KernelRunner] = []
        self.stages: dict[str, list[float]] = defaultdict(list)
        self._around = Surroundings(
            engine=engine,
            accelerators=accelerators,
            volumes={"local": str(root)},
            address="127.0.0.1",
            max_pids=PIDS,
            stop_grace=0,
            changed=self._see,
        )

    def _see(self, report: KernelReport) -> None:
        stage = report.progress.partition(" ")[0]
        self._reached[report.kernel_id].setdefault(stage, time.perf_counter())
        if report.status == "TERMINATED":
            self._failures[report.kernel_id] = report.progress
        if report.status in ("RUNNING", "TERMINATED"):
            self._running[report.kernel_id].set()

    async def start(self) -> tuple[str, float]:
        """Name of the container, and seconds until the agent reports that it runs."""
        spec = self.spec(str(uuid.uuid4()))
        runner = KernelRunner(self._around, Identity(spec.kernel_id, spec.session_id, spec.epoch))
        self._runners.append(runner)
        begin = time.perf_counter()
        runner.want(spec)
        await self._running[spec.kernel_id].wait()
        seconds = time.perf_counter() - begin
        if spec.kernel_id in self._failures:
            raise RuntimeError(f"the container did not start: {self._failures[spec.kernel_id]}")
        return f"perijove-{spec.kernel_id}-{spec.epoch}", seconds

    def keep_stages(self) -> None:
        """Remember how long each stage of the starts since the last call took."""
        for reached in self._reached.values():
            for (stage, begin), end in zip(
                list(reached.items())[:-1], list(reached.values())[1:], strict=True
            ):
                self.stages[stage].append(end - begin)

    async def clear(self) -> None:
        """Remove the containers of the last round."""
        for runner in self._runners:
            await runner.close()
        await asyncio.gather(*(self._engine.remove(runner.identity) for runner in self._runners))
        self._runners.clear()
        self._reached.clear()
        self._running.clear()

    def spec(self, kernel_id: str) -> KernelSpec:
        """A kernel as the manager asks for one. Its port is plain TCP: nothing has to boot behind it."""
        return KernelSpec(
            kernel_id=kernel_id,
            session_id=str(uuid.uuid4()),
            epoch=1,
            session_name="benchmark",
            owner="somebody",
            hostname="benchmark",
            image=self._image,
            command=COMMAND,
            environ=ENVIRON,
            mounts=(Mount("local", HOME, "/home/work"),),
            ports=(Port("shell", 8888, "tcp"),),
            shares=(Share("cpu", "cpu", 100_000), Share("mem", "mem", GIB)),
            shm_bytes=SHM,
        )


class Raw:
    """Two calls of the Docker API with the description of one of our containers."""

    name = "docker"

    def __init__(self, client: docker.DockerClient):
        self._client = client
        self._names: list[str] = []
        self._pool = ThreadPoolExecutor(CROWD, thread_name_prefix="docker-bare")
        self.config: dict[str, Any] = {}

    def copy(self, name: str) -> None:
        """Make what our container of this name is."""
        facts = self._client.api.inspect_container(name)
        labels = {f"ai.perijove.benchmark.{number}": "text" for number in range(8)}
        self.config = {**facts["Config"], "Labels": labels, "HostConfig": facts["HostConfig"]}

    async def start(self) -> tuple[str, float]:
        """Name of the container, and seconds until Docker's ``start`` returned."""
        name = f"perijove-bench-{uuid.uuid4()}"
        self._names.append(name)
        loop = asyncio.get_running_loop()
        return name, await loop.run_in_executor(self._pool, self._start, name)

    def _start(self, name: str) -> float:
        begin = time.perf_counter()
        self._client.api.create_container_from_config(self.config, name)
        self._client.api.start(name)
        return time.perf_counter() - begin

    async def clear(self) -> None:
        """Remove the containers of the last round."""
        loop = asyncio.get_running_loop()
        await asyncio.gather(
            *(loop.run_in_executor(self._pool, self._remove, name) for name in self._names)
        )
        self._names.clear()

    def close(self) -> None:
        """Begin nothing more."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _remove(self, name: str) -> None:
        with contextlib.suppress(NotFound):  # it was never created
            self._client.api.remove_container(name, v=True, force=True)


Way = Ours | Raw


@contextlib.asynccontextmanager
async def ways(image: str, root: Path) -> AsyncIterator[tuple[Ours, Raw, docker.DockerClient]]:
    """Both ways to start a container; their containers are gone afterwards."""
    uid, gid = (os.geteuid(), os.getegid()) if os.geteuid() else (1000, 1000)
    home = root / HOME
    home.mkdir(parents=True)
    os.chown(home, uid, gid)
    accelerators = Accelerators.load({})
    await accelerators.devices()
    engine = DockerEngine()
    await engine.open({"state_dir": str(root / "agent")})
    client = docker.from_env(max_pool_size=CROWD)
    mine = Ours(engine, accelerators, root, image)
    bare = Raw(client)
    try:
        yield mine, bare, client
    finally:
        await engine.close()
        bare.close()
        await asyncio.to_thread(_calls_end)
        client.close()
        await asyncio.to_thread(remove_containers, root)


def _calls_end() -> None:
    """Wait for calls that an interruption cut off: they go on in threads, and make containers."""
    for thread in threading.enumerate():
        if thread.name.startswith("docker"):  # the engine's and the peer's pools
            thread.join(60)


def description(client: docker.DockerClient, name: str) -> dict[str, Any]:
    """What Docker says of a container, without what differs from one to the next."""
    facts = client.api.inspect_container(name)
    config = {key: value for key, value in facts["Config"].items() if key != "Labels"}
    config["Env"] = sorted(config["Env"])
    return {**config, **facts["HostConfig"], "running": facts["State"]["Running"]}


async def check_same(mine: Ours, bare: Raw, client: docker.DockerClient) -> None:
    """Raise ``RuntimeError`` unless both ways start the same container; also a warm-up."""
    ours, _ = await mine.start()
    await asyncio.to_thread(bare.copy, ours)
    theirs, _ = await bare.start()
    first, second = [await asyncio.to_thread(description, client, name) for name in (ours, theirs)]
    differing = {
        key: (first.get(key), second.get(key))
        for key in first.keys() | second.keys()
        if first.get(key) != second.get(key)
    }
    if differing:
        raise RuntimeError(f"the two containers differ (ours, the peer's): {differing}")
    await mine.clear()
    await bare.clear()


async def measure(mine: Ours, bare: Raw, alone: int, crowds: int) -> dict[str, Samples]:
    """Alternate over both ways; samples by way."""
    samples = {way.name: Samples() for way in (mine, bare)}
    order: list[Way] = [mine, bare]
    for index in range(alone):
        for way in order if index % 2 == 0 else order[::-1]:
            cpu = time.process_time()
            _, seconds = await way.start()
            samples[way.name].cpu.append(time.process_time() - cpu)
            samples[way.name].alone.append(seconds)
            if way is mine:
                mine.keep_stages()
            await way.clear()
    for index in range(crowds):
        for way in order if index % 2 == 0 else order[::-1]:
            begin = time.perf_counter()
            each = await asyncio.gather(*(way.start() for _ in range(CROWD)))
            samples[way.name].crowd.append(time.perf_counter() - begin)
            samples[way.name].crowd_each += [seconds for _, seconds in each]
            await way.clear()
    return samples


def tenth(samples: Sequence[float]) -> float:
    """The 90th percentile."""
    return statistics.quantiles(samples, n=10)[-1]


def compared(samples: dict[str, Samples]) -> dict[str, float]:
    """Ours / peer; ``pairs`` is the median of the ratios of rounds that followed each other."""
    ours, peer = samples["perijove"], samples["docker"]

    def pairs(what: str) -> float:
        first: list[float] = getattr(ours, what)
        second: list[float] = getattr(peer, what)
        ratios = [one / other for one, other in zip(first, second, strict=True)]
        return round(statistics.median(ratios), 3)

    def ratio(one: Callable[[Sequence[float]], float], what: str) -> float:
        return round(one(getattr(ours, what)) / one(getattr(peer, what)), 3)

    return {
        "alone_pairs": pairs("alone"),
        "alone_median": ratio(statistics.median, "alone"),
        "alone_p90": ratio(tenth, "alone"),
        "crowd_last_pairs": pairs("crowd"),
        "crowd_last_median": ratio(statistics.median, "crowd"),
        "crowd_each_median": ratio(statistics.median, "crowd_each"),
        "crowd_each_p90": ratio(tenth, "crowd_each"),
    }


async def run(image: str, alone: int, crowds: int, rest: float) -> dict[str, object]:
    """Measure, and put the result together."""
    with tempfile.TemporaryDirectory(prefix="perijove-bench-") as temporary:
        async with ways(image, Path(temporary).resolve()) as (mine, bare, client):
            await check_same(mine, bare, client)
            for _ in range(2):
                for way in (mine, bare):
                    await way.start()
                    await way.clear()
            samples = await measure(mine, bare, alone, crowds)
            specs = [mine.spec(str(uuid.uuid4())) for _ in range(SLEEPERS)]
            resting = await idle(Path(temporary).resolve(), specs, rest)
    ratios = compared(samples)
    for name, ratio in ratios.items():
        note(f"{name}: {ratio} of the bare Docker API's")
    return {
        "benchmark": "agent",
        "ratios": ratios,
        "idle": resting,
        "containers": {"alone": alone, "crowds": crowds, "crowd": CROWD},
        "seconds": {
            name: {
                what: {**summary(values), "p90": round(tenth(values), 4)}
                for what in Samples.__slots__
                if len(values := getattr(one, what)) > 1
            }
            for name, one in samples.items()
        },
        "stages": {stage: summary(values) for stage, values in mine.stages.items()},
    }


def main() -> None:
    """Run the comparison and print the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="six containers and two crowds")
    parser.add_argument("--image", default="perijove/plain:latest")
    arguments = parser.parse_args()
    alone, crowds, rest = (6, 2, 20.0) if arguments.quick else (30, 6, 60.0)
    end_on_signals()
    finish(asyncio.run(run(arguments.image, alone, crowds, rest)))


if __name__ == "__main__":
    main()
