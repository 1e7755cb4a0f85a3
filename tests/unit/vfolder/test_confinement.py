"""No path, however written, reads or makes anything outside its root."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import vfolder.confinement as confinement
from vfolder.confinement import PathEscapes, make_directories, open_beneath

PIECES = st.sampled_from(
    ["..", ".", "", "in", "link", "up", "abs", "file", "%2e%2e", "．．", "a\0b", "\\..", "in/.."]
)
PATHS = st.lists(PIECES, max_size=6).map("/".join) | st.text(max_size=30)


@pytest.fixture(params=["openat2", "walk"])
def opener(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Both ways to open: the kernel's and the walk for kernels without it."""
    if request.param == "walk":
        monkeypatch.setattr(confinement, "_openat2", lambda *_: None)
    return open_beneath


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "secret").write_text("canary")
    (tmp_path / "outside").mkdir()
    inside = tmp_path / "root"
    (inside / "in").mkdir(parents=True)
    (inside / "file").write_text("mine")
    (inside / "link").symlink_to(tmp_path / "outside")
    (inside / "up").symlink_to("..")
    (inside / "abs").symlink_to(tmp_path / "secret")
    return inside


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150)
@given(path=PATHS)
def test_whatever_opens_lies_beneath_the_root(
    root: Path, opener: Callable[..., int], path: str
) -> None:
    root_fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            descriptor = opener(root_fd, path, os.O_RDONLY)
        except (PathEscapes, OSError):
            return
        real = os.readlink(f"/proc/self/fd/{descriptor}")
        os.close(descriptor)
        assert Path(real).is_relative_to(root)
    finally:
        os.close(root_fd)


@pytest.mark.parametrize("path", ["link", "up", "up/secret", "abs", "link/x"])
def test_links_are_refused_by_name(root: Path, opener: Callable[..., int], path: str) -> None:
    root_fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with pytest.raises(PathEscapes):
            opener(root_fd, path, os.O_RDONLY)
    finally:
        os.close(root_fd)


def test_directories_are_never_made_through_a_link(root: Path) -> None:
    root_fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with pytest.raises(PathEscapes):
            make_directories(root_fd, "link/new")
        os.close(make_directories(root_fd, "in/a/b"))
    finally:
        os.close(root_fd)
    assert (root / "in/a/b").is_dir()
    assert not (root.parent / "outside/new").exists()
