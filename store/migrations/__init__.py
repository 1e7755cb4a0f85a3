"""Alembic migrations. They name every operation themselves and need no room's tables."""
