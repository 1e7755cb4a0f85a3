"""Seccomp profiles by name: the built-in ones and those in the folder ``seccomp`` of the agent's state.

``default`` is the engine's own profile. ``strict`` further denies what looks into other processes, makes
namespaces or feeds programs to the kernel: ptrace, process_vm_*, keyctl, perf_event_open, userfaultfd, bpf,
unshare, clone with new namespaces, mount and the like.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from spawner.agent.engines.base import EngineError

LABEL = "ai.perijove.seccomp"
DEFAULT = "default"
STRICT = "strict"
NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,63}")
_BUILT_IN = Path(__file__).with_name("profiles")


def names(folder: Path) -> tuple[str, ...]:
    """All profiles that can be named on this node."""
    found = {path.stem for place in (_BUILT_IN, folder) for path in place.glob("*.json")}
    return tuple(sorted(found | {DEFAULT}))


def combined(*asked: str | None) -> str:
    """The one profile for several wishes: ``strict`` beats any, any beats ``default``.

    Raises ``EngineError`` for two that cannot be compared.
    """
    wanted = {name for name in asked if name and name != DEFAULT}
    if STRICT in wanted:
        return STRICT
    if len(wanted) > 1:
        told = " and ".join(sorted(wanted))
        raise EngineError(f"the seccomp profiles {told} are both demanded and cannot be combined")
    return next(iter(wanted), DEFAULT)


def profile(name: str, folder: Path) -> str | None:
    """The profile as JSON; None for the engine's own. Raises ``EngineError`` for an unknown one."""
    if name == DEFAULT:
        return None
    if NAME.fullmatch(name):
        for place in (_BUILT_IN, folder):
            path = place / f"{name}.json"
            if path.is_file():
                try:
                    return json.dumps(json.loads(path.read_text(encoding="utf-8")))
                except ValueError as error:
                    raise EngineError(f"seccomp profile {name!r} is not JSON: {error}") from error
    known = ", ".join(names(folder))
    raise EngineError(f"seccomp profile {name[:80]!r} is not known on this node: there are {known}")
