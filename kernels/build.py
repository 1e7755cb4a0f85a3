"""Building images from recipes: a folder with a ``Dockerfile``, on a base image, through a Docker engine.

What only some images have is a *part*: a recipe that is built on the image of another. An image is tagged with
the hash of everything that went into it, so the same recipe is built once. The host's settings of pip and npm
and its CA bundle are used during the build only: recipes copy them in a stage with the label
``ai.perijove.build=${BUILD_ID}``, which is no part of the image and deleted after the build.
"""

from __future__ import annotations

import hashlib
import io
import re
import tarfile
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import docker
from docker.errors import APIError, DockerException, ImageNotFound

from kernels.session_wheel import session_files

RECIPES = Path(__file__).parent
PARTS = RECIPES / "parts"
INSIDE = "inside"
"""Folder beside the recipes with what all of them compile; part of every context."""
REPOSITORY = "perijove"
DEFAULT_BASE = "debian:bookworm-slim"
RECIPE_LABEL = "ai.perijove.recipe"
SOURCES_LABEL = "ai.perijove.sources"
STAGE_LABEL = "ai.perijove.build"
LABEL = "ai.perijove.label"
_IGNORED = {"__pycache__", ".git"}
_STEP = re.compile(r"^Step (\d+)/(\d+) : (\w+) ?(.*)")
_KEPT_LINES = 15
_ABANDONED = "3h"
"""Age of a stage whose build cannot be running any more."""

Progress = Callable[[str], None]


class BuildError(Exception):
    """The image could not be built; a sentence with the last lines of the build."""


@dataclass(frozen=True, slots=True)
class BuildInputs:
    """What goes into an image besides its recipe.

    ``wheels`` are installed without their dependencies; ``ca_bundle``, ``pip_conf`` and ``npmrc`` serve the
    build only; ``network`` is the build's network mode (``host`` where the bridge has no way out).
    """

    base: str = DEFAULT_BASE
    wheels: tuple[Path, ...] = ()
    ca_bundle: Path | None = None
    pip_conf: Path | None = None
    npmrc: Path | None = None
    network: str | None = None


def recipes() -> list[str]:
    """Names of the recipes that come with Perijove."""
    return sorted(path.parent.name for path in RECIPES.glob("*/Dockerfile"))


def parts() -> list[str]:
    """Names of what an image can have besides."""
    return sorted(path.parent.name for path in PARTS.glob("*/Dockerfile"))


def recipe_hash(recipe: Path, inputs: BuildInputs) -> str:
    """12 hexadecimal digits over the recipe's files, the base's name and the wheels' content."""
    digest = hashlib.sha256(f"base {inputs.base}\n".encode())
    for path in [*_files(recipe), *_shared(recipe), *sorted(inputs.wheels)]:
        digest.update(f"{path.name} {path.stat().st_mode & 0o111:o}\n".encode())
        digest.update(hashlib.sha256(_stable_content(path)).digest())
    return digest.hexdigest()[:12]


def sources_hash(*made_of: Path) -> str:
    """12 hexadecimal digits over what this release puts into the image, whatever base it is built on.

    These are the files of the recipe and its parts, and those of Perijove that run in sessions.
    """
    digest = hashlib.sha256()
    for folder in made_of:
        digest.update(recipe_hash(folder, BuildInputs(base="")).encode())
    for name, path in sorted(session_files().items()):
        digest.update(f"{name}\n".encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:12]


def outdated(client: docker.DockerClient) -> dict[str, str]:
    """Offered images of ours that this release would make of other files, and what is to be said of each."""
    found: dict[str, str] = {}
    for image in client.images.list(filters={"label": SOURCES_LABEL}):
        for tag in image.tags:
            name, _, version = tag.removeprefix(f"{REPOSITORY}/").partition(":")
            recipe, *chosen = name.split("-")
            ours = recipe in recipes() and set(chosen) <= set(parts())
            if not ours or version != "latest":
                continue
            made_of = (RECIPES / recipe, *(PARTS / each for each in chosen))
            if image.labels[SOURCES_LABEL] != sources_hash(*made_of):
                options = "".join(f" --with {each}" for each in chosen)
                found[tag] = (
                    "holds another recipe, extension or package than this release;"
                    f" `perijove image build {recipe}{options}` makes a new one"
                )
    return found


def image_tag(inputs: BuildInputs, *made_of: Path) -> str:
    """``perijove/<recipe>[-<part>...]:<hash>``."""
    name = "-".join(folder.name for folder in made_of)
    return f"{REPOSITORY}/{name}:{recipe_hash(made_of[-1], inputs)}"


def build_image(
    client: docker.DockerClient,
    recipe: Path,
    inputs: BuildInputs,
    progress: Progress,
    chosen: Sequence[Path] = (),
) -> str:
    """Build ``recipe``, and each of the ``chosen`` parts on what is below, unless the image is there.

    Returns the last one's tag; only that one is offered. Raises ``BuildError``.
    """
    made_of: tuple[Path, ...] = (recipe,)
    tag = _ensure(client, made_of, inputs, progress)
    for part in sorted(chosen):
        made_of = (*made_of, part)
        tag = _ensure(client, made_of, replace(inputs, base=tag, wheels=()), progress)
    client.images.get(tag).tag(f"{tag.rpartition(':')[0]}:latest")
    return tag


