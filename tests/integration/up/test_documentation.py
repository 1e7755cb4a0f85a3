"""The configuration reference is the code's."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from tests.harness import house

pytestmark = pytest.mark.integration
ROOT = Path(__file__).parent.parent.parent.parent


def test_the_configuration_reference_is_current():
    command = [sys.executable, "-m", "hub.config.reference"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    written = (ROOT / "docs" / "configuration.md").read_text()
    assert done.stdout == written, "run scripts/docs"


def test_every_configurable_class_is_in_the_reference():
    from traitlets.config import Configurable

    from hub.commands.base import Command, all_classes

    modules = house.modules_of(ROOT, "hub", "spawner", "authenticator", "vfolder")
    found = {
        f"{module.__name__}.{name}"
        for module in map(importlib.import_module, modules)
        for name, cls in vars(module).items()
        if isinstance(cls, type) and issubclass(cls, Configurable)
        if cls.__module__ == module.__name__ and cls.class_own_traits(config=True)
        if not issubclass(cls, Command)  # their options are in their own help
    }
    listed = {f"{cls.__module__}.{cls.__name__}" for cls in all_classes()}
    assert found - listed == set(), "add them to hub.commands.base.CONFIGURABLES"
