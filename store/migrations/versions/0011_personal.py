"""What people bring into their sessions: dotfiles, a bootstrap script, an SSH key; a policy's seccomp profile.

Revision ID: 0011
Revises: 0010
"""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"

ONE_OWNER = (
    "CASE WHEN user_id IS NULL THEN 0 ELSE 1 END + CASE WHEN project_id IS NULL THEN 0 ELSE 1 END"
    " + CASE WHEN domain IS NULL THEN 0 ELSE 1 END = 1"
)


def upgrade() -> None:
    """Add the table, and columns that may be empty."""
    op.add_column("users", sa.Column("bootstrap_script", sa.Text(), nullable=True))
    op.add_column("users", sa.Column("ssh_public_key", sa.Text(), nullable=True))
    op.add_column("keypair_policies", sa.Column("seccomp", sa.String(64), nullable=True))
    op.create_table(
        "dotfiles",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("user_id", sa.Uuid(), nullable=True),
        sa.Column("project_id", sa.Uuid(), nullable=True),
        sa.Column("domain", sa.String(64), nullable=True),
        sa.Column("path", sa.Text(), nullable=False),
        sa.Column("permission", sa.String(3), nullable=False),
        sa.Column("data", sa.Text(), nullable=False),
        sa.CheckConstraint(ONE_OWNER, name="ck_dotfiles_owner"),
        sa.UniqueConstraint("user_id", "path", name="uq_dotfiles_user_id_path"),
        sa.UniqueConstraint("project_id", "path", name="uq_dotfiles_project_id_path"),
        sa.UniqueConstraint("domain", "path", name="uq_dotfiles_domain_path"),
        sa.ForeignKeyConstraint(
            ["user_id"], ["users.id"], name="fk_dotfiles_user_id_users", ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["project_id"], ["projects.id"], name="fk_dotfiles_project_id_projects", ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["domain"], ["domains.name"], name="fk_dotfiles_domain_domains", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name="pk_dotfiles"),
    )
