"""A wheel of this checkout has everything that the code reads, and is made without a warning."""

import hashlib
import json
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

from kernels.session_wheel import has_extension, session_files

pytestmark = [pytest.mark.integration, pytest.mark.timeout(240)]
ROOT = Path(__file__).resolve().parents[3]
NOT_IN_WHEELS = (
    *(".*", "__pycache__", "*.egg-info", "build", "dist", "node_modules"),
    *("tests", "docs", "benchmarks", "artifacts"),
)
PACKAGED = (
    "hub/web/templates/*",
    "hub/web/static/*",
    "hub/web/static/lib/*",
    "hub/config/proxy/package*.json",
    "kernels/*/*",
    "kernels/parts/*/*",
    "store/migrations/**/*.py",
)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, its file names, and what pip said."""
    folder = tmp_path_factory.mktemp("wheel")
    shutil.copytree(ROOT, folder / "source", ignore=shutil.ignore_patterns(*NOT_IN_WHEELS))
    command = [sys.executable, "-m", "pip", "wheel", "--verbose", "--no-deps", "--no-input"]
    command += ["--wheel-dir", str(folder), str(folder / "source")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    (path,) = folder.glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        return path, set(archive.namelist()), done.stdout + done.stderr


@pytest.mark.parametrize("pattern", PACKAGED)
def test_files_are_packaged(wheel, pattern):
    wanted = {
        str(path.relative_to(ROOT))
        for path in ROOT.glob(pattern)
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert wanted, "the pattern fits nothing"
    assert wanted - wheel[1] == set()


def test_nothing_else_is_packaged(wheel):
    tops = {name.split("/")[0] for name in wheel[1] if ".dist-info" not in name}
    rooms = {"hub", "spawner", "authenticator", "vfolder", "store", "kernels", "perijove"}
    assert {top for top in tops if not top.endswith(".data")} == rooms | {"labextension"}
    assert not [name for name in wheel[1] if "node_modules" in name]


def test_making_it_warns_of_nothing(wheel):
    lines = [line for line in wheel[2].splitlines() if "warning" in line.lower()]
    assert [line for line in lines if "byte-compiling is disabled" not in line] == []


SAYS = """
import hashlib, json
from kernels.session_wheel import session_files
print(json.dumps({n: hashlib.sha256(p.read_bytes()).hexdigest() for n, p in session_files().items()}))
"""


def test_an_installed_package_makes_the_same_image_as_the_checkout(wheel, tmp_path):
    """What runs in sessions is found again among installed files, the built extension included."""
    home = tmp_path / "venv"
    venv.create(home, with_pip=False)
    python = home / "bin" / "python"
    command = [sys.executable, "-m", "pip", "--python", str(python), "install", "--no-deps"]
    subprocess.run([*command, "--no-index", str(wheel[0])], check=True, capture_output=True)
    told = subprocess.run(
        [str(python), "-I", "-c", SAYS], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    installed = json.loads(told.stdout)
    here = {
        name: hashlib.sha256(path.read_bytes()).hexdigest()
        for name, path in session_files().items()
    }
    assert installed == here
    assert has_extension(installed) == (ROOT / "labextension/prebuilt/package.json").is_file()
