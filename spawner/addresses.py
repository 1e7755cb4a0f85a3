"""Addresses to listen on, as settings write them."""

from __future__ import annotations

import re

from traitlets import TraitError

_BIND = re.compile(r"(?:\[(?P<six>[0-9a-fA-F:]+)\]|(?P<host>[^:\[\]]*)):(?P<port>\d{1,5})")


def address(text: str) -> tuple[str, int]:
    """Host and port of ``HOST:PORT``. Raises ``TraitError``."""
    found = _BIND.fullmatch(text)
    if found is None or not 0 <= int(found["port"]) <= 65535:
        raise TraitError(f"an address to bind is {text!r}: give HOST:PORT, e.g. 127.0.0.1:8090")
    return found["six"] or found["host"], int(found["port"])
