"""What of Perijove itself runs in sessions, as a wheel: the package `perijove` and the JupyterLab extension.

It is made from the files of the running installation, a checkout or an installed package alike, so an image
always fits the release that built it. The server side stays out: an image need not be built anew for it.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.metadata
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path

DISTRIBUTION = "perijove"
PACKAGES = ("labextension", "perijove")
"""Those that import nothing of the server side."""
EXTENSION = "share/jupyter/labextensions/perijove-lab"
_SERVER_CONFIG = "etc/jupyter/jupyter_server_config.d/perijove.json"
_ROOT = Path(__file__).resolve().parent.parent
_OLDEST = (1980, 1, 1, 0, 0, 0)
"""Archives carry times; the same files make the same wheel."""


def session_files(root: Path = _ROOT) -> dict[str, Path]:
    """The files by their place in the wheel; ``root`` is the folder that holds the packages."""
    found = {
        str(path.relative_to(root)): path
        for package in PACKAGES
        for path in _modules(root / package)
    }
    data = _data_of_checkout(root) if _is_checkout(root) else _installed_data()
    folder = f"{DISTRIBUTION}-{version()}.data/data"
    return found | {f"{folder}/{name}": path for name, path in data.items() if path.is_file()}


def has_extension(files: Mapping[str, Path]) -> bool:
    """Whether the JupyterLab extension, which a checkout has to build first, is among ``files``."""
    return any(name.endswith(f"{EXTENSION}/package.json") for name in files)


def write_session_wheel(folder: Path) -> Path:
    """Write the wheel into ``folder``; the same files make the same bytes."""
    info = f"{DISTRIBUTION}-{version()}.dist-info"
    content = {name: path.read_bytes() for name, path in session_files().items()}
    content[f"{info}/METADATA"] = _metadata().encode()
    content[f"{info}/WHEEL"] = (
        b"Wheel-Version: 1.0\nGenerator: perijove\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    )
    record = "".join(_record(name, data) for name, data in sorted(content.items()))
    content[f"{info}/RECORD"] = f"{record}{info}/RECORD,,\n".encode()
    path = folder / f"{DISTRIBUTION}-{version()}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in sorted(content.items()):
            member = zipfile.ZipInfo(name, _OLDEST)
            member.external_attr = 0o100644 << 16
            member.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(member, data)
    return path


def version() -> str:
    """This release's; ``0`` for a checkout that was never installed."""
    try:
        return importlib.metadata.version(DISTRIBUTION)
    except importlib.metadata.PackageNotFoundError:
        return "0"


def _metadata() -> str:
    # What it needs is in the recipe's requirements; those of the server side mean nothing in an image.
    summary = "Perijove, as far as it runs in sessions"
    return (
        f"Metadata-Version: 2.1\nName: {DISTRIBUTION}\nVersion: {version()}\nSummary: {summary}\n"
    )


def _record(name: str, data: bytes) -> str:
    digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
    return f"{name},sha256={digest},{len(data)}\n"


def _modules(package: Path) -> Iterator[Path]:
    """Python files of a package and its subpackages, not of whatever else lies there."""
    yield from sorted(package.glob("*.py"))
    yield from package.glob("py.typed")
    for each in sorted(package.iterdir()):
        if (each / "__init__.py").is_file():
            yield from _modules(each)


def _is_checkout(root: Path) -> bool:
    return (root / "setup.cfg").is_file() and (root / "labextension/jupyter-config").is_dir()


def _data_of_checkout(root: Path) -> dict[str, Path]:
    """The same places as in setup.cfg's ``data_files``."""
    extension, built = root / "labextension", root / "labextension/prebuilt"
    files = {_SERVER_CONFIG: extension / "jupyter-config/perijove.json"}
    if not (built / "package.json").is_file():
        return files
    files[f"{EXTENSION}/install.json"] = extension / "install.json"
    files |= {f"{EXTENSION}/{path.name}": path for path in built.glob("*.json")}
    return files | {f"{EXTENSION}/static/{path.name}": path for path in built.glob("static/*")}


def _installed_data() -> dict[str, Path]:
    """Data files of the installed distribution, by their place beneath the prefix."""
    try:
        recorded = importlib.metadata.files(DISTRIBUTION) or []
    except importlib.metadata.PackageNotFoundError:
        return {}
    found = {}
    for path in recorded:
        text = path.as_posix()
        for place in (f"{EXTENSION}/", _SERVER_CONFIG):
            at = text.find(place)
            if at >= 0:
                found[text[at:]] = Path(str(path.locate()))
    return found
