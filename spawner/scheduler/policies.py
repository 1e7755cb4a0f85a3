"""The sequencers and selectors that resource groups may name.

The scheduler reads no entry points: whoever starts it (the manager) loads the groups
``perijove.sequencers`` and ``perijove.selectors`` and hands them over as ``Policies``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from spawner.scheduler.fairness import drf, fair_share
from spawner.scheduler.model import GroupPolicy
from spawner.scheduler.order import Sequencer, fifo, lifo
from spawner.scheduler.select import Selector, concentrated, dispersed, legacy, round_robin

Policy = TypeVar("Policy")


class PolicyError(ValueError):
    """A resource group names a policy that nobody provides; the text lists the known ones."""


@dataclass(frozen=True, slots=True)
class Policies:
    """Known policies by name."""

    sequencers: Mapping[str, Sequencer]
    selectors: Mapping[str, Selector]

    def sequencer(self, group: GroupPolicy) -> Sequencer:
        """The sequencer of ``group``; raises ``PolicyError``."""
        return _look_up("sequencer", self.sequencers, group.sequencer, group.name)

    def selector(self, group: GroupPolicy) -> Selector:
        """The selector of ``group``; raises ``PolicyError``."""
        return _look_up("selector", self.selectors, group.selector, group.name)

    def check(self, groups: Iterable[GroupPolicy]) -> None:
        """Raise ``PolicyError`` when a group names an unknown policy; for use when settings load."""
        for group in groups:
            self.sequencer(group)
            self.selector(group)


def _look_up(kind: str, known: Mapping[str, Policy], name: str, group: str) -> Policy:
    found = known.get(name)
    if found is None:
        names = ", ".join(sorted(known)) or "none"
        raise PolicyError(f"{kind} of resource group {group!r} is {name!r}: known are {names}")
    return found


BUILT_IN = Policies(
    {"fifo": fifo, "lifo": lifo, "drf": drf, "fair-share": fair_share},
    {
        "concentrated": concentrated,
        "dispersed": dispersed,
        "round-robin": round_robin,
        "legacy": legacy,
    },
)
