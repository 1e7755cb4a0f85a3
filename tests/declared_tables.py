"""The tables that all rooms declare, found by the name of their modules."""

from importlib import import_module
from pathlib import Path

from sqlalchemy import MetaData

from store.base import Base

ROOT = Path(__file__).parent.parent
ROOMS = ("authenticator", "vfolder", "spawner", "hub")


def declared_tables() -> MetaData:
    """Metadata with every ``tables.py`` imported; a room cannot be forgotten."""
    for room in ROOMS:
        for path in sorted((ROOT / room).rglob("tables.py")):
            import_module(".".join(path.relative_to(ROOT).with_suffix("").parts))
    return Base.metadata
