"""Every reason for which a session can wait or be refused is in the documentation, and no other."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from spawner.scheduler.filters import SAYINGS
from spawner.sessions.ledger import REFUSALS
from tests.harness.house import nodes, tree_of

ROOT = Path(__file__).parents[3]
PAGE = ROOT / "docs/scheduling.md"
WAITING, COMMIT = 0, 1


def made() -> Iterator[str]:
    """First arguments of all ``Reason(...)`` and of the functions that make one of a limit."""
    for folder in ("scheduler", "sessions"):
        for path in (ROOT / "spawner" / folder).glob("*.py"):
            for node in nodes(tree_of(ROOT, path.relative_to(ROOT))):
                if not isinstance(node, ast.Call) or not node.args:
                    continue
                name, first = getattr(node.func, "id", ""), node.args[0]
                if name in ("Reason", "_passed") and isinstance(first, ast.Constant):
                    yield str(first.value)


def told(table: int) -> set[str]:
    """Names in one of the tables of the section."""
    section = PAGE.read_text().split("## Why does it wait?")[1].split("\n## ")[0]
    tables = re.findall(r"(?:^\|.*\n)+", section, re.MULTILINE)
    cells = [line.split("|")[1] for line in tables[table].splitlines()[2:]]
    return {name for cell in cells for name in re.findall(r"`([a-z-]+)`", cell)}


def test_the_documented_reasons_are_those_that_there_are() -> None:
    assert told(WAITING) == {*SAYINGS, *made()} - {"error"}
    assert told(COMMIT) == {*REFUSALS, "concurrency", "quota", "error"}
