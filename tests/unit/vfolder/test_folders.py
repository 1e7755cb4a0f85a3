"""Use cases of folders on a real database and real directories."""

import asyncio
import datetime as dt
import uuid
from pathlib import Path

import pytest
import pytest_asyncio
from sqlalchemy.ext.asyncio import AsyncSession

from authenticator.principals import Principal, Role, Via
from authenticator.problems import (
    FolderAlreadyExists,
    FolderOperationFailed,
    InvalidParameters,
    NotFound,
    QuotaExceeded,
    Unavailable,
)
from authenticator.tables import DomainRow, KeyPairPolicyRow, KeyPairRow, UserPolicyRow, UserRow
from store.database import Store
from vfolder.folders import FolderService, volume_path
from vfolder.tables import FolderRow
from vfolder.volumes.local import LocalVolume

NOW = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)


async def add_user(store: Store, name: str, max_folders: int | None = None) -> Principal:
    user_id, key = uuid.uuid4(), f"AKIA{name.upper():0<16}"[:20]

    async def work(session: AsyncSession) -> None:
        await session.merge(DomainRow(name="default", created_at=NOW))
        session.add(KeyPairPolicyRow(name=name, created_at=NOW))
        session.add(UserPolicyRow(name=name, max_vfolder_count=max_folders, created_at=NOW))
        session.add(
            UserRow(
                id=user_id,
                username=name,
                email=f"{name}@x",
                domain="default",
                resource_policy=name,
                created_at=NOW,
            )
        )
        await session.flush()
        session.add(
            KeyPairRow(access_key=key, secret_key="s", user_id=user_id, policy=name, created_at=NOW)
        )

    await store.write(work)
    return Principal(user_id, name, f"{name}@x", Role.USER, "default", key, Via.KEYPAIR)


@pytest.fixture
def volume(tmp_path: Path) -> LocalVolume:
    return LocalVolume("local", tmp_path / "volume")


@pytest.fixture
def folders(store: Store, volume: LocalVolume) -> FolderService:
    return FolderService(store, [volume], lambda: NOW)


@pytest_asyncio.fixture(loop_scope="session")
async def alice(store: Store) -> Principal:
    return await add_user(store, "alice", max_folders=2)


@pytest_asyncio.fixture(loop_scope="session")
async def bob(store: Store) -> Principal:
    return await add_user(store, "bob")


async def test_everybody_who_asks_at_once_gets_the_same_home(
    folders: FolderService, alice: Principal, volume: LocalVolume
) -> None:
    homes = await asyncio.gather(*(folders.ensure_home(alice) for _ in range(5)))
    assert len({home.id for home in homes}) == 1
    assert {home.status for home in homes} == {"ready"}
    assert (volume.root / volume_path(homes[0])).is_dir()


async def test_a_folder_is_created_listed_described_and_deleted(
    folders: FolderService, alice: Principal, volume: LocalVolume
) -> None:
    row = await folders.create(alice, "data.1", usage_mode="data", quota_bytes=1 << 30)
    folder = volume.root / volume_path(row)
    (folder / "x").write_bytes(b"x" * 9000)
    assert [each.name for each in await folders.list(alice)] == ["data.1"]
    found, usage = await folders.info(alice, str(row.id))
    assert (found.name, usage.files, found.quota_bytes) == ("data.1", 1, 1 << 30)
    await folders.delete(alice, "data.1")
    assert await folders.list(alice) == []
    assert not folder.exists()
    await folders.create(alice, "data.1")  # the name is free again


async def test_every_wrong_field_is_named_at_once(folders: FolderService, alice: Principal) -> None:
    with pytest.raises(InvalidParameters) as caught:
        await folders.create(alice, "a/b", volume="nas", usage_mode="fast", quota_bytes=-1)
    assert set(caught.value.fields) == {"name", "host", "usage_mode", "quota"}
    assert "'nas': one of local" in caught.value.sentence()


@pytest.mark.parametrize("name", ["", "..", ".", "a\n", "home", "x" * 65, "é", "-a"])
async def test_bad_names_are_refused(folders: FolderService, alice: Principal, name: str) -> None:
    with pytest.raises(InvalidParameters):
        await folders.create(alice, name)


async def test_names_are_unique_per_owner_and_counted(
    folders: FolderService, alice: Principal, bob: Principal
) -> None:
    await folders.create(alice, "data")
    await folders.create(bob, "data")
    with pytest.raises(FolderAlreadyExists):
        await folders.create(alice, "data")
    await folders.create(alice, "more")
    with pytest.raises(QuotaExceeded, match="may have 2"):
        await folders.create(alice, "third")


