"""The configuration reference is the code's."""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.integration
ROOT = Path(__file__).parent.parent.parent.parent


def test_the_configuration_reference_is_current():
    command = [sys.executable, "-m", "hub.config.reference"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    written = (ROOT / "docs" / "configuration.md").read_text()
    assert done.stdout == written, "run scripts/docs"


def test_every_trait_has_help():
    from hub.commands.base import all_classes

    bare = [
        f"{cls.__name__}.{name}"
        for cls in all_classes()
        for name, trait in cls.class_own_traits(config=True).items()
        if len(str(trait.help).split()) < 3
    ]
    assert bare == []
