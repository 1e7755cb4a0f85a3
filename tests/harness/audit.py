"""The product's own audit at the end of a test."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path

from hub.commands.audit import Audit
from hub.commands.base import CommandError
from tests.harness.apart import apart


def audit(state: Path, *options: str) -> str:
    """What ``perijove audit`` says; fails with it unless nothing differs."""
    command = Audit()
    command.initialize(["--state-dir", str(state), "--within=60", *options])
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        try:
            apart(command.start)
        except CommandError as error:
            raise AssertionError(f"{said.getvalue()}{error}") from error
    return said.getvalue()
