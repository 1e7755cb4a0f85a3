"""Sessions on a real NVIDIA GPU: what they see of it, and what is told of their use.

Run them on a node with a GPU: ``scripts/test gpu``.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from shutil import which
from typing import Any, ClassVar

import pynvml
import pytest

from authenticator.keypairs import NewKeyPair
from spawner.accelerators.base import AcceleratorPlugin
from spawner.accelerators.conformance import AcceleratorConformance
from spawner.accelerators.cuda import CudaPlugin
from spawner.accelerators.nvml import Gpu, Nvml
from spawner.agent.engines.process import IMAGE
from tests.gpu import program
from tests.harness.real_node import node, until
from tests.unit.api.server import Api

GIB = 2**30


def _gpus() -> list[Gpu]:
    try:
        return [gpu for gpu in Nvml().gpus() if not gpu.partitioned]
    except pynvml.NVMLError:
        return []


GPUS = _gpus()
pytestmark = pytest.mark.skipif(not GPUS, reason="no NVIDIA GPU answers on this machine")


class TestWhole(AcceleratorConformance):
    settings: ClassVar[dict[str, Any]] = {"mode": "device"}

    def make(self, folder: Path) -> AcceleratorPlugin:
        plugin = CudaPlugin()
        plugin.configure(self.settings)
        return plugin

    def absent(self, folder: Path) -> None:
        """It is there."""


class TestParts(TestWhole):
    settings: ClassVar[dict[str, Any]] = {"mode": "shares", "reserved": "0.05"}


class User:
    """One who starts sessions."""

    def __init__(self, api: Api, pair: NewKeyPair) -> None:
        self.api, self.pair = api, pair

    async def start(self, name: str, mebibytes: int, *words: str, **slots: str) -> str:
        """A session that holds so much memory of its GPU; its id."""
        resources = {"cpu": "1", "mem": "2g", **{k.replace("_", "."): v for k, v in slots.items()}}
        command = [sys.executable, program.__file__, str(mebibytes), *words]
        body = {
            "name": name,
            "image": IMAGE,
            "type": "batch",
            "startupCommand": " ".join(command),
            "config": {"resources": resources},
        }
        created = await self.api.signed(self.pair, "POST", "/session", body)
        assert created.status == 201, created.body
        return str(created.body["sessionId"])

    async def said(self, session: str) -> dict[str, Any]:
        """What its program said of the GPU."""

        async def logs() -> list[str]:
            answer = await self.api.signed(self.pair, "GET", f"/session/{session}/logs")
            lines = str(answer.body["result"]["logs"]).splitlines() if answer.status == 200 else []
            return [line for line in lines if "devices" in line]

        return dict(json.loads((await until(logs, bool))[-1]))

    async def stats(self, session: str) -> dict[str, Any]:
        """The measures of its one kernel."""
        answer = await self.api.signed(self.pair, "GET", f"/session/{session}/stats")
        [measures] = answer.body["kernels"].values()
        return dict(measures)


def memory(measures: dict[str, Any]) -> float:
    """Bytes of GPU memory that a session is told to use."""
    return float(measures.get("cuda_mem", {}).get("current", 0))


def use(measures: dict[str, Any]) -> float:
    """Percent of a GPU that a session is told to use."""
    return float(measures.get("cuda_util", {}).get("current", -1))


async def test_a_session_sees_its_gpu_and_others_see_none(tmp_path: Path) -> None:
    async with node(tmp_path, {"cuda": {"mode": "device"}}) as api:
        user = User(api, await api.user("ada"))
        with_gpu = await user.start("with", 1024, "busy", cuda_device="1")
        without = await user.start("without", 1024)
        seen = await user.said(with_gpu)
        assert seen["devices"] == 1
        assert seen["uuid"] in {gpu.uuid.removeprefix("GPU-").replace("-", "") for gpu in GPUS}
        assert (await user.said(without))["devices"] == 0

        async def measures() -> dict[str, Any]:
            return await user.stats(with_gpu)

        told = await until(measures, lambda seen: memory(seen) >= GIB and use(seen) > 50)
        assert float(told["cuda_mem"]["capacity"]) in {float(gpu.memory_bytes) for gpu in GPUS}
        assert float(told["cuda_power"]["current"]) > 0
        assert float(told["cuda_temperature"]["current"]) > 0
        assert "shared" not in told["cuda_util"]
        assert not any(name.startswith("cuda_") for name in await user.stats(without))


async def two_halves(folder: Path, settings: dict[str, str]) -> list[dict[str, Any]]:
    """A session that rests on 4 GiB and one that works on 1 GiB; what each saw and is told."""
    async with node(
        folder, {"cuda": {"mode": "shares", "include": [GPUS[0].uuid], **settings}}
    ) as api:
        user = User(api, await api.user("ada"))
        resting = await user.start("resting", 4096, cuda_shares="0.5")
        working = await user.start("working", 1024, "busy", cuda_shares="0.25")
        seen = [await user.said(each) for each in (resting, working)]

        async def both() -> list[dict[str, Any]]:
            return [await user.stats(each) for each in (resting, working)]

        told = await until(
            both,
            lambda seen: (
                memory(seen[0]) >= 4 * GIB and memory(seen[1]) >= GIB and use(seen[1]) > 50
            ),
        )
        return [{**see, "told": tell} for see, tell in zip(seen, told, strict=True)]


def check_memory(resting: dict[str, Any], working: dict[str, Any]) -> None:
    """Each is told of its own memory and of nothing else."""
    whole = GPUS[0].memory_bytes
    for each, part in ((resting, 0.5), (working, 0.25)):
        assert float(each["told"]["cuda_mem"]["capacity"]) == pytest.approx(whole * part)
        assert "shared" not in each["told"]["cuda_mem"]
        assert each["told"]["cuda_power"]["shared"] is True
    assert memory(resting["told"]) < 5.5 * GIB
    assert memory(working["told"]) < 2.5 * GIB


async def test_parts_of_a_gpu_are_told_of_their_own_use(tmp_path: Path) -> None:
    resting, working = await two_halves(tmp_path, {})
    check_memory(resting, working)
    assert use(resting["told"]) < 5
    assert not any("shared" in each["told"]["cuda_util"] for each in (resting, working))


@contextmanager
def multi_process_service(folder: Path) -> Iterator[str]:
    """A running MPS daemon; its pipe folder."""
    environ = {
        **os.environ,
        "CUDA_VISIBLE_DEVICES": GPUS[0].uuid,
        "CUDA_MPS_PIPE_DIRECTORY": str(folder / "pipe"),
        "CUDA_MPS_LOG_DIRECTORY": str(folder / "log"),
    }
    for name in ("pipe", "log"):
        (folder / name).mkdir(parents=True)
    control = ["nvidia-cuda-mps-control"]
    subprocess.run([*control, "-d"], env=environ, check=True, timeout=30)
    try:
        yield str(folder / "pipe")
    finally:
        subprocess.run(control, env=environ, input=b"quit -t 5\n", check=True, timeout=60)


@pytest.mark.skipif(not which("nvidia-cuda-mps-control"), reason="no nvidia-cuda-mps-control here")
async def test_the_multi_process_service_holds_parts_to_their_share(tmp_path: Path) -> None:
    with multi_process_service(tmp_path / "mps") as pipe:
        resting, working = await two_halves(tmp_path, {"mps": pipe})
        check_memory(resting, working)
        assert all(each["told"]["cuda_util"]["shared"] for each in (resting, working))
        assert resting["multiprocessors"] == pytest.approx(working["multiprocessors"] * 2, rel=0.1)
        (more := tmp_path / "more").mkdir()
        async with node(more, {"cuda": {"mode": "shares", "mps": pipe}}) as api:
            user = User(api, await api.user("ada"))
            greedy = await user.start(
                "greedy", GPUS[0].memory_bytes // 2**20 // 2, cuda_shares="0.1"
            )
            assert (await user.said(greedy))["refused"] != 0
