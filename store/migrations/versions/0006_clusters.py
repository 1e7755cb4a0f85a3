"""What sessions of several containers need.

Revision ID: 0006
Revises: 0005
"""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"

WHEN = sa.DateTime(timezone=True)


def upgrade() -> None:
    """Add what agents can do, the keys of clusters, and the deployment's own id."""
    op.add_column("agents", sa.Column("features", sa.JSON(), nullable=True))
    op.add_column("sessions", sa.Column("cluster_keys", sa.JSON(), nullable=True))
    op.create_table(
        "deployment",
        sa.Column("name", sa.String(16), nullable=False),
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("created_at", WHEN, nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_deployment"),
    )
