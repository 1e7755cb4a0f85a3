"""The control plane: wires sessions, offers, agents, scheduler loop and reconciler together."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from dataclasses import dataclass

from spawner.sessions.agents import AgentRegistry
from spawner.sessions.events import EventBus
from spawner.sessions.offers import Offers
from spawner.sessions.service import SessionService
from spawner.sessions.tokens import AgentTokens
from store.database import Store
from vfolder.folders import FolderService


@dataclass(frozen=True, slots=True)
class ControlSettings:
    """Times in seconds."""

    tick: float = 30.0
    """Slow tick of scheduler and reconciler, which makes up for lost wake-ups."""
    heartbeat_interval: float = 10.0
    agent_timeout: float = 40.0
    """An agent not heard of for this long is LOST."""
    sync_interval: float = 30.0
    call_timeout: float = 10.0


class ControlPlane:
    """Everything of the manager that is not HTTP. State is in rows only: a new one carries on."""

    sessions: SessionService
    offers: Offers
    agents: AgentRegistry
    tokens: AgentTokens
    bus: EventBus

    def __init__(
        self,
        store: Store,
        folders: FolderService,
        now: Callable[[], dt.datetime],
        settings: ControlSettings = ControlSettings(),
    ) -> None:
        raise NotImplementedError

    async def start(self) -> None:
        """Bootstrap groups and presets, resume from rows, start the loops."""
        raise NotImplementedError

    async def stop(self) -> None:
        """Stop the loops and close agents' connections; sessions go on."""
        raise NotImplementedError
