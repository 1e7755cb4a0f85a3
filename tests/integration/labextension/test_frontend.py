"""The words of the status bar, checked by Node.js; skipped loudly where the extension's packages are not installed."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

import labextension

pytestmark = pytest.mark.integration
HERE = Path(labextension.__file__).parent


def test_the_compiler_and_the_words_are_content(tmp_path: Path) -> None:
    compiler, node = HERE / "node_modules" / "typescript" / "bin" / "tsc", shutil.which("node")
    if node is None or not compiler.is_file():
        reason = "the extension's npm packages are not installed: scripts/test installs them"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    # A tree of its own, so that what is served from the checkout does not change under a running server.
    for name in ("src", "tests"):
        shutil.copytree(HERE / name, tmp_path / name)
    for name in ("package.json", "tsconfig.json"):
        shutil.copy(HERE / name, tmp_path / name)
    (tmp_path / "node_modules").symlink_to(HERE / "node_modules")
    for command in ([node, str(compiler)], [node, "--test", "tests/"]):
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
