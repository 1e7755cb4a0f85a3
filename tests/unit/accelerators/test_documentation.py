"""The plug-in that the documentation shows works as it says."""

from __future__ import annotations

import re
from pathlib import Path

from spawner.accelerators.base import AcceleratorPlugin
from spawner.accelerators.chips import SysfsPlugin
from spawner.accelerators.conformance import AcceleratorConformance
from spawner.accelerators.registry import Accelerators
from tests.unit.accelerators import trees

PAGE = Path(__file__).parents[3] / "docs/accelerators.md"


def plugin_of_the_page() -> SysfsPlugin:
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    (code,) = [block for block in blocks if "class AcmePlugin" in block]
    names: dict[str, type[SysfsPlugin]] = {}
    exec(code, names)
    return names["AcmePlugin"]()


class TestAcme(AcceleratorConformance):
    def make(self, folder: Path) -> AcceleratorPlugin:
        tree = trees.Tree(folder)
        tree.hwmon(tree.pci("0000:01:00.0", 0xACE0, 0x0001))
        tree.node("dev/anvil0")
        return self.absent(folder)

    def absent(self, folder: Path) -> AcceleratorPlugin:
        plugin = plugin_of_the_page()
        plugin.configure({"root": str(folder)})
        return plugin


def test_every_plugin_and_slot_is_on_the_page() -> None:
    page = PAGE.read_text(encoding="utf-8")
    loaded = Accelerators.load({})
    for plugin in loaded.plugins:
        assert f"| `{plugin.name}` |" in page, plugin.name
