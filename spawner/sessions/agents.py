"""The manager's end of the agents' connections."""

from __future__ import annotations

from typing import Protocol


class AgentConnection(Protocol):
    """A text-frame connection to one agent (a WebSocket in the product, memory in tests)."""

    async def send(self, frame: str) -> None:
        """Send one frame; raises ``ConnectionError`` when the agent is gone."""

    async def receive(self) -> str | None:
        """The next frame, or None when the connection is closed."""

    async def close(self, reason: str) -> None:
        """Close, telling why."""


class AgentRegistry:
    """Speaks ``spawner.agent.protocol`` with every connected agent."""

    async def serve(self, connection: AgentConnection, token: str) -> None:
        """Serve one connection until it ends; closes it with a sentence on any fault of the agent."""
        raise NotImplementedError
