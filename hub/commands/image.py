"""``perijove image``: build and list the images of sessions on this machine's Docker engine."""

from __future__ import annotations

import configparser
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from traitlets import List, Unicode

from hub.commands.base import Command, CommandError, Group, UsageError, say, table

if TYPE_CHECKING:
    import docker

HOST_CA_BUNDLES = ("/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt")
HOST_PIP_CONFS = ("/etc/pip.conf", "~/.pip/pip.conf", "~/.config/pip/pip.conf")
"""In pip's own order: later ones win."""
PIP_SETTINGS = ("index-url", "extra-index-url", "trusted-host", "timeout", "retries", "proxy")
"""Those that say where packages come from; others, such as local folders, mean nothing in a build."""
NPM_SETTINGS = ("registry", "proxy", "https-proxy", "noproxy", "strict-ssl")
WITH_WHEELS = ("jupyterlab",)
"""Recipes that install Perijove itself, and can have parts."""


class ImageBuild(Command):
    """Build an image from a recipe."""

    name = "perijove image build"
    description = """Build an image for sessions from a recipe (default: jupyterlab).

    An image is tagged by the hash of its recipe, so it is built once. Without --base the base is
    debian:bookworm-slim from the registry; where that cannot be pulled, a minimal Debian made with
    debootstrap (as root)."""
    examples = """
    perijove image build
    perijove image build --base nvidia/cuda:12.6.2-runtime-ubuntu24.04
    perijove image build --with vscode --with tensorboard
    """
    arguments = ("RECIPE?",)
    base = Unicode("", help="Image to build on; any Debian or Ubuntu.").tag(config=True)
    ca_bundle = Unicode(
        help="""CA certificates that the build trusts (they do not stay in the image). Default: the
        file that PIP_CERT or SSL_CERT_FILE names, else this machine's own bundle.""",
    ).tag(config=True)
    pip_conf = Unicode(
        help="""pip's settings during the build (they do not stay in the image). Default: where this
        machine's own settings take packages from.""",
    ).tag(config=True)
    npmrc = Unicode(
        help="""npm's settings during the build (they do not stay in the image). Default: where this
        machine's own settings take packages from.""",
    ).tag(config=True)
    network = Unicode(
        "", help="Network mode of the build, e.g. host where containers have no way out."
    ).tag(config=True)
    wheels = List(
        Unicode(),
        help="""Wheels to install besides the recipe's packages. Default: the part of
        Perijove that runs in sessions.""",
    ).tag(config=True)
    parts = List(
        Unicode(),
        help="""What the image has besides: tensorboard, vscode. It is an image of its own, such as
        perijove/jupyterlab-vscode, on that of the recipe.""",
    ).tag(config=True)
    aliases: dict[Any, Any] = {
        **Command.aliases,
        "base": "ImageBuild.base",
        "ca-bundle": "ImageBuild.ca_bundle",
        "pip-conf": "ImageBuild.pip_conf",
        "network": "ImageBuild.network",
        "npmrc": "ImageBuild.npmrc",
        "with": "ImageBuild.parts",
        "wheel": "ImageBuild.wheels",
    }

    def _ca_bundle_default(self) -> str:
        return _first_file("PIP_CERT", "SSL_CERT_FILE", places=HOST_CA_BUNDLES)

    def act(self, *arguments: str) -> None:
        """Build it, one progress line per step."""
        from kernels.bootstrap import BootstrapError
        from kernels.build import PARTS, RECIPES, BuildError, BuildInputs, build_image, recipes

        name = arguments[0] if arguments else "jupyterlab"
        if name not in recipes():
            raise UsageError(f"there is no recipe {name!r}: choose one of {', '.join(recipes())}")
        chosen = [PARTS / part for part in self._parts(name)]
        client = _docker_client()
        with tempfile.TemporaryDirectory(prefix="perijove-image-") as temporary:
            try:
                inputs = BuildInputs(
                    base=self.base or _default_base(client),
                    wheels=tuple(self._wheels(Path(temporary))) if name in WITH_WHEELS else (),
                    ca_bundle=_existing("ca_bundle", self.ca_bundle),
                    pip_conf=_existing("pip_conf", self.pip_conf) or _pip_conf(Path(temporary)),
                    network=self.network or None,
                    npmrc=_existing("npmrc", self.npmrc) or _npmrc(Path(temporary)),
                )
                tag = build_image(client, RECIPES / name, inputs, say, chosen)
            except (BuildError, BootstrapError) as error:
                raise CommandError(str(error)) from error
        say(f"The image is {tag}")

    def _parts(self, recipe: str) -> set[str]:
        """The parts asked for. Raises ``UsageError`` for one that there is not, or not for the recipe."""
        from kernels.build import parts

        for part in self.parts:
            if part not in parts():
                raise UsageError(f"with: there is no {part!r}: choose among {', '.join(parts())}")
            if recipe not in WITH_WHEELS:
                raise UsageError(f"with: {part} needs the recipe {WITH_WHEELS[0]}, not {recipe}")
        return set(self.parts)

    def _wheels(self, folder: Path) -> list[Path]:
        """The given wheels, or one of what runs in sessions."""
        from kernels.session_wheel import has_extension, session_files, write_session_wheel

        if self.wheels:
            found = [_existing("wheels", each) for each in self.wheels]
            return [each for each in found if each is not None]
        if not has_extension(session_files()):
            say(
                "the JupyterLab extension is not built, so the image gets none: scripts/up builds it"
            )
        return [write_session_wheel(folder)]


