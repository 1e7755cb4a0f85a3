"""The published client of Backend.AI, in an environment of its own, and an account for it."""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.platform import Platform
from tests.integration.docker_engine import unavailable

REQUIREMENTS = ("backend.ai-client==23.9.10", "yarl<1.17.1")


def is_suitable(python: str) -> bool:
    """Whether an interpreter is of the one release that this client runs on, and can make environments."""
    look = "import ensurepip, sys, venv; sys.exit(sys.version_info[:2] != (3, 11))"
    return subprocess.run([python, "-c", look], capture_output=True, check=False).returncode == 0


@pytest.fixture(scope="package")
def client() -> Path:
    """Python of a virtual environment with the client, made once per user and kept."""
    candidates = filter(None, (sys.executable, shutil.which("python3.11")))
    python = next(filter(is_suitable, candidates), None)
    if python is None:
        unavailable("backend.ai-client 23.9 needs Python 3.11, and none is here")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "perijove"
    cache.mkdir(parents=True, exist_ok=True)
    name = hashlib.sha256(repr(REQUIREMENTS).encode()).hexdigest()[:12]
    folder = cache / f"backendai-client-{name}"
    with (cache / f"{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "complete").exists():
            shutil.rmtree(folder, ignore_errors=True)
            subprocess.run([str(python), "-m", "venv", str(folder)], check=True)
            pip = [str(folder / "bin/python"), "-m", "pip", "install", "--quiet", *REQUIREMENTS]
            done = subprocess.run(pip, capture_output=True, text=True, check=False)
            if done.returncode:
                unavailable(f"backend.ai-client cannot be installed:\n{done.stderr[-2000:]}")
            (folder / "complete").touch()
    return folder / "bin/python"


def account(platform: Platform) -> dict[str, str]:
    """The environment in which the client acts for the platform's admin."""
    output = platform.command("token", "create", "admin")
    access, secret = re.findall(r"key(?:, shown only now)?: (\S+)", output)
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(platform.state.parent),
        "BACKEND_ENDPOINT": f"{platform.url}/services/perijove",
        "BACKEND_ENDPOINT_TYPE": "api",
        "BACKEND_ACCESS_KEY": access,
        "BACKEND_SECRET_KEY": secret,
    }
