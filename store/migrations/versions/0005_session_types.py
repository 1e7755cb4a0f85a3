"""Retries, the runs of sessions with their logs, and runs that were given up with their node.

Revision ID: 0005
Revises: 0004
"""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"

WHEN = sa.DateTime(timezone=True)
JSON = sa.JSON()


def upgrade() -> None:
    """Add a column that may be empty, and two tables."""
    op.add_column("sessions", sa.Column("recovery", JSON, nullable=True))
    op.create_table(
        "runs",
        sa.Column("kernel_id", sa.Uuid(), nullable=False),
        sa.Column("epoch", sa.Integer(), nullable=False),
        sa.Column("session_id", sa.Uuid(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("cause", sa.String(16), nullable=False),
        sa.Column("message", sa.Text(), nullable=False),
        sa.Column("exit_code", sa.Integer(), nullable=True),
        sa.Column("started_at", WHEN, nullable=True),
        sa.Column("ended_at", WHEN, nullable=False),
        sa.Column("log", sa.LargeBinary(), nullable=True),
        sa.ForeignKeyConstraint(
            ["kernel_id"], ["kernels.id"], name="fk_runs_kernel_id_kernels", ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["session_id"], ["sessions.id"], name="fk_runs_session_id_sessions", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("kernel_id", "epoch", name="pk_runs"),
    )
    op.create_index("ix_runs_session_id", "runs", ["session_id"])
    op.create_table(
        "lost_runs",
        sa.Column("kernel_id", sa.Uuid(), nullable=False),
        sa.Column("epoch", sa.Integer(), nullable=False),
        sa.Column("agent_id", sa.String(64), nullable=False),
        sa.Column("session_id", sa.Uuid(), nullable=False),
        sa.Column("lost_at", WHEN, nullable=False),
        sa.ForeignKeyConstraint(
            ["kernel_id"], ["kernels.id"], name="fk_lost_runs_kernel_id_kernels", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("kernel_id", "epoch", "agent_id", name="pk_lost_runs"),
    )
