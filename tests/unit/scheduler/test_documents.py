"""What the pages say of the scheduler is what it does: modules, reasons, options and their defaults."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from spawner.scheduler.filters import SAYINGS
from spawner.scheduler.policies import BUILT_IN
from spawner.sessions.groups import OptionsError, read_options

ROOT = Path(__file__).resolve().parents[3]
ROOM = ROOT / "spawner" / "scheduler"
README = (ROOM / "README.md").read_text(encoding="utf-8")
PAGE = (ROOT / "docs" / "scheduling.md").read_text(encoding="utf-8")


def rows(page: str, head: str) -> list[list[str]]:
    """The cells of the table that begins with ``head``."""
    table = page[page.index(f"| {head} |") :].split("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in table]


def names(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def test_the_readme_names_every_module() -> None:
    there = {each.name for each in ROOM.glob("*.py")} - {"__init__.py"}
    told = [name for row in rows(README, "module") for name in names(row[0])]
    assert sorted(told) == sorted(there)


def test_every_reason_is_documented() -> None:
    source = "".join(each.read_text(encoding="utf-8") for each in ROOM.glob("*.py"))
    made = (
        set(re.findall(r'\b(?:Reason|_passed)\(\s*"([a-z-]+)"', source)) | set(SAYINGS) | {"policy"}
    )
    told = [name for row in rows(PAGE, "reason") for name in names(row[0])]
    assert sorted(told) == sorted(made)
    for name in made - {"policy"}:
        assert f"`{name}`" in README


def test_every_option_is_documented_with_its_default() -> None:
    with pytest.raises(OptionsError) as raised:
        read_options("g", {"?": 1}, BUILT_IN)
    known = raised.value.errors["?"].partition("known are ")[2].split(", ")
    told = {option: row[-1] for row in rows(PAGE, "option") for option in names(row[0])}
    assert sorted(told) == sorted(known)
    tried = 0
    for option, text in told.items():
        for value in names(text)[:1]:
            tried += 1
            given = {option: json.loads(value)}
            assert read_options("g", given, BUILT_IN) == read_options("g", {}, BUILT_IN), option
    assert tried > 10


def test_what_preemption_leaves_out_is_documented() -> None:
    given = {"order": "newest", "action": "requeue", "minimum_run_time": 0, "scope": "group"}
    assert f"`{given['order']}`, `{given['action']}`, 0, `{given['scope']}`, true" in PAGE
    rules = read_options("g", {"preemption": {**given, "enabled": True}}, BUILT_IN).policy
    assert rules == read_options("g", {"preemption": {}}, BUILT_IN).policy


def test_every_policy_is_documented() -> None:
    options = {name: row for row in rows(PAGE, "option") for name in names(row[0])}
    assert set(BUILT_IN.sequencers) <= set(names(options["sequencer"][1]))
    assert set(BUILT_IN.selectors) <= set(names(options["selector"][1]))
