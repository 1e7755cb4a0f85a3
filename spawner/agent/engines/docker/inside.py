"""How an image's labels and a kernel's wishes become a container's first process, environment and seccomp profile."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from spawner.agent import entering, seccomp
from spawner.agent.engines.base import BoundMount, Limits
from spawner.agent.engines.config_files import TARGET
from spawner.agent.protocol import KernelSpec

INIT_LABEL = "ai.perijove.init"
PRELOAD_LABEL = "ai.perijove.preload"
CORECOUNT_LABEL = "ai.backend.envs.corecount"
"""Names of variables that are to hold how many cores the session has."""
THREADS = "OMP_NUM_THREADS"
"""Of the CPU plug-in's variables the one with that number."""
_GROUP_RIGHTS = stat.S_IRGRP | stat.S_IXGRP
_OTHER_RIGHTS = stat.S_IROTH | stat.S_IXOTH


def command_options(
    spec: KernelSpec, config: Mapping[str, Any], arguments: Sequence[str]
) -> dict[str, Any]:
    """Entrypoint and command: the image's own init if it has one, dotfiles and bootstrap, the command.

    ``config`` is the image's; ``arguments`` may be empty: the image's command.
    """
    labels = config.get("Labels") or {}
    init = (labels[INIT_LABEL], "--") if labels.get(INIT_LABEL) else ()
    before = (*init, *entering.words(spec, TARGET))
    if not before:
        return {"command": list(arguments) or None}
    own = [*(config.get("Entrypoint") or [])]
    return {"entrypoint": list(before), "command": own + list(arguments or config.get("Cmd") or [])}


def host_options(
    spec: KernelSpec, labels: Mapping[str, str], limits: Limits, mounts: Iterable[BoundMount],
    profiles: Path,
) -> dict[str, Any]:  # fmt: skip
    """What the image and the kernel change about the host configuration. Raises ``EngineError``."""
    name = seccomp.combined(labels.get(seccomp.LABEL), spec.seccomp)
    profile = seccomp.profile(name, profiles)
    security = ["no-new-privileges", *([f"seccomp={profile}"] if profile else [])]
    sources = [*(mount.source for mount in mounts), *(node.path for node in limits.devices)]
    return {
        "init": not labels.get(INIT_LABEL),
        "security_opt": security,
        "group_add": sorted({*groups(sources), *(str(group) for group in limits.groups)}),
    }


def environment(labels: Mapping[str, str], given: Mapping[str, str]) -> dict[str, str]:
    """The environment ``given``, with the preloaded library and the counts of cores that the image asks for."""
    counts = [each.strip() for each in labels.get(CORECOUNT_LABEL, "").split(",")]
    cores = {each: given[THREADS] for each in counts if each and THREADS in given}
    preload = labels.get(PRELOAD_LABEL)
    if not preload:
        return {**cores, **given}
    others = f":{given['LD_PRELOAD']}" if given.get("LD_PRELOAD") else ""
    return {**cores, **given, "LD_PRELOAD": f"{preload}{others}"}


def groups(paths: Iterable[str]) -> list[str]:
    """Groups that open what is mounted or passed through: those of folders and devices closed to others.

    The group of root is never given.
    """
    found = set()
    for path in paths:
        try:
            facts = os.stat(path)
        except OSError:
            continue  # the engine says what is wrong with it
        open_to_group = facts.st_mode & _GROUP_RIGHTS & ~stat.S_IXGRP
        open_to_others = facts.st_mode & _OTHER_RIGHTS & ~stat.S_IXOTH
        if facts.st_gid and open_to_group and not open_to_others:
            found.add(str(facts.st_gid))
    return sorted(found)
