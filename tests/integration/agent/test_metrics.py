"""An agent's own metrics: over a port of its own, with a token or certificates, and none by default."""

from __future__ import annotations

import asyncio
import os
import ssl
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.harness.ports import free_port
from tests.integration.agent.manager import TOKEN, scripted_manager
from tests.integration.agent.test_agent_process import Agent, spec
from tests.integration.engines.conformance import until
from tests.integration.nodes.test_joining import PERIJOVE, Authority

pytestmark = pytest.mark.integration


async def metrics(url: str, **how: Any) -> dict[str, dict[tuple[str, ...], float]] | int:
    """Values by name and values of labels; the status when it is refused."""
    async with aiohttp.ClientSession() as http, http.get(url, **how) as answer:
        if answer.status != 200:
            return answer.status
        found: dict[str, dict[tuple[str, ...], float]] = {}
        for family in text_string_to_metric_families(await answer.text()):
            for each in family.samples:
                labels = tuple(value for _, value in sorted(each.labels.items()))
                found.setdefault(each.name, {})[labels] = each.value
        return found


async def listening(url: str, **how: Any) -> Any:
    """What is answered as soon as anything is."""

    async def ask() -> Any:
        try:
            return await metrics(url, **how)
        except aiohttp.ClientConnectionError:
            return None

    return await until(ask, "the port is not open")


async def test_an_agent_tells_of_kernels_calls_and_measures(tmp_path: Path) -> None:
    (tmp_path / "volumes/local/user/home").mkdir(parents=True)
    (tmp_path / "token").write_text("secret-of-prometheus\n")
    url = f"http://127.0.0.1:{(port := free_port())}/metrics"
    async with scripted_manager() as manager:
        agent = Agent(tmp_path, manager)
        await agent.start(
            TOKEN,
            f"--AgentMetricsEndpoint.bind=127.0.0.1:{port}",
            f"--AgentMetricsEndpoint.token_file={tmp_path / 'token'}",
            "--AgentConfig.measure_interval=0.2",
            "--AgentConfig.agent_id=node-7",
        )
        try:
            wanted = spec()
            await manager.until(lambda: manager.hellos)
            await manager.want(wanted)
            await manager.status(wanted.kernel_id, "RUNNING")
            shown = {"headers": {"Authorization": "Bearer secret-of-prometheus"}}

            async def complete() -> Any:
                told = await metrics(url, **shown)
                assert isinstance(told, dict)
                return (
                    told if ("node-7", "cpu_util", "pct") in told["perijove_node_measure"] else None
                )

            told = await until(complete, "nothing was measured")
            assert told["perijove_agent_kernels"][("RUNNING",)] == 1
            assert told["perijove_agent_kernels"][("TERMINATED",)] == 0
            calls = told["perijove_agent_engine_call_seconds_count"]
            assert calls[("create", "done")] == 1
            assert calls[("start", "done")] == 1
            assert calls[("measure", "done")] >= 1
            assert told["perijove_agent_image_pull_seconds_count"][("done",)] == 0
            assert told["perijove_agent_connected"][()] == 1
            assert 0 <= told["perijove_agent_heartbeat_sent_age_seconds"][()] < 30
            assert told["perijove_agent_scratch_bytes"][()] >= 0
            assert ("node-7", "cpu", "cpu_util", "pct") in told["perijove_device_measure"]
            assert told["process_cpu_seconds_total"][()] > 0
            assert await metrics(url) == 401
            assert await metrics(url, headers={"Authorization": "Bearer wrong"}) == 401
            assert await metrics(url.replace("/metrics", "/"), **shown) == 404
            await manager.end(wanted.kernel_id)
            await manager.status(wanted.kernel_id, "TERMINATED")
        finally:
            await agent.kill()


async def test_only_certificates_of_the_right_authority_are_served(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    (tmp_path / "other").mkdir()
    stranger = Authority(tmp_path / "other").issue("prometheus")
    url = f"https://localhost:{(port := free_port())}/metrics"

    def client(certificate: Path | None) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=str(authority.file))
        if certificate is not None:
            context.load_cert_chain(certificate)
        return context

    async with scripted_manager() as manager:
        agent = Agent(tmp_path, manager)
        await agent.start(
            TOKEN,
            f"--AgentMetricsEndpoint.bind=localhost:{port}",
            f"--AgentMetricsEndpoint.certificate={authority.issue('node-1')}",
            f"--AgentMetricsEndpoint.client_ca={authority.file}",
        )
        try:
            told = await listening(url, ssl=client(authority.issue("prometheus")))
            assert "perijove_agent_kernels" in told
            for wrong in (None, stranger):
                with pytest.raises((aiohttp.ClientError, OSError)):
                    await metrics(url, ssl=client(wrong))
        finally:
            await agent.kill()


@pytest.mark.parametrize(
    ("option", "sentence"),
    [
        ("bind=9105", "an address to bind is '9105'"),
        ("bind=192.0.2.1:9105", "cannot listen on 192.0.2.1:9105"),
        ("client_ca=ca.pem", "client_ca is set, but there is no certificate"),
        ("token_file=nowhere", "token_file nowhere: No such file"),
    ],
)
async def test_what_cannot_work_is_said(tmp_path: Path, option: str, sentence: str) -> None:
    bind = () if option.startswith("bind") else ("--AgentMetricsEndpoint.bind=127.0.0.1:0",)
    agent = await asyncio.create_subprocess_exec(
        *(PERIJOVE, "agent", "--engine=process", f"--state-dir={tmp_path}", *bind),
        f"--AgentMetricsEndpoint.{option}",
        env={**os.environ, "PERIJOVE_AGENT_TOKEN": TOKEN},
        stderr=asyncio.subprocess.PIPE,
    )
    _, errors = await asyncio.wait_for(agent.communicate(), 30)
    assert agent.returncode == 1
    assert sentence in errors.decode()
