"""What a real agent measures of a session and its devices, as its owner and Prometheus see it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from spawner.agent.engines.process import IMAGE
from tests.harness.real_node import node, until
from tests.unit.api.server import HUB_SECRET

pytestmark = pytest.mark.integration

MOCK = """
[[devices]]
slot = "cuda.shares"
id = "GPU-0"
capacity = 1
[devices.measures]
cuda_util = {kind = "utilization", unit = "percent", value = 42, capacity = 100}
cuda_mem = {kind = "usage", unit = "bytes", value = 1000, capacity = 4000}
cuda_power = {kind = "usage", unit = "watts", value = 300, capacity = 700}
cuda_temperature = {kind = "gauge", unit = "celsius", value = 61}
"""
HUB = {"Authorization": f"Bearer {HUB_SECRET}"}
BUSY = "import sys\nprint('begun', flush=True)\nwhile True: pass"


async def test_a_session_is_told_of_its_part_of_a_gpu_and_of_its_processes(tmp_path: Path) -> None:
    (described := tmp_path / "devices.toml").write_text(MOCK)
    async with node(tmp_path, {"mock": {"file": str(described)}}) as api:
        body = {
            "name": "half",
            "image": IMAGE,
            "type": "batch",
            "startupCommand": f'{sys.executable} -c "{BUSY}"',
            "config": {"resources": {"cpu": "0.5", "mem": "256m", "cuda.shares": "0.5"}},
        }
        pair = await api.user("ada")
        created = await api.signed(pair, "POST", "/session", body)
        assert created.status == 201, created.body
        session = created.body["sessionId"]

        async def stats() -> dict[str, Any]:
            answer = await api.signed(pair, "GET", f"/session/{session}/stats")
            [measures] = answer.body["kernels"].values()
            return dict(measures)

        live = await until(stats, lambda seen: {"cuda_util", "cpu_util"} <= seen.keys())
        assert (live["cuda_util"]["current"], live["cuda_util"]["unit_hint"]) == ("42", "pct")
        assert (live["cuda_mem"]["current"], live["cuda_mem"]["pct"]) == ("1000", "25")
        assert (live["cuda_power"]["current"], live["cuda_power"]["capacity"]) == ("300", "700")
        assert live["cuda_temperature"]["current"] == "61"
        assert all(live[each]["shared"] for each in live if each.startswith("cuda_"))
        assert "shared" not in live["mem"]

        metrics = str((await api.send("GET", "/metrics", headers=HUB)).body)
        told = [each for each in metrics.splitlines() if 'metric="cuda_util"' in each]
        assert {line.partition("{")[0] for line in told} == {
            "perijove_node_measure",
            "perijove_device_measure",
            "perijove_kernel_measure",
        }

        async def processes() -> list[dict[str, Any]]:
            answer = await api.signed(pair, "GET", f"/session/{session}/processes")
            return list(answer.body["processes"])

        found = await until(processes, lambda seen: any("while True" in p["command"] for p in seen))
        assert "while True" in (busiest := found[0])["command"]
        assert busiest["name"].startswith("python")
        assert float(busiest["cpu_used"]) > 0
        assert float(busiest["cpu_util"]) > 0
        assert int(busiest["mem"]) > 2**20
        stranger = await api.user("eve")
        refused = await api.signed(stranger, "GET", f"/session/{session}/processes")
        assert refused.status == 404

        await api.signed(pair, "DELETE", f"/session/{session}")

        async def status() -> str:
            return str((await api.signed(pair, "GET", f"/session/{session}")).body["status"])

        await until(status, lambda seen: seen == "TERMINATED")
        kept = await stats()
        assert kept["cuda_util"]["current"] == "42"
        assert kept["cuda_util"]["shared"] is True
        assert await processes() == []
