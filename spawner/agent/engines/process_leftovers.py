"""What the process engine has of no run: folders, folders of sockets, control groups. Everything here blocks."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from pathlib import Path

from spawner.agent.engines.cgroups import ControlGroups, left
from spawner.agent.engines.scratch import UNFINISHED, Scratch

_OWNER = "run"
"""Name of the link in a folder of sockets that leads to its run."""


def runs(root: Path) -> tuple[Scratch, ...]:
    """The folders of all runs beneath ``root``."""
    folders = sorted(root.iterdir())
    return tuple(Scratch(each) for each in folders if not each.name.endswith(UNFINISHED))


def sockets(mark: str) -> Path:
    """Where a run's kernels have their sockets: a path of a socket must stay under 108 characters."""
    kernel, _, epoch = mark.rpartition("-")
    return Path(tempfile.gettempdir()) / f"perijove-{kernel[:18]}-{epoch}"


def make_sockets(scratch: Scratch) -> None:
    """Make the folder of a run's sockets, with a link that tells whose it is."""
    folder = sockets(scratch.mark)
    folder.mkdir(mode=0o700, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        (folder / _OWNER).symlink_to(scratch.folder)


def sweep(root: Path, groups: ControlGroups | None) -> None:
    """Remove what a crash left beneath ``root`` and elsewhere of no run, as far as nothing runs in it."""
    for folder in root.glob(f"*{UNFINISHED}"):
        Scratch(folder).delete()
    for folder in _sockets_of_none(root):
        shutil.rmtree(folder, ignore_errors=True)
    if groups is not None:
        for mark in groups.others({scratch.mark for scratch in runs(root)}):
            groups.remove(mark)


def abandoned(root: Path, groups: ControlGroups | None) -> list[str]:
    """A sentence on each folder and control group of this agent that belongs to no run."""
    told = [f"the folder {each} is half-made" for each in root.glob(f"*{UNFINISHED}")]
    present = {scratch.mark: scratch for scratch in runs(root)}
    for scratch in present.values():
        if scratch.read() is None and scratch.folder.exists():
            told.append(f"the folder {scratch.folder} holds no run")
    told += [f"the folder {each} belongs to no run" for each in _sockets_of_none(root)]
    strays = {} if groups is None else groups.others(present)
    return [*told, *(f"the run {mark} is gone, {left(strays[mark])}" for mark in sorted(strays))]


def _sockets_of_none(root: Path) -> list[Path]:
    """Folders of sockets whose run was one beneath ``root``, and is gone."""
    found = []
    for folder in Path(tempfile.gettempdir()).glob("perijove-*"):
        with contextlib.suppress(OSError):
            run = (folder / _OWNER).readlink()
            if run.parent == root and not run.exists():
                found.append(folder)
    return found
