"""Running an agent: engine and plug-ins are chosen here, then the daemon takes over."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
from importlib.metadata import entry_points
from pathlib import Path

from spawner.accelerators.registry import Accelerators
from spawner.agent.config import AgentConfig
from spawner.agent.daemon import AgentDaemon
from spawner.agent.engines.base import Engine, EngineError
from spawner.agent.metrics import AgentMetrics
from spawner.agent.metrics_endpoint import AgentMetricsEndpoint
from spawner.monitors.registry import Monitors, of_loop

GROUP = "perijove.engines"
log = logging.getLogger(__name__)


def load_engine(name: str) -> Engine:
    """The engine that an installed package offers as ``name``. Raises ``EngineError``."""
    installed = {point.name: point for point in entry_points(group=GROUP)}
    if name not in installed:
        raise EngineError(f"engine is {name!r}: one of {', '.join(sorted(installed))}")
    try:
        engine = installed[name].load()()
    except (ImportError, AttributeError, TypeError) as error:
        raise EngineError(f"engine {name!r} cannot be loaded: {error}") from error
    if not isinstance(engine, Engine):
        raise EngineError(f"engine {name!r} is not an Engine")
    return engine


def choose_engine(name: str) -> Engine:
    """``auto`` is docker where a Docker engine answers, else process; other names as they are."""
    if name != "auto":
        return load_engine(name)
    import docker
    from docker.errors import DockerException

    try:
        client = docker.from_env(timeout=10)
        client.ping()
        client.close()
    except (DockerException, OSError) as error:
        log.info("no Docker engine answers (%s): sessions will be processes", error)
        return load_engine("process")
    return load_engine("docker")


async def run_agent(config: AgentConfig) -> None:
    """Run until SIGTERM or SIGINT; kernels go on after it.

    Raises ``EngineError``, ``PluginError`` or ``ValueError`` with a sentence when it cannot begin.
    """
    Path(config.state_dir).mkdir(parents=True, exist_ok=True, mode=0o700)
    accelerators = Accelerators.load(dict(config.accelerators))
    metrics = AgentMetrics(config.agent_id)
    engine = metrics.timed(choose_engine(config.engine))
    daemon = AgentDaemon(config, engine, accelerators, metrics)

    def text() -> bytes:
        return metrics.render(daemon.kernels.reports(), daemon.measuring.latest)

    async def asked() -> bytes:
        return text()

    async with (
        Monitors(parent=config).start("agent", of_loop(asked)),
        AgentMetricsEndpoint(parent=config).serve(text) as url,
    ):
        os.environ.pop(
            "PERIJOVE_AGENT_TOKEN", None
        )  # sessions of the process engine inherit nothing
        if url:
            log.info("metrics are at %s", url)
        await _until_told(daemon)


async def _until_told(daemon: AgentDaemon) -> None:
    task = asyncio.create_task(daemon.run())
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, task.cancel)
    with contextlib.suppress(asyncio.CancelledError):
        try:
            await task
        except* EngineError as group:
            raise group.exceptions[0] from None
