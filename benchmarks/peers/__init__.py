"""Installs a peer's published package into a virtual environment of its own, once, and runs a program there."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.reporting import note

CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "perijove"
HERE = Path(__file__).parent


@dataclass(frozen=True)
class Release:
    """A release line of Backend.AI's manager and the program that drives its decision code."""

    line: str
    python: str
    """The only Python that it runs on."""
    program: str
    also: tuple[str, ...] = ()
    """What it needs besides what it names itself."""

    @property
    def requirement(self) -> str:
        """What pip is asked for."""
        return f"backend.ai-manager=={self.line}.*"


RELEASES = (
    Release("26.9", "3.13", "sokovan.py"),
    Release("23.9", "3.11", "backendai.py", ("setuptools<81",)),
)
"""The newest line first; the first one whose Python is here is taken."""


class PeerMissing(RuntimeError):
    """The peer cannot be installed here, or failed; the text says why."""


def interpreters(version: str) -> Iterator[str]:
    """Pythons of ``version`` (``3.13``) that are here: on the path, and those of pyenv."""
    root = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    found = sorted(root.glob(f"versions/{version}.*/bin/python"), reverse=True)
    for candidate in (shutil.which(f"python{version}"), *map(str, found)):
        if candidate is None:
            continue
        says = "import sys; print('%d.%d' % sys.version_info[:2])"
        done = subprocess.run([candidate, "-c", says], capture_output=True, text=True, check=False)
        if done.stdout.strip() == version:
            yield candidate


def backend_ai() -> tuple[Release, Path]:
    """A release of Backend.AI's manager and the Python of its environment, made when it is not there yet."""
    for release in RELEASES:
        folder = CACHE / f"backendai-{release.line}"
        python = folder / "bin" / "python"
        if (folder / "ready").exists():
            return release, python
        base = next(interpreters(release.python), None)
        if base is None:
            note(f"there is no Python {release.python} for {release.requirement}")
            continue
        note(f"installing {release.requirement} into {folder}")
        wanted = [release.requirement, *release.also]
        for command in (
            [base, "-m", "venv", "--clear", str(folder)],
            [str(python), "-m", "pip", "install", "--quiet", *wanted],
        ):
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise PeerMissing(f"{' '.join(command)} failed: {done.stderr[-400:]}")
        (folder / "ready").touch()
        return release, python
    known = " or ".join(release.python for release in RELEASES)
    raise PeerMissing(f"Backend.AI needs Python {known}, and none of them is here")


class Peer:
    """Backend.AI's decision code in a process that takes one workload after another.

    To start it takes some seconds, which are not counted; it starts with the first workload.
    """

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *problem: object) -> None:
        if self._process is not None:
            with self._process:  # closes its input, which ends it
                pass

    def run(self, work: dict[str, Any]) -> dict[str, Any]:
        """What becomes of ``work`` (see the program of the release); raises ``PeerMissing``."""
        if self._process is None:
            release, python = backend_ai()
            command = [str(python), str(HERE / release.program)]
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
        wire = self._process
        if wire.stdin is None or wire.stdout is None:
            raise AssertionError("both are pipes")
        try:
            wire.stdin.write(json.dumps(work) + "\n")
            wire.stdin.flush()
            line = wire.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise PeerMissing(f"the peer ended with {wire.wait()}, and says why above")
        answer: dict[str, Any] = json.loads(line)
        return answer
