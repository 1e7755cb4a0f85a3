"""The scheduler's policies: the built-in ones and those that installed packages bring along."""

from __future__ import annotations

from importlib.metadata import entry_points
from typing import Any

from spawner.scheduler.policies import BUILT_IN, Policies, PolicyError

SEQUENCERS = "perijove.sequencers"
SELECTORS = "perijove.selectors"


def load_policies() -> Policies:
    """Everything that the entry points offer besides the built-in policies.

    Raises ``PolicyError`` for one that cannot be imported.
    """
    return Policies(
        {**_load(SEQUENCERS), **BUILT_IN.sequencers}, {**_load(SELECTORS), **BUILT_IN.selectors}
    )


def _load(group: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for entry in entry_points(group=group):
        try:
            found[entry.name] = entry.load()
        except (ImportError, AttributeError) as error:
            raise PolicyError(f"{group} {entry.name!r} cannot be loaded: {error}") from error
    return found
