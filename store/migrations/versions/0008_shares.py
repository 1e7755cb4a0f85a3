"""Shares of domains, projects and people, and how long and how often sessions were tried.

Revision ID: 0008
Revises: 0007
"""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"

WHEN = sa.DateTime(timezone=True)


def upgrade() -> None:
    """Add columns that may be empty or have a default, and a table."""
    op.add_column("sessions", sa.Column("eligible_since", WHEN, nullable=True))
    for table in ("domains", "projects", "users"):
        op.add_column(
            table, sa.Column("weight", sa.Double(), nullable=False, server_default="1")
        )
    op.create_table(
        "scheduler_passes",
        sa.Column("resource_group", sa.String(64), nullable=False),
        sa.Column("passes", sa.BigInteger(), nullable=False),
        sa.Column("at", WHEN, nullable=False),
        sa.ForeignKeyConstraint(
            ["resource_group"],
            ["resource_groups.name"],
            name="fk_scheduler_passes_resource_group_resource_groups",
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("resource_group", name="pk_scheduler_passes"),
    )
