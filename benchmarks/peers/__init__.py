"""Installs a peer's published package into a virtual environment of its own, once, and runs a program there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
from pathlib import Path
from typing import Any

from benchmarks.reporting import note

CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "perijove"
BACKEND_AI = "backend.ai-manager==23.9.*"
"""The last release line of Backend.AI's manager that runs on Python 3.11."""
HERE = Path(__file__).parent


class PeerMissing(RuntimeError):
    """The peer cannot be installed here; the text says why."""


def backend_ai() -> Path:
    """The Python of an environment with Backend.AI's manager; made when it is not there yet."""
    folder = CACHE / "backendai-23.9"
    python = folder / "bin" / "python"
    if (folder / "ready").exists():
        return python
    note(f"installing {BACKEND_AI} into {folder}")
    if sys.version_info[:2] != (3, 11):
        raise PeerMissing(f"{BACKEND_AI} needs Python 3.11, this is {sys.version.split()[0]}")
    venv.create(folder, with_pip=True)
    command = [str(python), "-m", "pip", "install", "--quiet", BACKEND_AI, "setuptools<81"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise PeerMissing(f"pip could not install {BACKEND_AI}: {done.stderr[-400:]}")
    (folder / "ready").touch()
    return python


def run_backend_ai(work: dict[str, Any]) -> dict[str, Any]:
    """What Backend.AI's decision code makes of ``work`` (``benchmarks/peers/backendai.py``)."""
    done = subprocess.run(
        [str(backend_ai()), str(HERE / "backendai.py")],
        input=json.dumps(work),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise PeerMissing(f"the peer failed: {done.stderr[-800:]}")
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer
