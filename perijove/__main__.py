"""``python -m perijove``: what is known about the session that this runs in."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys

from perijove.session import Access, SessionUnknown, fetch


def main(arguments: list[str] | None = None) -> int:
    """Print the session; exit status 1 where nothing is known about one."""
    parser = argparse.ArgumentParser(
        prog="python -m perijove", description="Say in which session this runs, and what it has."
    )
    parser.add_argument("--json", action="store_true", help="as one JSON object")
    wanted = parser.parse_args(arguments)
    try:
        facts = fetch(Access.from_environ())
    except SessionUnknown as unknown:
        print(f"perijove: {unknown}", file=sys.stderr)  # noqa: T201 - this is a command
        return 1
    text = json.dumps(dataclasses.asdict(facts), indent=2) if wanted.json else str(facts)
    print(text)  # noqa: T201 - this is a command
    return 0


if __name__ == "__main__":
    sys.exit(main())
