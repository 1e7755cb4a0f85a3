"""Which engine the local agent uses, and what it needs before it can work."""

from __future__ import annotations

from dataclasses import dataclass

from hub.config.deployment import LOOPBACK
from hub.supervisor import SupervisorError


@dataclass(frozen=True, slots=True)
class EngineChoice:
    """The engine, and where hub and manager must listen so that its sessions reach them."""

    engine: str
    host: str
    reason: str
    image_missing: str | None = None
    """Name of the image that must be made before the agent starts."""


def choose_engine(wanted: str) -> EngineChoice:
    """Resolve ``auto``, ``docker`` or ``process``; blocks while it asks the Docker engine.

    Raises ``SupervisorError`` when ``docker`` is wanted and no engine answers.
    """
    if wanted == "process":
        return process_choice("as configured")
    # Only asked when a Docker engine may be used.
    from docker.errors import DockerException
    from kernels.build import default_image, image_present
    from spawner.agent.engines.docker import ensure_network

    try:
        gateway = ensure_network()
        image = default_image()
        missing = None if image_present(image) else image
    except (DockerException, OSError) as error:
        sentence = f"no Docker engine answers ({_brief(error)})"
        if wanted == "docker":
            raise SupervisorError(
                f"{sentence}: start it, or use --engine process for users who trust each other"
            ) from error
        return process_choice(sentence)
    return EngineChoice("docker", gateway, "a Docker engine answers", missing)


def process_choice(reason: str) -> EngineChoice:
    """The process engine, with the reason why it was chosen."""
    return EngineChoice("process", LOOPBACK, reason)


def _brief(error: Exception) -> str:
    """The first line of an error, at most 200 characters."""
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
