"""Resource policies of users and projects; limits of folders and images go from key pairs to users.

Revision ID: 0010
Revises: 0009
"""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"

USER_ONLY = ("max_vfolder_count", "max_customized_image_count")


def upgrade() -> None:
    """Every user gets a policy with the name, and the moved limits, of the main key pair's."""
    _policies("project_resource_policies")
    _policies("user_resource_policies", *USER_ONLY)
    for table in ("projects", "users"):
        op.add_column(
            table,
            sa.Column("resource_policy", sa.String(64), nullable=False, server_default="default"),
        )
    op.execute(
        "INSERT INTO user_resource_policies"
        " (name, max_vfolder_count, max_customized_image_count, created_at)"
        " SELECT name, max_vfolder_count, max_customized_image_count, created_at"
        " FROM keypair_policies"
    )
    op.execute(
        "UPDATE users SET resource_policy = (SELECT policy FROM keypairs"
        " WHERE keypairs.access_key = users.main_access_key)"
        " WHERE main_access_key IN (SELECT access_key FROM keypairs)"
    )
    for column in USER_ONLY:
        op.drop_column("keypair_policies", column)


def _policies(table: str, *counts: str) -> None:
    op.create_table(
        table,
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("total_resource_slots", sa.JSON(), nullable=True),
        sa.Column("max_concurrent_sessions", sa.Integer(), nullable=True),
        sa.Column("max_pending_sessions", sa.Integer(), nullable=True),
        sa.Column("max_pending_resource_slots", sa.JSON(), nullable=True),
        sa.Column("max_containers_per_session", sa.Integer(), nullable=True),
        *(sa.Column(count, sa.Integer(), nullable=True) for count in counts),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("name", name=f"pk_{table}"),
    )
