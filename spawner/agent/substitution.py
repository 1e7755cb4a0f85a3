"""Tokens that a command and its environment may contain, filled in by the engine that runs them.

``{bind_host}``, ``{bind_port}``: where the main port must listen; ``{home}``: the folder that
``/home/work`` is; ``{session_address}``: the host at which the session reaches hub and manager.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

BIND_PORT = "{bind_port}"


@dataclass(frozen=True, slots=True)
class Substitution:
    """The values of the tokens for one kernel."""

    bind_host: str
    bind_port: int
    home: str
    session_address: str

    def text(self, value: str) -> str:
        """``value`` with its tokens replaced; other braces stay as they are."""
        for token, replacement in (
            ("{bind_host}", self.bind_host),
            (BIND_PORT, str(self.bind_port)),
            ("{home}", self.home),
            ("{session_address}", self.session_address),
        ):
            value = value.replace(token, replacement)
        return value

    def environ(self, values: Mapping[str, str]) -> dict[str, str]:
        """All values of an environment with their tokens replaced."""
        return {name: self.text(value) for name, value in values.items()}
