"""Who may read an agent's metrics."""

from __future__ import annotations

import asyncio
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from spawner.agent.metrics_endpoint import AgentMetricsEndpoint


@pytest.mark.parametrize(
    ("shown", "status"), [(b"Bearer right", 200), (b"Bearer wrong", 401), (b"Bearer \xff", 401)]
)
async def test_only_the_token_lets_in(tmp_path: Path, shown: bytes, status: int) -> None:
    (tmp_path / "token").write_text("right")
    endpoint = AgentMetricsEndpoint(bind="127.0.0.1:0", token_file=str(tmp_path / "token"))
    async with endpoint.serve(lambda: b"metrics") as url:
        where = urlsplit(url)
        reader, writer = await asyncio.open_connection(where.hostname, where.port)
        writer.write(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n")
        writer.write(b"Authorization: " + shown + b"\r\n\r\n")
        assert (await reader.readline()).split()[1] == str(status).encode()
        writer.close()
        await writer.wait_closed()
