"""Recipes: when an image must be built again, what goes into its context, what is told of the build."""

from __future__ import annotations

import io
import tarfile
import zipfile
from pathlib import Path

import pytest

from kernels import build
from kernels.bootstrap import DEFAULT_MIRROR, apt_mirror
from kernels.build import (
    PARTS,
    RECIPES,
    BuildError,
    BuildInputs,
    image_tag,
    parts,
    recipe_hash,
    recipes,
)


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    folder = tmp_path / "lab"
    folder.mkdir()
    (folder / "Dockerfile").write_text("ARG BASE\nFROM ${BASE}\n")
    (folder / "start").write_text("#!/bin/sh\n")
    return folder


def wheel(path: Path, content: str, year: int) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(zipfile.ZipInfo("a.py", (year, 1, 1, 0, 0, 0)), content)
    return path


def test_the_hash_follows_everything_that_ends_in_the_image(recipe: Path, tmp_path: Path) -> None:
    seen = {recipe_hash(recipe, BuildInputs())}
    seen.add(recipe_hash(recipe, BuildInputs(base="ubuntu:24.04")))
    (recipe / "start").chmod(0o755)
    seen.add(recipe_hash(recipe, BuildInputs()))
    (recipe / "start").write_text("#!/bin/sh\nexit 1\n")
    seen.add(recipe_hash(recipe, BuildInputs()))
    one = BuildInputs(wheels=(wheel(tmp_path / "p.whl", "1", 2020),))
    seen.add(recipe_hash(recipe, one))
    wheel(tmp_path / "p.whl", "2", 2020)
    seen.add(recipe_hash(recipe, one))
    assert len(seen) == 6


def test_the_hash_ignores_times_and_what_serves_the_build_only(
    recipe: Path, tmp_path: Path
) -> None:
    inputs = BuildInputs(wheels=(wheel(tmp_path / "p.whl", "1", 2020),))
    before = recipe_hash(recipe, inputs)
    wheel(tmp_path / "p.whl", "1", 2026)
    (recipe / "__pycache__").mkdir()
    (recipe / "__pycache__" / "x.pyc").write_bytes(b"x")
    (tmp_path / "pip.conf").write_text("[global]\nindex-url = https://me:secret@host/simple\n")
    private = BuildInputs(
        wheels=inputs.wheels, pip_conf=tmp_path / "pip.conf", ca_bundle=tmp_path / "pip.conf"
    )
    assert recipe_hash(recipe, private) == before
    assert image_tag(private, recipe) == f"perijove/lab:{before}"


def test_the_context_says_nothing_about_who_built_it(recipe: Path, tmp_path: Path) -> None:
    secret = tmp_path / "mine.conf"
    secret.write_text("x")
    inputs = BuildInputs(
        pip_conf=secret,
        npmrc=secret,
        ca_bundle=secret,
        wheels=(wheel(tmp_path / "p.whl", "1", 2020),),
    )
    with tarfile.open(fileobj=io.BytesIO(build._context(recipe, inputs).getvalue())) as tar:
        members = tar.getmembers()
    names = {"Dockerfile", "start", "build", "build/pip.conf", "build/ca-bundle.pem", "build/p.whl"}
    names.add("build/npmrc")
    assert {m.name for m in members} == names
    assert {(m.uid, m.uname, m.mtime) for m in members} == {(0, "", 0)}


def test_every_recipe_hides_the_hosts_settings_in_a_stage_that_is_deleted() -> None:
    assert recipes() == ["jupyterlab", "plain"]
    assert parts() == ["tensorboard", "vscode"]
    for folder in (RECIPES / "jupyterlab", *(PARTS / name for name in parts())):
        stages = (folder / "Dockerfile").read_text().split("\nFROM ")
        holders = [stage for stage in stages if "COPY build/" in stage]
        assert holders, f"{folder.name} installs something"
        assert stages[-1] not in holders, "the image itself never sees them"
        for stage in holders:
            label = stage.index(f"LABEL {build.STAGE_LABEL}=${{BUILD_ID}}")
            assert label < stage.index("COPY build/")


def test_steps_are_told_in_words_and_trifles_are_not() -> None:
    told: list[str] = []
    output = [
        {"stream": "Step 1/5 : FROM ${BASE}\n"},
        {"stream": "Step 2/5 : RUN apt-get update && apt-get install -y git\n"},
        {"stream": "Step 3/5 : ENV A=b\n"},
        {"stream": "Step 4/5 : RUN pip install -r requirements.txt\n"},
        {"stream": "Collecting jupyterlab\n"},
        {"stream": "Step 5/5 : LABEL a=b\n"},
    ]
    build._follow(iter(output), told.append)
    assert told == [
        "step 1/5: from ${BASE}",
        "step 2/5: installing system packages",
        "step 4/5: installing Python packages (this may take a while)",
        "collecting jupyterlab",
    ]


def test_a_failed_build_ends_with_its_last_lines() -> None:
    lines = [{"stream": f"line {n}\n"} for n in range(100)]
    with pytest.raises(BuildError) as failed:
        build._follow(iter([*lines, {"error": "exit code: 1"}]), lambda _: None)
    said = str(failed.value).splitlines()
    assert said[0] == "exit code: 1"
    assert said[-1] == "line 99"
    assert len(said) < 20


CLASSIC = """deb http://security.example/debian-security bookworm-security main
deb [arch=amd64] http://mirror.example/debian bookworm main
"""
DEB822 = """Types: deb
URIs: http://mirror.example/debian-security
Suites: bookworm-security

Types: deb deb-src
URIs: http://mirror.example/debian
Suites: bookworm bookworm-updates
"""


@pytest.mark.parametrize(
    ("name", "text", "mirror"),
    [
        ("sources.list", CLASSIC, "http://mirror.example/debian"),
        ("sources.list.d/debian.sources", DEB822, "http://mirror.example/debian"),
        ("sources.list", "deb http://archive.example/ubuntu noble main\n", DEFAULT_MIRROR),
        ("sources.list", "# nothing\n", DEFAULT_MIRROR),
    ],
)
def test_the_mirror_is_the_one_that_apt_uses(
    tmp_path: Path, name: str, text: str, mirror: str
) -> None:
    (tmp_path / "sources.list.d").mkdir()
    (tmp_path / name).write_text(text)
    assert apt_mirror(tmp_path) == mirror
