"""The engine ``docker``: kernels as containers."""

from spawner.agent.engines.docker.engine import DockerEngine
from spawner.agent.engines.docker.manifest import NETWORK
from spawner.agent.engines.docker.networks import ensure_network

__all__ = ["NETWORK", "DockerEngine", "ensure_network"]
