"""What runs in sessions, as a wheel; and that a change of it makes an image outdated."""

from __future__ import annotations

import ast
import base64
import hashlib
import sys
import zipfile
from pathlib import Path

import pytest

from kernels import build, session_wheel
from kernels.build import RECIPES, sources_hash
from kernels.session_wheel import PACKAGES, has_extension, session_files, write_session_wheel

DATA = f"perijove-{session_wheel.version()}.data/data"


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A small checkout with a built extension and things that belong into no wheel."""
    for name, text in {
        "setup.cfg": "",
        "labextension/__init__.py": "",
        "labextension/install.json": "{}",
        "labextension/jupyter-config/perijove.json": "{}",
        "labextension/prebuilt/package.json": "{}",
        "labextension/prebuilt/static/main.js": "1",
        "labextension/node_modules/gyp/main.py": "",
        "perijove/__init__.py": "",
        "perijove/inner/__init__.py": "",
        "perijove/inner/deep.py": "",
        "perijove/notes/draft.py": "",
        "hub/app.py": "",
    }.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


def test_it_holds_what_runs_in_sessions_and_nothing_else(checkout: Path) -> None:
    files = session_files(checkout)
    assert set(files) == {
        "labextension/__init__.py",
        "perijove/__init__.py",
        "perijove/inner/__init__.py",
        "perijove/inner/deep.py",
        f"{DATA}/etc/jupyter/jupyter_server_config.d/perijove.json",
        f"{DATA}/share/jupyter/labextensions/perijove-lab/install.json",
        f"{DATA}/share/jupyter/labextensions/perijove-lab/package.json",
        f"{DATA}/share/jupyter/labextensions/perijove-lab/static/main.js",
    }
    assert has_extension(files)
    (checkout / "labextension/prebuilt/package.json").unlink()
    files = session_files(checkout)
    assert not has_extension(files)
    assert f"{DATA}/etc/jupyter/jupyter_server_config.d/perijove.json" in files


def test_what_it_imports_of_ours_is_in_it() -> None:
    rooms = {path.parent.name for path in RECIPES.parent.glob("*/__init__.py")}
    for name, path in session_files().items():
        if path.suffix != ".py":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            imported = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                imported = [node.module or ""]
            tops = {each.partition(".")[0] for each in imported} & rooms
            assert tops <= set(PACKAGES), f"{name} imports {tops}, which no image has"


def test_the_wheel_is_whole_and_always_the_same(tmp_path: Path) -> None:
    first = write_session_wheel(tmp_path)
    content = first.read_bytes()
    assert write_session_wheel(tmp_path).read_bytes() == content
    with zipfile.ZipFile(first) as archive:
        info = f"perijove-{session_wheel.version()}.dist-info"
        lines = archive.read(f"{info}/RECORD").decode().splitlines()
        recorded = {line.split(",")[0]: line.split(",")[1] for line in lines}
        assert set(recorded) == set(archive.namelist())
        for name in set(recorded) - {f"{info}/RECORD"}:
            digest = hashlib.sha256(archive.read(name)).digest()
            text = base64.urlsafe_b64encode(digest).rstrip(b"=").decode()
            assert recorded[name] == f"sha256={text}"
    assert f"py{sys.version_info.major}-none-any" in first.name


@pytest.mark.parametrize(
    ("changed", "outdated"),
    [
        ("perijove/inner/deep.py", True),
        ("labextension/prebuilt/static/main.js", True),
        ("labextension/jupyter-config/perijove.json", True),
        ("hub/app.py", False),
        ("labextension/node_modules/gyp/main.py", False),
    ],
)
def test_an_image_is_outdated_when_what_runs_in_it_changed(
    checkout: Path, monkeypatch: pytest.MonkeyPatch, changed: str, outdated: bool
) -> None:
    monkeypatch.setattr(build, "session_files", lambda: session_files(checkout))
    before = sources_hash(RECIPES / "jupyterlab")
    (checkout / changed).write_text("# something else\n")
    assert (sources_hash(RECIPES / "jupyterlab") != before) is outdated
