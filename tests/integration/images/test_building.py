"""Images are built once, say what they are, and keep nothing of what served the build; on a real engine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import docker
import pytest
from docker.errors import ImageNotFound

from kernels import build
from kernels.build import (
    LABEL,
    SOURCES_LABEL,
    STAGE_LABEL,
    BuildError,
    BuildInputs,
    build_image,
    outdated,
    sources_hash,
)
from tests.integration.docker_engine import ensure_test_image, running_engine

pytestmark = [
    pytest.mark.integration,
    pytest.mark.docker,
    pytest.mark.timeout(1200),  # the first test may have to build its image
]
SECRET = "index-url = https://me:wx7-qj4-zk9@packages.example/simple"
DOCKERFILE = """ARG BASE
FROM ${BASE} AS system
USER 0
FROM system AS packages
ARG BUILD_ID=none
LABEL ai.perijove.build=${BUILD_ID} ai.perijove.test=stage
COPY build/ /tmp/build/
RUN %s
FROM system
COPY --from=packages /made /made
COPY note /note
LABEL ai.perijove.image="tested"
"""


@pytest.fixture(scope="module")
def base() -> Iterator[str]:
    with running_engine():
        yield ensure_test_image()


@pytest.fixture
def client(base: str) -> Iterator[docker.DockerClient]:
    made = docker.from_env(timeout=120)
    yield made
    for image in made.images.list(name="perijove/tested*"):
        for tag in image.tags:
            made.images.remove(tag, force=True)
    made.close()


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    folder = tmp_path / "tested-recipe"
    folder.mkdir()
    (folder / "note").write_text("one")
    (folder / "Dockerfile").write_text(DOCKERFILE % "wc -c < /tmp/build/pip.conf > /made")
    return folder


@pytest.fixture
def inputs(base: str, tmp_path: Path) -> BuildInputs:
    (tmp_path / "pip.conf").write_text(SECRET)
    return BuildInputs(base=base, pip_conf=tmp_path / "pip.conf")


def stages(client: docker.DockerClient) -> list[str]:
    """Images of all kinds that still saw the settings of these tests' builds."""
    found = client.api.images(all=True, filters={"label": "ai.perijove.test=stage"})
    return [str(image["Id"]) for image in found]


def test_an_image_is_built_once_and_keeps_no_secret(
    client: docker.DockerClient, recipe: Path, inputs: BuildInputs
) -> None:
    told: list[str] = []
    tag = build_image(client, recipe, inputs, told.append)
    image = client.images.get(tag)
    assert f"{tag.partition(':')[0]}:latest" in image.tags
    assert image.labels["ai.perijove.image"] == "tested"
    assert image.labels["ai.perijove.recipe"] == tag.rpartition(":")[2]
    assert image.labels[SOURCES_LABEL] == sources_hash(recipe)
    assert STAGE_LABEL not in image.labels
    made = client.containers.run(image, ["cat", "/made"], entrypoint="", remove=True)
    assert int(made) == len(SECRET), "the build saw the settings"
    assert stages(client) == [], "no stage that saw them is left"
    archive = b"".join(image.save())
    assert b"wx7-qj4-zk9" not in archive
    assert any(sentence.startswith("step 2/") for sentence in told)

    told.clear()
    assert build_image(client, recipe, inputs, told.append) == tag
    assert told == [f"{tag} is there already"]

    (recipe / "note").write_text("two")
    assert image.labels[SOURCES_LABEL] != sources_hash(recipe)
    assert build_image(client, recipe, inputs, told.append) != tag


PART = """ARG BASE
FROM ${BASE}
COPY note /more
ARG LABEL
LABEL ai.perijove.label="${LABEL}, more"
"""


def test_parts_lie_on_the_image_of_the_recipe_and_are_told_outdated(
    client: docker.DockerClient, base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, part = tmp_path / "tested", tmp_path / "parts" / "more"
    for folder, text in (
        (recipe, f"ARG BASE\nFROM ${{BASE}}\nLABEL {LABEL}=Tested\n"),
        (part, PART),
    ):
        folder.mkdir(parents=True)
        (folder / "note").write_text("one")
        (folder / "Dockerfile").write_text(text)
    told: list[str] = []
    tag = build_image(client, recipe, BuildInputs(base=base), told.append, [part])
    assert client.images.get(tag).tags == [tag, "perijove/tested-more:latest"]
    assert client.images.get(tag).labels[LABEL] == "Tested, more"
    with pytest.raises(ImageNotFound):
        client.images.get("perijove/tested:latest")
    below = build_image(client, recipe, BuildInputs(base=base), told.append)
    assert told[-1] == f"{below} is there already"
    layers = client.images.get(tag).attrs["RootFS"]["Layers"]
    assert layers[:-1] == client.images.get(below).attrs["RootFS"]["Layers"]

    monkeypatch.setattr(build, "RECIPES", tmp_path)
    monkeypatch.setattr(build, "PARTS", tmp_path / "parts")
    assert outdated(client) == {}
    (part / "note").write_text("two")
    told_now = outdated(client)
    assert set(told_now) == {"perijove/tested-more:latest"}
    command = "`perijove image build tested --with more` makes a new one"
    assert command in told_now["perijove/tested-more:latest"]
    (recipe / "note").write_text("two")
    assert set(outdated(client)) == {"perijove/tested-more:latest", "perijove/tested:latest"}


def test_a_build_that_fails_says_why_and_leaves_nothing(
    client: docker.DockerClient, recipe: Path, inputs: BuildInputs
) -> None:
    text = DOCKERFILE % "echo no space for wheels && exit 3"
    (recipe / "Dockerfile").write_text(text)
    with pytest.raises(BuildError, match=r"(?s)code: 3.*no space for wheels"):
        build_image(client, recipe, inputs, lambda _: None)
    assert stages(client) == []
    with pytest.raises(ImageNotFound):
        client.images.get("perijove/tested-recipe:latest")
