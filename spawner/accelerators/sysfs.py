"""Reading ``/sys`` and ``/dev`` beneath a root: PCI functions, device classes, sensors, device nodes.

Paths in answers are those of the node (``/dev/...``), whatever the root. What cannot be read is absent.
"""

from __future__ import annotations

import re
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path("/")


def text(path: Path) -> str | None:
    """The stripped content of a file, or None."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None


def number(path: Path) -> int | None:
    """A decimal or ``0x`` number in a file, or None."""
    content = text(path)
    try:
        return None if content is None else int(content, 0)
    except ValueError:
        return None


def entries(folder: Path, pattern: str) -> list[tuple[re.Match[str], Path]]:
    """What of ``folder`` is called like ``pattern`` as a whole, ``2`` before ``10``."""
    try:
        names = [path.name for path in folder.iterdir()]
    except OSError:
        return []
    matches = [match for name in names if (match := re.fullmatch(pattern, name))]
    return [(m, folder / m.string) for m in sorted(matches, key=lambda m: natural(m.string))]


def natural(name: str) -> list[tuple[int, str]]:
    """A key that sorts numbers within names by value."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


def properties(path: Path) -> dict[str, int]:
    """A file of lines ``name number``; other lines are skipped."""
    found: dict[str, int] = {}
    for line in (text(path) or "").splitlines():
        name, _, value = line.partition(" ")
        if value.strip().lstrip("-").isdigit():
            found[name] = int(value)
    return found


@dataclass(frozen=True, slots=True)
class PciFunction:
    """One function of a PCI device."""

    address: str
    """``0000:c1:00.0``."""
    vendor: int
    device: int
    numa_node: int | None
    folder: Path

    def children(self, pattern: str) -> list[str]:
        """Names of its devices in any class, such as ``renderD128`` in ``drm``."""
        found = [
            match.string
            for _, group in entries(self.folder, r"[a-z_]+")
            if not group.is_symlink()
            for match, _ in entries(group, pattern)
        ]
        return sorted(found, key=natural)


class Sysfs:
    """The two trees beneath ``root``."""

    def __init__(self, root: Path = ROOT) -> None:
        self.sys = root / "sys"
        self.dev = root / "dev"
        self.root = root

    def pci(self, vendor: int, devices: Iterable[int] | None = None) -> Iterator[PciFunction]:
        """Functions of a vendor (and of some of its device ids), by address."""
        wanted = None if devices is None else set(devices)
        for _, folder in entries(self.sys / "bus/pci/devices", r"[0-9a-f:.]+"):
            if number(folder / "vendor") == vendor:
                found = self.function(folder)
                if found is not None and (wanted is None or found.device in wanted):
                    yield found

    def function(self, folder: Path) -> PciFunction | None:
        """The PCI function that a sysfs folder or link stands for, or None."""
        try:
            real = folder.resolve(strict=True)
        except OSError:
            return None
        vendor, device = number(real / "vendor"), number(real / "device")
        if vendor is None or device is None:
            return None
        node = number(real / "numa_node")
        return PciFunction(
            real.name, vendor, device, node if node is not None and node >= 0 else None, real
        )

    def function_at(self, address: str) -> PciFunction | None:
        """The PCI function at an address in any spelling, or None."""
        parts = address.strip().lower().split(":")
        if len(parts) == 2:
            parts = ["0", *parts]
        try:
            spelled = f"{int(parts[0], 16):04x}:{parts[1]}:{parts[2]}"
        except (ValueError, IndexError):
            return None
        return self.function(self.sys / "bus/pci/devices" / spelled)

    def nodes(self, pattern: str, folder: str = "") -> tuple[str, ...]:
        """Device nodes beneath ``/dev`` whose names are like ``pattern``."""
        where = f"/dev/{folder}/" if folder else "/dev/"
        return tuple(where + m.string for m, _ in entries(self.dev / folder, pattern))

    def groups(self, nodes: Iterable[str]) -> tuple[int, ...]:
        """Groups that may open ``nodes``, where others may not."""
        found: set[int] = set()
        for node in nodes:
            try:
                facts = (self.root / node.lstrip("/")).stat()
            except OSError:
                continue
            others = facts.st_mode & (stat.S_IROTH | stat.S_IWOTH)
            members = facts.st_mode & (stat.S_IRGRP | stat.S_IWGRP)
            both_of_others = others == (stat.S_IROTH | stat.S_IWOTH)
            if facts.st_gid and members and not both_of_others:
                found.add(facts.st_gid)
        return tuple(sorted(found))


def sensor(folder: Path, *places: str) -> int | None:
    """The first number found at the places (globs) beneath ``folder``."""
    for place in places:
        for path in sorted(folder.glob(place)):
            value = number(path)
            if value is not None:
                return value
    return None
