"""The first tables of all rooms.

Revision ID: 0001
Revises: nothing
"""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

WHEN = sa.DateTime(timezone=True)
JSON = sa.JSON()


def _column(name: str, kind: Any, *, null: bool = False) -> sa.Column[Any]:
    return sa.Column(name, kind, nullable=null)


def upgrade() -> None:
    """Make every table, parents before children."""
    _identity()
    _key_pairs()
    _folders()
    _cluster()
    _agents()
    _sessions()
    _kernels()


def _identity() -> None:
    """Rows of the authenticator: domains, projects, users."""
    op.create_table(
        "domains",
        _column("name", sa.String(64)),
        _column("description", sa.Text()),
        _column("is_active", sa.Boolean()),
        _column("total_resource_slots", JSON, null=True),
        _column("allowed_vfolder_hosts", JSON, null=True),
        _column("created_at", WHEN),
        sa.PrimaryKeyConstraint("name", name="pk_domains"),
    )
    op.create_table(
        "projects",
        _column("id", sa.Uuid()),
        _column("domain", sa.String(64)),
        _column("name", sa.String(64)),
        _column("description", sa.Text()),
        _column("is_active", sa.Boolean()),
        _column("total_resource_slots", JSON, null=True),
        _column("allowed_vfolder_hosts", JSON, null=True),
        _column("created_at", WHEN),
        sa.ForeignKeyConstraint(["domain"], ["domains.name"], name="fk_projects_domain_domains"),
        sa.PrimaryKeyConstraint("id", name="pk_projects"),
        sa.UniqueConstraint("domain", "name", name="uq_projects_domain_name"),
    )
    op.create_table(
        "users",
        _column("id", sa.Uuid()),
        _column("username", sa.String(64)),
        _column("email", sa.String(254)),
        _column("full_name", sa.String(254)),
        _column("password_hash", sa.Text(), null=True),
        _column("password_changed_at", WHEN, null=True),
        _column("domain", sa.String(64)),
        _column("role", sa.String(16)),
        _column("status", sa.String(24)),
        _column("main_access_key", sa.String(20), null=True),
        _column("created_at", WHEN),
        sa.CheckConstraint("role IN ('user', 'admin', 'superadmin')", name="ck_users_role"),
        sa.CheckConstraint("status IN ('active', 'inactive', 'before-verification')", name="ck_users_status"),
        sa.ForeignKeyConstraint(["domain"], ["domains.name"], name="fk_users_domain_domains"),
        sa.PrimaryKeyConstraint("id", name="pk_users"),
        sa.UniqueConstraint("email", name="uq_users_email"),
        sa.UniqueConstraint("username", name="uq_users_username"),
    )
    op.create_table(
        "memberships",
        _column("user_id", sa.Uuid()),
        _column("project_id", sa.Uuid()),
        sa.ForeignKeyConstraint(
            ["project_id"], ["projects.id"], name="fk_memberships_project_id_projects", ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["user_id"], ["users.id"], name="fk_memberships_user_id_users", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("user_id", "project_id", name="pk_memberships"),
    )


def _key_pairs() -> None:
    """Rows of the authenticator: policies and key pairs."""
    op.create_table(
        "keypair_policies",
        _column("name", sa.String(64)),
        _column("total_resource_slots", JSON, null=True),
        _column("max_concurrent_sessions", sa.Integer(), null=True),
        _column("max_pending_sessions", sa.Integer(), null=True),
        _column("max_containers_per_session", sa.Integer()),
        _column("max_session_lifetime", sa.BigInteger(), null=True),
        _column("max_priority", sa.Integer()),
        _column("idle_timeout", sa.BigInteger(), null=True),
        _column("max_vfolder_count", sa.Integer(), null=True),
        _column("allowed_vfolder_hosts", JSON, null=True),
        _column("created_at", WHEN),
        sa.PrimaryKeyConstraint("name", name="pk_keypair_policies"),
    )
    op.create_table(
        "keypairs",
        _column("access_key", sa.String(20)),
        _column("secret_key", sa.String(64)),
        _column("user_id", sa.Uuid()),
        _column("policy", sa.String(64)),
        _column("is_active", sa.Boolean()),
        _column("is_admin", sa.Boolean()),
        _column("rate_limit", sa.Integer()),
        _column("created_at", WHEN),
        _column("last_used", WHEN, null=True),
        sa.ForeignKeyConstraint(
            ["policy"], ["keypair_policies.name"], name="fk_keypairs_policy_keypair_policies"
        ),
        sa.ForeignKeyConstraint(
            ["user_id"], ["users.id"], name="fk_keypairs_user_id_users", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("access_key", name="pk_keypairs"),
    )
    op.create_index("ix_keypairs_user_id", "keypairs", ["user_id"])


def _folders() -> None:
    """Rows of vfolder."""
    op.create_table(
        "vfolders",
        _column("id", sa.Uuid()),
        _column("name", sa.String(64)),
        _column("volume", sa.String(64)),
        _column("ownership", sa.String(8)),
        _column("owner_id", sa.Uuid()),
        _column("project_id", sa.Uuid(), null=True),
        _column("usage_mode", sa.String(8)),
        _column("permission", sa.String(2)),
        _column("is_home", sa.Boolean()),
        _column("quota_bytes", sa.BigInteger(), null=True),
        _column("cloneable", sa.Boolean()),
        _column("status", sa.String(16)),
        _column("created_at", WHEN),
        _column("last_used", WHEN, null=True),
        sa.CheckConstraint("ownership IN ('user', 'group')", name="ck_vfolders_ownership"),
        sa.CheckConstraint("quota_bytes IS NULL OR quota_bytes >= 0", name="ck_vfolders_quota"),
        sa.ForeignKeyConstraint(["owner_id"], ["users.id"], name="fk_vfolders_owner_id_users"),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"], name="fk_vfolders_project_id_projects"),
        sa.PrimaryKeyConstraint("id", name="pk_vfolders"),
    )
    op.create_index(
        "uq_vfolders_owner_name",
        "vfolders",
        ["owner_id", "name"],
        unique=True,
        sqlite_where=sa.text("status <> 'delete-complete'"),
        postgresql_where=sa.text("status <> 'delete-complete'"),
    )


def _cluster() -> None:
    """Rows of the spawner: what sessions can run on."""
    op.create_table(
        "resource_groups",
        _column("name", sa.String(64)),
        _column("description", sa.Text()),
        _column("is_active", sa.Boolean()),
        _column("is_default", sa.Boolean()),
        _column("options", JSON),
        _column("created_at", WHEN),
        sa.PrimaryKeyConstraint("name", name="pk_resource_groups"),
    )
    op.create_table(
        "resource_presets",
        _column("name", sa.String(64)),
        _column("resource_slots", JSON),
        _column("shared_memory", sa.BigInteger(), null=True),
        _column("resource_group", sa.String(64), null=True),
        _column("rank", sa.Integer()),
        sa.ForeignKeyConstraint(
            ["resource_group"],
            ["resource_groups.name"],
            name="fk_resource_presets_resource_group_resource_groups",
        ),
        sa.PrimaryKeyConstraint("name", name="pk_resource_presets"),
    )
    op.create_table(
        "images",
        _column("name", sa.String(255)),
        _column("architecture", sa.String(16)),
        _column("engine", sa.String(16)),
        _column("digest", sa.String(128), null=True),
        _column("size_bytes", sa.BigInteger()),
        _column("labels", JSON),
        _column("is_enabled", sa.Boolean()),
        _column("created_at", WHEN),
        sa.PrimaryKeyConstraint("name", "architecture", name="pk_images"),
    )


def _agents() -> None:
    """Rows of the spawner: nodes, their secrets and their devices."""
    op.create_table(
        "agents",
        _column("id", sa.String(64)),
        _column("resource_group", sa.String(64)),
        _column("status", sa.String(16)),
        _column("schedulable", sa.Boolean()),
        _column("architecture", sa.String(16)),
        _column("engine", sa.String(16)),
        _column("version", sa.String(32)),
        _column("address", sa.String(255)),
        _column("max_containers", sa.Integer(), null=True),
        _column("images", JSON),
        _column("first_contact", WHEN),
        _column("last_seen", WHEN),
        _column("lost_at", WHEN, null=True),
        sa.CheckConstraint("status IN ('ALIVE', 'LOST', 'TERMINATED')", name="ck_agents_status"),
        sa.ForeignKeyConstraint(
            ["resource_group"], ["resource_groups.name"], name="fk_agents_resource_group_resource_groups"
        ),
        sa.PrimaryKeyConstraint("id", name="pk_agents"),
    )
    op.create_table(
        "agent_tokens",
        _column("id", sa.Uuid()),
        _column("token_hash", sa.String(64)),
        _column("agent_id", sa.String(64), null=True),
        _column("note", sa.Text()),
        _column("created_at", WHEN),
        _column("revoked_at", WHEN, null=True),
        sa.PrimaryKeyConstraint("id", name="pk_agent_tokens"),
        sa.UniqueConstraint("token_hash", name="uq_agent_tokens_token_hash"),
    )
    op.create_table(
        "agent_devices",
        _column("agent_id", sa.String(64)),
        _column("slot", sa.String(64)),
        _column("device_id", sa.String(64)),
        _column("reported", sa.BigInteger()),
        _column("capacity", sa.BigInteger()),
        _column("used", sa.BigInteger()),
        _column("numa_node", sa.Integer(), null=True),
        _column("model", sa.String(128)),
        _column("attributes", JSON),
        sa.CheckConstraint("reported >= 0", name="ck_agent_devices_reported"),
        sa.CheckConstraint("used <= capacity", name="ck_agent_devices_not_overcommitted"),
        sa.CheckConstraint("used >= 0", name="ck_agent_devices_used_not_negative"),
        sa.ForeignKeyConstraint(
            ["agent_id"], ["agents.id"], name="fk_agent_devices_agent_id_agents", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("agent_id", "slot", "device_id", name="pk_agent_devices"),
    )


def _sessions() -> None:
    """Rows of the spawner: what users asked for."""
    op.create_table(
        "sessions",
        _column("id", sa.Uuid()),
        _column("name", sa.String(64)),
        _column("owner_id", sa.Uuid()),
        _column("access_key", sa.String(20)),
        _column("domain", sa.String(64)),
        _column("project_id", sa.Uuid()),
        _column("resource_group", sa.String(64)),
        _column("type", sa.String(16)),
        _column("cluster_mode", sa.String(16)),
        _column("cluster_size", sa.Integer()),
        _column("priority", sa.Integer()),
        _column("image", sa.String(255)),
        _column("architecture", sa.String(16)),
        _column("requested_slots", JSON),
        _column("resource_opts", JSON),
        _column("designated_agents", JSON),
        _column("status", sa.String(16)),
        _column("target", sa.String(16)),
        _column("forced", sa.Boolean()),
        _column("status_info", sa.Text()),
        _column("status_data", JSON),
        _column("result", sa.String(16)),
        _column("tag", sa.String(64), null=True),
        _column("callback_url", sa.Text(), null=True),
        _column("origin", JSON),
        _column("request_id", sa.String(64)),
        _column("starts_at", WHEN, null=True),
        _column("created_at", WHEN),
        _column("scheduled_at", WHEN, null=True),
        _column("started_at", WHEN, null=True),
        _column("terminated_at", WHEN, null=True),
        sa.CheckConstraint("target IN ('RUNNING', 'TERMINATED')", name="ck_sessions_target"),
        sa.CheckConstraint("priority BETWEEN 0 AND 100", name="ck_sessions_priority"),
        sa.ForeignKeyConstraint(["domain"], ["domains.name"], name="fk_sessions_domain_domains"),
        sa.ForeignKeyConstraint(["owner_id"], ["users.id"], name="fk_sessions_owner_id_users"),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"], name="fk_sessions_project_id_projects"),
        sa.ForeignKeyConstraint(
            ["resource_group"], ["resource_groups.name"], name="fk_sessions_resource_group_resource_groups"
        ),
        sa.PrimaryKeyConstraint("id", name="pk_sessions"),
    )
    op.create_index("ix_sessions_owner_id", "sessions", ["owner_id"])
    op.create_index("ix_sessions_status", "sessions", ["status"])
    op.create_index(
        "uq_sessions_owner_name",
        "sessions",
        ["owner_id", "name"],
        unique=True,
        sqlite_where=sa.text("status NOT IN ('TERMINATED', 'CANCELLED', 'ERROR')"),
        postgresql_where=sa.text("status NOT IN ('TERMINATED', 'CANCELLED', 'ERROR')"),
    )


def _kernels() -> None:
    """Rows of the spawner: what runs, what it holds and what happened."""
    op.create_table(
        "kernels",
        _column("id", sa.Uuid()),
        _column("session_id", sa.Uuid()),
        _column("cluster_role", sa.String(16)),
        _column("cluster_index", sa.Integer()),
        _column("hostname", sa.String(64)),
        _column("epoch", sa.Integer()),
        _column("status", sa.String(16)),
        _column("agent_id", sa.String(64), null=True),
        _column("image", sa.String(255)),
        _column("slots", JSON),
        _column("spec", JSON),
        _column("container_id", sa.String(128), null=True),
        _column("url", sa.String(255), null=True),
        _column("ports", JSON),
        _column("exit_code", sa.Integer(), null=True),
        _column("status_info", sa.Text()),
        _column("last_stat", JSON),
        _column("last_log", sa.Text()),
        _column("created_at", WHEN),
        _column("started_at", WHEN, null=True),
        _column("terminated_at", WHEN, null=True),
        sa.ForeignKeyConstraint(["agent_id"], ["agents.id"], name="fk_kernels_agent_id_agents"),
        sa.ForeignKeyConstraint(
            ["session_id"], ["sessions.id"], name="fk_kernels_session_id_sessions", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name="pk_kernels"),
    )
    op.create_index("ix_kernels_agent_status", "kernels", ["agent_id", "status"])
    op.create_index("ix_kernels_session_id", "kernels", ["session_id"])
    op.create_table(
        "allocations",
        _column("kernel_id", sa.Uuid()),
        _column("epoch", sa.Integer()),
        _column("agent_id", sa.String(64)),
        _column("slot", sa.String(64)),
        _column("device_id", sa.String(64)),
        _column("amount", sa.BigInteger()),
        _column("allocated_at", WHEN),
        _column("freed_at", WHEN, null=True),
        sa.CheckConstraint("amount > 0", name="ck_allocations_amount"),
        sa.ForeignKeyConstraint(
            ["kernel_id"], ["kernels.id"], name="fk_allocations_kernel_id_kernels", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("kernel_id", "epoch", "agent_id", "slot", "device_id", name="pk_allocations"),
    )
    # ### end Alembic commands ###
    op.create_table(
        "history",
        _column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite")),
        _column("kind", sa.String(16)),
        _column("object_id", sa.String(64)),
        _column("session_id", sa.Uuid(), null=True),
        _column("at", WHEN),
        _column("from_status", sa.String(16), null=True),
        _column("to_status", sa.String(16)),
        _column("cause", sa.Text()),
        _column("request_id", sa.String(64)),
        _column("data", JSON),
        sa.PrimaryKeyConstraint("id", name="pk_history"),
    )
    op.create_index("ix_history_object", "history", ["kind", "object_id", "id"])
    op.create_index("ix_history_session_id", "history", ["session_id"])