def _ensure(
    client: docker.DockerClient, made_of: tuple[Path, ...], inputs: BuildInputs, progress: Progress
) -> str:
    """The tag of the image of the last of ``made_of`` on ``inputs.base``."""
    tag = image_tag(inputs, *made_of)
    try:
        client.images.get(tag)
        progress(f"{tag} is there already")
    except ImageNotFound:
        progress(f"building {tag} on {inputs.base}")
        _run_build(client, made_of, inputs, tag, progress)
    except DockerException as error:
        raise BuildError(f"the Docker engine cannot be used: {error}") from error
    return tag


def _run_build(
    client: docker.DockerClient,
    made_of: tuple[Path, ...],
    inputs: BuildInputs,
    tag: str,
    progress: Progress,
) -> None:
    options: dict[str, Any] = {"network_mode": inputs.network} if inputs.network else {}
    build_id = uuid.uuid4().hex
    arguments = {"BASE": inputs.base, "BUILD_ID": build_id}
    if len(made_of) > 1:  # a part adds its name to that of what is below
        arguments["LABEL"] = client.images.get(inputs.base).labels.get(LABEL, "")
    try:
        lines = client.api.build(
            fileobj=_context(made_of[-1], inputs),
            custom_context=True,
            tag=tag,
            rm=True,
            forcerm=True,
            decode=True,
            buildargs=arguments,
            labels={
                RECIPE_LABEL: tag.rpartition(":")[2],
                SOURCES_LABEL: sources_hash(*made_of),
            },
            **options,
        )
        _follow(lines, progress)
    except APIError as error:
        raise BuildError(f"the Docker engine refused the build: {error.explanation}") from error
    except DockerException as error:
        raise BuildError(f"the Docker engine cannot be used: {error}") from error
    finally:
        _forget_stage(client, build_id, progress)


def _forget_stage(client: docker.DockerClient, build_id: str, progress: Progress) -> None:
    """Delete the stage that saw the host's settings, and those of builds that were killed long ago."""
    label = f"{STAGE_LABEL}={build_id}"
    try:
        client.images.prune(filters={"dangling": True, "label": label})
        client.images.prune(filters={"dangling": True, "label": STAGE_LABEL, "until": _ABANDONED})
    except (DockerException, OSError) as error:
        progress(f"the build's stage {label} could not be deleted: {error}")


def _follow(lines: Iterator[dict[str, Any]], progress: Progress) -> None:
    """Turn the engine's build output into progress sentences; raises ``BuildError`` where it fails."""
    tail: list[str] = []
    for line in lines:
        text = str(line.get("stream", line.get("status", ""))).strip()
        if text:
            tail = [*tail, text][-_KEPT_LINES:]
        if step := _STEP.match(text):
            number, total, instruction, rest = step.groups()
            if words := _in_words(instruction, rest):
                progress(f"step {number}/{total}: {words}")
        elif text.startswith("Collecting ") and len(text) < 120:
            progress(text.lower())
        if "error" in line:
            raise BuildError(f"{str(line['error']).strip()}\n" + "\n".join(tail))


def _in_words(instruction: str, rest: str) -> str:
    """What a step does; empty for those that take no time."""
    if instruction in ("FROM", "COPY"):
        return f"{instruction.lower()} {rest}"[:80]
    if instruction == "RUN" and "apt-get install" in rest:
        return "installing system packages"
    if instruction == "RUN" and "pip install" in rest:
        return "installing Python packages (this may take a while)"
    return f"run {rest}"[:80] if instruction == "RUN" else ""


def _context(recipe: Path, inputs: BuildInputs) -> io.BytesIO:
    """The build context as a tar archive; what serves the build only lies in ``build/``."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for path in _files(recipe):
            tar.add(path, arcname=str(path.relative_to(recipe)), filter=_anonymous)
        for path in _shared(recipe):
            tar.add(path, arcname=f"{INSIDE}/{path.name}", filter=_anonymous)
        extras = {path.name: path for path in inputs.wheels}
        if inputs.ca_bundle is not None:
            extras["ca-bundle.pem"] = inputs.ca_bundle
        if inputs.pip_conf is not None:
            extras["pip.conf"] = inputs.pip_conf
        if inputs.npmrc is not None:
            extras["npmrc"] = inputs.npmrc
        folder = tarfile.TarInfo("build")
        folder.type, folder.mode = tarfile.DIRTYPE, 0o755
        tar.addfile(folder)
        for name, path in extras.items():
            tar.add(path, arcname=f"build/{name}", filter=_anonymous)
    archive.seek(0)
    return archive


def _files(recipe: Path) -> list[Path]:
    found = (path for path in recipe.rglob("*") if path.is_file())
    return sorted(path for path in found if not _IGNORED & set(path.parts))


def _shared(recipe: Path) -> list[Path]:
    """What lies beside all recipes."""
    folder = recipe.parent / INSIDE
    return _files(folder) if folder.is_dir() else []


def _anonymous(member: tarfile.TarInfo) -> tarfile.TarInfo:
    """Owner, time and exact mode do not matter; who may execute does."""
    member.uid = member.gid = member.mtime = 0
    member.uname = member.gname = ""
    member.mode = 0o755 if member.mode & 0o111 else 0o644
    return member


def _stable_content(path: Path) -> bytes:
    """A file's bytes; of a wheel its members' names and checksums, since archives carry times."""
    if path.suffix != ".whl":
        return path.read_bytes()
    import zipfile

    with zipfile.ZipFile(path) as wheel:
        return repr(sorted((m.filename, m.CRC) for m in wheel.infolist())).encode()
