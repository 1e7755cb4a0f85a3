"""What every volume must do; a back-end is done when an empty subclass of this passes."""

import uuid

import pytest

from vfolder.volumes.base import Capability, Volume, VolumeError


class VolumeConformance:
    """Subclass it in a ``test_*`` module and give it a fixture ``volume``."""

    @pytest.fixture
    def path(self) -> str:
        digits = uuid.uuid4().hex
        return f"user/{digits[:2]}/{digits[2:4]}/{digits[4:]}"

    def test_create_is_idempotent_and_keeps_content(self, volume: Volume, path: str) -> None:
        volume.create_folder(path)
        volume.file_system().pipe_file(f"{path}/note.txt", b"kept")
        volume.create_folder(path)
        assert volume.file_system().cat_file(f"{path}/note.txt") == b"kept"

    def test_delete_removes_everything_and_is_idempotent(self, volume: Volume, path: str) -> None:
        volume.create_folder(path)
        volume.file_system().makedirs(f"{path}/a/b")
        volume.file_system().pipe_file(f"{path}/a/b/c", b"x")
        volume.delete_folder(path)
        volume.delete_folder(path)
        assert not volume.file_system().exists(path)

    def test_neighbours_survive_a_deletion(self, volume: Volume, path: str) -> None:
        volume.create_folder(path)
        volume.create_folder(path + "0")
        volume.delete_folder(path)
        assert volume.file_system().exists(path + "0")

    def test_usage_counts_bytes_and_files(self, volume: Volume, path: str) -> None:
        if Capability.USAGE not in volume.capabilities:
            pytest.skip(f"{volume.name} does not declare the usage capability")
        volume.create_folder(path)
        before = volume.usage(path)
        volume.file_system().pipe_file(f"{path}/blob", b"x" * 100_000)
        after = volume.usage(path)
        assert after.files == before.files + 1
        assert 100_000 <= after.used_bytes - before.used_bytes <= 200_000

    def test_usage_of_a_missing_folder_says_so(self, volume: Volume, path: str) -> None:
        if Capability.USAGE not in volume.capabilities:
            pytest.skip(f"{volume.name} does not declare the usage capability")
        with pytest.raises(VolumeError, match=volume.name):
            volume.usage(path)

    @pytest.mark.parametrize("bad", ["../out", "/etc/x", "a/../../b", "a\0b"])
    def test_paths_never_leave_the_volume(self, volume: Volume, bad: str) -> None:
        with pytest.raises(VolumeError):
            volume.create_folder(bad)
