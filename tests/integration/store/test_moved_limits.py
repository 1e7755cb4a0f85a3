"""Migration 0010 on a database that people use: nobody loses a limit."""

import asyncio
import datetime as dt
import uuid
from pathlib import Path

import pytest
from alembic import command
from sqlalchemy import Connection, text
from sqlalchemy.ext.asyncio import create_async_engine

from store import schema
from store.engine import parse_url

pytestmark = pytest.mark.integration
NOW = dt.datetime(2026, 11, 1, tzinfo=dt.UTC)


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database of each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'perijove.sqlite'}"
    return str(request.getfixturevalue("postgres_url"))


def _fill(connection: Connection) -> None:
    """A deployment of revision 0009: two key pair policies, users of both and one without key pair."""
    command.upgrade(schema._config(connection), "0009")
    when = {"now": NOW if connection.dialect.name == "postgresql" else NOW.isoformat(" ")}
    connection.execute(
        text(
            "INSERT INTO domains (name, description, is_active, created_at) VALUES ('d', '', true, :now)"
        ),
        when,
    )
    for name, folders, images in (("default", 50, 3), ("guests", None, 0)):
        connection.execute(
            text(
                "INSERT INTO keypair_policies (name, max_containers_per_session, max_priority,"
                " max_vfolder_count, max_customized_image_count, created_at)"
                " VALUES (:name, 1, 10, :folders, :images, :now)"
            ),
            {"name": name, "folders": folders, "images": images, **when},
        )
    for user, policy in (("ada", "default"), ("bob", "guests"), ("eve", None)):
        key = f"AKIA{user}" if policy else None
        made = uuid.uuid4()
        who = {"id": made if connection.dialect.name == "postgresql" else made.hex, **when}
        connection.execute(
            text(
                "INSERT INTO users (id, username, email, full_name, domain, role, status,"
                " main_access_key, created_at)"
                " VALUES (:id, :name, :name, '', 'd', 'user', 'active', :key, :now)"
            ),
            {"name": user, "key": key, **who},
        )
        if policy:
            connection.execute(
                text(
                    "INSERT INTO keypairs (access_key, secret_key, user_id, policy, is_active,"
                    " is_admin, rate_limit, created_at)"
                    " VALUES (:key, 's', :id, :policy, true, false, 1, :now)"
                ),
                {"key": key, "policy": policy, **who},
            )


def test_limits_move_from_key_pairs_to_users(url: str) -> None:
    async def run(work: str | None = None) -> list[tuple[object, ...]]:
        engine = create_async_engine(parse_url(url))
        try:
            async with engine.begin() as connection:
                if work is None:
                    await connection.run_sync(_fill)
                    return []
                return [tuple(row) for row in await connection.execute(text(work))]
        finally:
            await engine.dispose()

    asyncio.run(run())
    assert schema.upgrade(url).before == "0009"
    schema.check(url)
    policies = (
        "SELECT name, max_vfolder_count, max_customized_image_count FROM user_resource_policies"
    )
    assert asyncio.run(run(policies + " ORDER BY name")) == [
        ("default", 50, 3),
        ("guests", None, 0),
    ]
    users = asyncio.run(run("SELECT username, resource_policy FROM users ORDER BY username"))
    assert users == [("ada", "default"), ("bob", "guests"), ("eve", "default")]
