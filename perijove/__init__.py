"""What people import in a notebook; nothing of the server side.

Names are imported when they are first used, so that ``import perijove`` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from perijove.widget import SessionInfo as SessionInfo

__all__ = ["SessionInfo"]

_PLACES = {"SessionInfo": "perijove.widget"}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'perijove' has no attribute {name!r}")
    return getattr(importlib.import_module(_PLACES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
