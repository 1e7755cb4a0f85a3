"""The table of endpoints in ``docs/api.md``, made from the handlers' own declarations (``scripts/docs``)."""

from __future__ import annotations

import sys
from pathlib import Path

from hub.api.application import HANDLERS
from hub.api.endpoints import Endpoint, endpoints_of

HEAD = "| method | path | who | scope | what |\n| --- | --- | --- | --- | --- |\n"


def table() -> str:
    """One row for each path and method, by path."""
    rows = [
        (path, method, spec)
        for handler in HANDLERS
        for path in handler.paths
        if path
        for method, spec in endpoints_of(handler).items()
    ]
    return HEAD + "".join(_row(*each) for each in sorted(rows, key=lambda row: row[:2]))


def _row(path: str, method: str, spec: Endpoint) -> str:
    scope = "" if spec.scope is None else spec.scope.value.removeprefix("custom:perijove:")
    return f"| {method} | `{path}` | {spec.access.value} | {scope} | {spec.summary} |\n"


def main(page: Path) -> None:
    """Replace the table, which ends ``page``."""
    before, _, _ = page.read_text().partition(HEAD)
    page.write_text(before + table())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
