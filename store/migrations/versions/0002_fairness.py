"""What fairness, run times and limits of people need.

Revision ID: 0002
Revises: 0001
"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

WHEN = sa.DateTime(timezone=True)
JSON = sa.JSON()


def upgrade() -> None:
    """Add columns that may be empty, and the tables of usage and run times."""
    for table in ("domains", "projects", "users"):
        op.add_column(table, sa.Column("max_concurrent_sessions", sa.Integer(), nullable=True))
    op.add_column("users", sa.Column("total_resource_slots", JSON, nullable=True))
    op.add_column("keypair_policies", sa.Column("max_pending_resource_slots", JSON, nullable=True))
    op.add_column("sessions", sa.Column("scheduling", JSON, nullable=True))
    op.add_column("sessions", sa.Column("ends_at", WHEN, nullable=True))
    _allocations()
    op.create_table(
        "usage_accounts",
        sa.Column("resource_group", sa.String(64), nullable=False),
        sa.Column("scope", sa.String(16), nullable=False),
        sa.Column("scope_id", sa.String(128), nullable=False),
        sa.Column("slot", sa.String(64), nullable=False),
        sa.Column("slot_seconds", sa.Double(), nullable=False),
        sa.Column("at", WHEN, nullable=False),
        sa.CheckConstraint("scope IN ('domain', 'project', 'user')", name="ck_usage_accounts_scope"),
        sa.ForeignKeyConstraint(
            ["resource_group"],
            ["resource_groups.name"],
            name="fk_usage_accounts_resource_group_resource_groups",
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("resource_group", "scope", "scope_id", "slot", name="pk_usage_accounts"),
    )
    op.create_table(
        "run_times",
        sa.Column("owner_id", sa.Uuid(), nullable=False),
        sa.Column("image", sa.String(255), nullable=False),
        sa.Column("samples", sa.Integer(), nullable=False),
        sa.Column("mean", sa.Double(), nullable=False),
        sa.Column("deviation", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(
            ["owner_id"], ["users.id"], name="fk_run_times_owner_id_users", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("owner_id", "image", name="pk_run_times"),
    )


def _allocations() -> None:
    """What is held at present is charged from its beginning; what was freed before is forgotten."""
    op.add_column("allocations", sa.Column("uncharged_since", WHEN, nullable=True))
    op.execute("UPDATE allocations SET uncharged_since = allocated_at WHERE freed_at IS NULL")
    live = sa.text("freed_at IS NULL")
    op.create_index(
        "ix_allocations_live", "allocations", ["agent_id"], sqlite_where=live, postgresql_where=live
    )
    uncharged = sa.text("uncharged_since IS NOT NULL")
    op.create_index(
        "ix_allocations_uncharged",
        "allocations",
        ["uncharged_since"],
        sqlite_where=uncharged,
        postgresql_where=uncharged,
    )
