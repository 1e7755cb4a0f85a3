"""The local volume passes the conformance tests, and links never lead out of it."""

import os
from pathlib import Path

import pytest

from tests.unit.vfolder.volume_conformance import VolumeConformance
from vfolder.volumes.base import Volume, VolumeError
from vfolder.volumes.local import LocalVolume


class TestLocalVolume(VolumeConformance):
    @pytest.fixture
    def volume(self, tmp_path: Path) -> Volume:
        return LocalVolume("local", tmp_path / "volume")


def test_a_link_in_the_path_is_refused(tmp_path: Path) -> None:
    volume = LocalVolume("local", tmp_path / "volume")
    outside = tmp_path / "outside"
    outside.mkdir()
    (volume.root / "user").symlink_to(outside)
    with pytest.raises(VolumeError, match="link"):
        volume.create_folder("user/ab/cd")
    assert list(outside.iterdir()) == []


def test_deleting_a_folder_leaves_what_its_links_point_to(tmp_path: Path) -> None:
    volume = LocalVolume("local", tmp_path / "volume")
    canary = tmp_path / "canary"
    canary.mkdir()
    (canary / "file").write_text("here")
    volume.create_folder("user/ab")
    (volume.root / "user/ab/link").symlink_to(canary)
    volume.delete_folder("user/ab")
    assert (canary / "file").read_text() == "here"


def test_usage_counts_a_hard_link_once_and_follows_no_link(tmp_path: Path) -> None:
    volume = LocalVolume("local", tmp_path / "volume")
    volume.create_folder("user/ab")
    folder = volume.root / "user/ab"
    (folder / "one").write_bytes(b"x" * 65536)
    single = volume.usage("user/ab").used_bytes
    os.link(folder / "one", folder / "two")
    (folder / "etc").symlink_to("/usr")
    assert volume.usage("user/ab").used_bytes - single <= 8192


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give folders away")
def test_a_folder_belongs_to_the_identity_of_sessions(tmp_path: Path) -> None:
    volume = LocalVolume("local", tmp_path / "volume", owner=(1000, 1000))
    volume.create_folder("user/ab")
    facts = (volume.root / "user/ab").stat()
    assert (facts.st_uid, facts.st_gid, facts.st_mode & 0o777) == (1000, 1000, 0o700)
    assert (volume.root / "user").stat().st_uid == 0
