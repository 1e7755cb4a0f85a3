"""Registries with credentials, and images made of sessions.

Revision ID: 0003
Revises: 0002
"""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"

WHEN = sa.DateTime(timezone=True)


def upgrade() -> None:
    """Add the tables, and columns that may be empty or have a default."""
    op.create_table(
        "registries",
        sa.Column("name", sa.String(255), nullable=False),
        sa.Column("username", sa.String(255), nullable=False),
        sa.Column("password", sa.Text(), nullable=False),
        sa.Column("is_active", sa.Boolean(), nullable=False),
        sa.Column("created_at", WHEN, nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_registries"),
    )
    op.create_table(
        "commits",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("session_id", sa.Uuid(), nullable=False),
        sa.Column("owner_id", sa.Uuid(), nullable=False),
        sa.Column("agent_id", sa.String(64), nullable=False),
        sa.Column("image", sa.String(255), nullable=False),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("message", sa.Text(), nullable=False),
        sa.Column("created_at", WHEN, nullable=False),
        sa.Column("ended_at", WHEN, nullable=True),
        sa.CheckConstraint("status IN ('ongoing', 'done', 'failed')", name="ck_commits_status"),
        sa.ForeignKeyConstraint(
            ["session_id"], ["sessions.id"], name="fk_commits_session_id_sessions", ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(["owner_id"], ["users.id"], name="fk_commits_owner_id_users"),
        sa.PrimaryKeyConstraint("id", name="pk_commits"),
    )
    op.create_index("ix_commits_session", "commits", ["session_id"])
    op.add_column("images", sa.Column("expected_digest", sa.String(128), nullable=True))
    op.add_column("images", sa.Column("owner_id", sa.Uuid(), nullable=True))
    op.create_index("ix_images_owner_id", "images", ["owner_id"])
    op.add_column(
        "keypair_policies",
        sa.Column("max_customized_image_count", sa.Integer(), nullable=False, server_default="3"),
    )
