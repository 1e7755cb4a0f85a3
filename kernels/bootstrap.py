"""A Debian base image without a registry: ``debootstrap`` into a folder, imported into the engine.

The mirror is the one that this machine's own apt sources name. Needs root and the package debootstrap.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import docker
from docker.errors import ImageNotFound

SUITE = "bookworm"
BASE_TAG = f"perijove/debian:{SUITE}"
DEFAULT_MIRROR = "http://deb.debian.org/debian"
_APT = Path("/etc/apt")
_CLASSIC = re.compile(r"^deb\s+(?:\[[^\]]*\]\s+)?(https?://\S+)\s+(\S+)\s")


class BootstrapError(Exception):
    """No base image could be made; the sentence says what is missing."""


def apt_mirror(apt: Path = _APT) -> str:
    """The Debian mirror that apt uses here, in either format of its sources."""
    for path in [apt / "sources.list", *sorted(apt.glob("sources.list.d/*"))]:
        if not path.is_file():
            continue
        for block in re.split(r"\n\s*\n", path.read_text(encoding="utf-8", errors="replace")):
            found = _deb822(block) if path.suffix == ".sources" else _one_line(block)
            if found is not None:
                return found
    return DEFAULT_MIRROR


def _deb822(block: str) -> str | None:
    fields = dict(re.findall(r"^(\w[\w-]*):\s*(.*)$", block, re.MULTILINE))
    if "deb" not in fields.get("Types", "").split() or "security" in fields.get("Suites", ""):
        return None
    uris = fields.get("URIs", "").split()
    return uris[0] if uris and "debian" in uris[0] else None


def _one_line(block: str) -> str | None:
    for line in block.splitlines():
        match = _CLASSIC.match(line)
        if match and "security" not in match.group(2) and "debian" in match.group(1):
            return match.group(1)
    return None


def bootstrap(client: docker.DockerClient, progress: Callable[[str], None]) -> str:
    """Make ``perijove/debian:<suite>`` unless it is there; its tag. Raises ``BootstrapError``."""
    with contextlib.suppress(ImageNotFound):
        client.images.get(BASE_TAG)
        return BASE_TAG
    if os.geteuid() != 0:
        raise BootstrapError(
            "a Debian base can only be made by root: run as root, or name a --base"
        )
    if shutil.which("debootstrap") is None:
        raise BootstrapError(
            "debootstrap is missing: apt-get install debootstrap, or name a --base"
        )
    with tempfile.TemporaryDirectory(prefix="perijove-base-") as temporary:
        root = Path(temporary) / "root"
        progress(f"bootstrapping Debian {SUITE} (about a minute)")
        command = ["debootstrap", "--variant=minbase", "--include=python3,ca-certificates"]
        _run([*command, SUITE, str(root), apt_mirror()])
        for pattern in ("var/cache/apt/archives/*.deb", "var/lib/apt/lists/*_*"):
            for leftover in root.glob(pattern):
                leftover.unlink()
        archive = Path(temporary) / "root.tar"
        _run(["tar", "-C", str(root), "-cf", str(archive), "."])
        progress(f"importing {BASE_TAG}")
        repository, _, tag = BASE_TAG.partition(":")
        client.api.import_image_from_file(str(archive), repository=repository, tag=tag)
    return BASE_TAG


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        tail = "\n".join((done.stdout + done.stderr).splitlines()[-8:])
        raise BootstrapError(f"{command[0]} failed ({done.returncode}):\n{tail}")
