"""Which engine the local agent uses, and what it needs before it can work."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from hub.config.deployment import LOOPBACK
from hub.supervision.supervisor import SupervisorError
from spawner.options import DEFAULT_IMAGE


@dataclass(frozen=True, slots=True)
class EngineChoice:
    """The engine, and where hub and manager must listen so that its sessions reach them."""

    engine: str
    host: str
    reason: str
    image_missing: bool = False
    """Whether the image must be built before the agent starts."""
    outdated: Mapping[str, str] = field(default_factory=dict)
    """Images that were built from something else than this release has, and what is to be said of each."""


def choose_engine(wanted: str) -> EngineChoice:
    """Resolve ``auto``, ``docker`` or ``process``; blocks while it asks the Docker engine.

    With Docker the sessions' network is made, so that hub and manager can listen on its gateway.
    Raises ``SupervisorError`` when ``docker`` is wanted and no engine answers.
    """
    if wanted == "process":
        return process_choice("as configured")
    import docker
    from docker.errors import DockerException, ImageNotFound

    from kernels.build import outdated
    from spawner.agent.engines.base import EngineError
    from spawner.agent.engines.docker import ensure_network

    try:
        client = docker.from_env(timeout=20)
        try:
            gateway = ensure_network(client)
            client.images.get(DEFAULT_IMAGE)
            told = outdated(client)
        except ImageNotFound:
            return EngineChoice("docker", gateway, "a Docker engine answers", image_missing=True)
        finally:
            client.close()
    except (DockerException, EngineError, OSError) as error:
        sentence = f"Docker cannot be used: {_brief(error)}"
        if wanted == "docker":
            raise SupervisorError(
                f"{sentence}; put that right, or use --engine process for users who trust each other"
            ) from error
        return process_choice(sentence)
    return EngineChoice("docker", gateway, "a Docker engine answers", outdated=told)


def process_choice(reason: str) -> EngineChoice:
    """The process engine, with the reason why it was chosen."""
    return EngineChoice("process", LOOPBACK, reason)


def _brief(error: Exception) -> str:
    """Why Docker cannot be used, in a few words; at most 200 characters."""
    text = (str(error).splitlines() or [type(error).__name__])[0]
    if "PermissionError" in text:
        return "this account may not use its socket"
    if "FileNotFoundError" in text or "ConnectionRefusedError" in text:
        return "no engine answers"
    return text[:200]
