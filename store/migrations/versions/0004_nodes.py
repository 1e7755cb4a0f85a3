"""Join tokens, credentials of agents, and nodes that are being emptied.

Revision ID: 0004
Revises: 0003
"""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"

WHEN = sa.DateTime(timezone=True)


def upgrade() -> None:
    """Every token so far is a standing one."""
    op.add_column("agents", sa.Column("drain", sa.JSON(), nullable=True))
    kind = sa.Column("kind", sa.String(16), nullable=False, server_default="standing")
    op.add_column("agent_tokens", kind)
    op.add_column("agent_tokens", sa.Column("expires_at", WHEN, nullable=True))
    op.add_column("agent_tokens", sa.Column("used_at", WHEN, nullable=True))
    op.add_column("agent_tokens", sa.Column("join_id", sa.Uuid(), nullable=True))