class ImageList(Command):
    """List the images for sessions."""

    name = "perijove image list"
    description = "List the images that this machine's Docker engine has for sessions."

    def act(self, *arguments: str) -> None:
        """One line per tag, then what cannot be understood of the labels, and what is outdated."""
        from kernels.build import outdated
        from spawner.sessions.apps import label_warnings

        client = _docker_client()
        images = client.images.list(filters={"label": "ai.perijove.image"})
        rows = [
            (tag, image.short_id.removeprefix("sha256:"), f"{image.attrs['Size'] / 1e6:.0f} MB")
            for image in images
            for tag in image.tags
        ]
        say(table(("IMAGE", "ID", "SIZE"), sorted(rows)))
        for image in images:
            for sentence in label_warnings(image.labels):
                say(f"warning: {', '.join(image.tags)}: {sentence}")
        for name, sentence in sorted(outdated(client).items()):
            say(f"warning: {name} {sentence}")


class ImageGroup(Group):
    """Images of sessions."""

    name = "perijove image"
    description = "Build and list the images of sessions on this machine's Docker engine."
    subcommands: dict[str, Any] = {
        "build": (ImageBuild, "Build an image from a recipe."),
        "list": (ImageList, "List the images for sessions."),
    }


def _docker_client() -> docker.DockerClient:
    """A client of the engine that the environment names; raises ``CommandError`` if none answers."""
    import docker

    try:
        client = docker.from_env(timeout=600)
        client.ping()
    except (docker.errors.DockerException, OSError) as error:
        raise CommandError(f"no Docker engine answers: {error}") from error
    return client


def _default_base(client: docker.DockerClient) -> str:
    """The registry's Debian, or one of our own making where the registry cannot be reached."""
    import docker.errors

    from kernels.bootstrap import bootstrap
    from kernels.build import DEFAULT_BASE

    try:
        client.images.get(DEFAULT_BASE)
    except docker.errors.ImageNotFound:
        say(f"pulling {DEFAULT_BASE}")
        try:
            client.images.pull(DEFAULT_BASE)
        except docker.errors.APIError as error:
            say(f"{DEFAULT_BASE} cannot be pulled ({error.explanation}); making a Debian base")
            return bootstrap(client, say)
    return DEFAULT_BASE


def _first_file(*variables: str, places: tuple[str, ...]) -> str:
    """The first file of those that environment ``variables`` name and ``places``; empty if none is there."""
    candidates = [*(os.environ.get(name, "") for name in variables), *places]
    paths = [Path(each).expanduser() for each in candidates if each]
    return next((str(path) for path in paths if path.is_file()), "")


def _pip_conf(folder: Path) -> Path:
    """A file in ``folder`` with this machine's package sources, from pip's files and environment."""
    merged = configparser.RawConfigParser()
    merged.read([Path(each).expanduser() for each in HOST_PIP_CONFS])
    merged.read(os.environ.get("PIP_CONFIG_FILE", ""))
    found = {
        name: merged.get(section, name)
        for section in ("global", "install")
        for name in PIP_SETTINGS
        if merged.has_option(section, name)
    }
    for name in PIP_SETTINGS:
        given = os.environ.get("PIP_" + name.upper().replace("-", "_"))
        if given:
            found[name] = given
    ours = configparser.RawConfigParser()
    ours["global"] = found
    path = folder / "pip.conf"
    path.touch(mode=0o600)  # index URLs may carry passwords
    with path.open("w") as file:
        ours.write(file)
    return path


def _npmrc(folder: Path) -> Path:
    """A file in ``folder`` with where this machine's npm takes packages from."""
    mine = Path(os.environ.get("NPM_CONFIG_USERCONFIG") or "~/.npmrc").expanduser()
    lines = mine.read_text().splitlines() if mine.is_file() else []
    kept = [
        line
        for line in lines
        if (key := line.partition("=")[0].strip()) in NPM_SETTINGS or key.startswith(("//", "@"))
    ]
    for name in NPM_SETTINGS:
        if given := os.environ.get("NPM_CONFIG_" + name.upper().replace("-", "_")):
            kept.append(f"{name}={given}")
    path = folder / "npmrc"
    path.touch(mode=0o600)  # there may be tokens in it
    path.write_text("".join(f"{line}\n" for line in kept))
    return path


def _existing(trait: str, value: str) -> Path | None:
    """``value`` as a path; None if empty; raises ``UsageError`` naming the trait if it is not there."""
    if not value:
        return None
    path = Path(value).expanduser()
    if not path.is_file():
        raise UsageError(f"{trait}: there is no file {path}")
    return path
