"""Checks of idle sessions in policies, and what they found.

Revision ID: 0009
Revises: 0008
"""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    """Add two columns that may be empty."""
    op.add_column("keypair_policies", sa.Column("idle_checks", sa.JSON(), nullable=True))
    op.add_column("sessions", sa.Column("idle", sa.JSON(), nullable=True))
