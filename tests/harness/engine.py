"""An engine in memory, to be spoiled by small subclasses."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from typing import Any

from spawner.agent.engines.base import (
    BoundMount,
    Engine,
    EngineError,
    EngineEvent,
    EngineState,
    Identity,
    Limits,
)
from spawner.agent.protocol import ImagePull, ImageReport, KernelSpec


class MemoryEngine(Engine):
    """Kernels are entries of ``states``; each call is kept in ``calls``."""

    name = "memory"

    def __init__(self) -> None:
        self.states: dict[Identity, EngineState] = {}
        self.calls: list[str] = []

    async def open(self, config: Mapping[str, Any]) -> None:
        pass

    async def close(self) -> None:
        pass

    async def images(self) -> tuple[ImageReport, ...]:
        return ()

    async def ensure_image(self, name: str, pull: ImagePull | None = None) -> AsyncIterator[str]:
        self.calls.append("image")
        yield f"getting {name}"

    async def create(
        self, spec: KernelSpec, limits: Limits, mounts: tuple[BoundMount, ...]
    ) -> EngineState:
        self.calls.append("create")
        identity = Identity(spec.kernel_id, spec.session_id, spec.epoch)
        made = EngineState(identity, "created", spec.kernel_id, (), spec.shares)
        return self.states.setdefault(identity, made)

    async def start(self, identity: Identity) -> EngineState:
        self.calls.append("start")
        if identity not in self.states:
            raise EngineError("it is not there")
        self.states[identity] = replace(self.states[identity], phase="running")
        return self.states[identity]

    async def stop(self, identity: Identity, grace: float) -> None:
        self.calls.append("stop")
        if identity in self.states:
            self.states[identity] = replace(self.states[identity], phase="exited", exit_code=143)

    async def remove(self, identity: Identity) -> None:
        self.calls.append("remove")
        self.states.pop(identity, None)

    async def list(self) -> tuple[EngineState, ...]:
        return tuple(self.states.values())

    async def inspect(self, identity: Identity) -> EngineState | None:
        return self.states.get(identity)

    async def logs(self, identity: Identity, tail: int) -> str:
        return ""

    async def events(self) -> AsyncIterator[EngineEvent]:
        nothing: tuple[EngineEvent, ...] = ()
        for event in nothing:
            yield event

    async def session_address(self) -> str:
        return "127.0.0.1"