async def test_strangers_see_nothing(
    folders: FolderService, alice: Principal, bob: Principal
) -> None:
    row = await folders.create(alice, "data")
    for ref in ("data", str(row.id)):
        with pytest.raises(NotFound) as caught:
            await folders.delete(bob, ref)
        assert "there is no folder" in str(caught.value)
    assert [each.id for each in await folders.list(alice)] == [row.id]


async def test_homes_and_mounted_folders_cannot_be_deleted(
    folders: FolderService, alice: Principal
) -> None:
    home = await folders.ensure_home(alice)
    with pytest.raises(FolderOperationFailed, match="home"):
        await folders.delete(alice, str(home.id))
    row = await folders.create(alice, "data")

    async def mounted(volume: str, path: str) -> bool:
        return (volume, path) == ("local", volume_path(row))

    folders.in_use = mounted
    with pytest.raises(FolderOperationFailed, match="end the session first"):
        await folders.delete(alice, "data")
    assert (await folders.find(alice, "data")).status == "ready"


async def test_no_session_mounts_a_folder_that_is_being_deleted(
    folders: FolderService, store: Store, alice: Principal
) -> None:
    row = await folders.create(alice, "data")
    mounts = await folders.mounts_for(alice, ["data"], {})
    refused: list[str] = []

    async def session_comes_in_between(volume: str, path: str) -> bool:
        with pytest.raises(InvalidParameters) as caught:
            await store.write(lambda session: folders.still_there(session, mounts))
        refused.append(str(caught.value.data))
        return False

    folders.in_use = session_comes_in_between
    await folders.delete(alice, str(row.id))
    assert "the folder at /home/work/data is delete-ongoing" in refused[0]


async def test_a_session_mounts_its_home_and_what_it_asked_for(
    folders: FolderService, alice: Principal
) -> None:
    row = await folders.create(alice, "data")
    mounts = await folders.mounts_for(alice, ["data/2026/jan"], {"data/2026/jan": "/mnt/jan"})
    assert [mount.target for mount in mounts] == ["/home/work", "/mnt/jan"]
    assert mounts[1].path == f"{volume_path(row)}/2026/jan"


@pytest.mark.parametrize(
    ("names", "targets", "field"),
    [
        (["nothing"], {}, "config.mounts.nothing"),
        (["data/../../x"], {}, "config.mounts.data/../../x"),
        (["data"], {"data": "/etc"}, "config.mounts.data"),
        (["data"], {"data": "/mnt/../etc"}, "config.mounts.data"),
        (["data"], {"data": "/home/work"}, "config.mounts.data"),
        (["data"], {"other": "/mnt/x"}, "config.mount_map.other"),
        (["data", "data"], {}, "config.mounts"),
        (["home"], {}, "config.mounts.home"),
    ],
)
async def test_bad_mounts_are_named(
    folders: FolderService, alice: Principal, names: list[str], targets: dict[str, str], field: str
) -> None:
    await folders.ensure_home(alice)
    await folders.create(alice, "data")
    with pytest.raises(InvalidParameters) as caught:
        await folders.mounts_for(alice, names, targets)
    assert field in caught.value.fields


async def test_what_a_crash_interrupted_is_finished(
    store: Store, folders: FolderService, alice: Principal, volume: LocalVolume
) -> None:
    row = await folders.create(alice, "half-deleted")
    (volume.root / volume_path(row) / "x").write_text("x")

    async def crash(session: AsyncSession) -> None:
        stored = await session.get(FolderRow, row.id)
        assert stored is not None
        stored.status = "delete-ongoing"
        session.add(
            FolderRow(
                id=uuid.uuid4(),
                name="half-made",
                volume="local",
                owner_id=alice.user_id,
                status="performing",
                created_at=NOW,
            )
        )

    await store.write(crash)
    await folders.resume()
    (made,) = await folders.list(alice)
    assert (made.name, made.status) == ("half-made", "ready")
    assert (volume.root / volume_path(made)).is_dir()
    assert not (volume.root / volume_path(row)).exists()


async def test_a_volume_that_refuses_leaves_a_folder_that_can_be_resumed(
    folders: FolderService, alice: Principal, volume: LocalVolume
) -> None:
    (volume.root / "user").symlink_to("/tmp")
    with pytest.raises(Unavailable, match="link"):
        await folders.create(alice, "data")
    (volume.root / "user").unlink()
    await folders.resume()
    assert [row.status for row in await folders.list(alice)] == ["ready"]
