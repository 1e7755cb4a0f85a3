"""The stand-in for NVIDIA's driver: compiled once, told by a file what there is."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

SOURCE = Path(__file__).with_name("libnvidia-ml.c")
GIB = 2**30
SWITCH = 2


@functools.cache
def library() -> str:
    """Path of the library; as one with the driver's name it is found by ``nvidia-ml-py``."""
    if shutil.which("cc") is None:
        pytest.skip("no C compiler")
    path = Path(tempfile.mkdtemp(prefix="perijove-nvml-")) / "libnvidia-ml.so.1"
    name = "-Wl,-soname,libnvidia-ml.so.1"
    command = ["cc", "-shared", "-fPIC", "-Wall", "-Werror", name, "-o", str(path), str(SOURCE)]
    subprocess.run(command, check=True)
    return str(path)


def gpu(place: int, *, mig: int = 0, util: int = 40) -> str:
    """A line that makes a GPU."""
    return (
        f"gpu GPU-{place:08d} NVIDIA_H100_80GB_HBM3 {bus(place)} {80 * GIB} {20 * GIB} {util}"
        f" 350000 700000 61 {mig}"
    )


def bus(place: int) -> str:
    """Where a GPU is, as NVML writes it."""
    return f"00000000:{0x1B + place:02X}:00.0"


def describe(folder: Path, *lines: str) -> None:
    """From now on the driver knows this and nothing else."""
    path = folder / "nvml.txt"
    path.write_text("".join(f"{line}\n" for line in lines))
    os.environ["FAKE_NVML"] = str(path)
