"""``docs/configuration.md``: every trait of ours with its help, generated from the classes.

``python -m hub.config.reference`` prints it; ``scripts/docs`` writes it.
"""

from __future__ import annotations

import inspect
import os
import sys
from typing import Any

from traitlets.config import Configurable

from hub.commands.base import all_classes

HEAD = """# Configuration

Generated from the classes by `scripts/docs`. Every setting goes into `perijove_config.py` as `c.Class.name = value`, or
onto the command line of the class's own command as `--Class.name=value`. `perijove --generate-config` writes the file
with all of them. See [operations.md](operations.md) for how the file is found.
"""


def markdown() -> str:
    """The whole page."""
    return "\n".join([HEAD, *(_section(each) for each in all_classes())])


def _section(cls: type[Configurable]) -> str:
    """One class: its sentence, then its own traits by name (not those of a foreign base class)."""
    sentence = (inspect.getdoc(cls) or "").split("\n\n")[0].replace("\n", " ")
    lines = [f"## {cls.__name__}", "", sentence, ""]
    for name, trait in sorted(cls.class_own_traits(config=True).items()):
        kind = type(trait).__name__
        lines.append(f"### `c.{cls.__name__}.{name}`")
        lines += ["", f"{kind}, default {_default(trait)}.", "", _prose(str(trait.help)), ""]
    return "\n".join(lines)


def _default(trait: Any) -> str:
    """The static default as code; a computed one is described in the help."""
    if trait.default_value in ("", None) or not trait.default_value_repr():
        return "see below" if "efault" in str(trait.help) else "empty"
    text = str(trait.default_value_repr())
    return "computed" if " object at " in text else f"`{text}`"


def _prose(text: str) -> str:
    """Help without its indentation; paragraphs stay."""
    paragraphs = inspect.cleandoc(text).split("\n\n")
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)


def main() -> None:
    """Print the page; defaults that depend on the environment are those of an empty one."""
    for name in [name for name in os.environ if name.startswith("PERIJOVE_")]:
        del os.environ[name]
    sys.stdout.write(markdown())


if __name__ == "__main__":
    main()
