"""The rules of the house, as functions from a source tree to a list of findings.

Every rule takes the root of a tree, so that its own test can show on a small tree that it can fail.
A finding is a line ``path[:line]: what is wrong``.
"""

from __future__ import annotations

import ast
import configparser
import gc
import importlib
import inspect
import os
import re
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOMS = ("hub", "spawner", "vfolder", "authenticator", "store", "kernels", "perijove",
         "labextension")  # fmt: skip
SKIPPED = {".git", ".venv", "node_modules", "build", "dist", "lib", "artifacts", "__pycache__"}
MIGRATIONS = Path("store/migrations/versions")

BELOW = {
    "hub": {"spawner", "vfolder", "authenticator", "store", "kernels"},
    "spawner": {"vfolder", "authenticator", "store"},
    "vfolder": {"authenticator", "store"},
    "authenticator": {"store"},
    "store": set(),
    "labextension": {"perijove"},
    "kernels": set(),
    "perijove": set(),
}
STORE_ALSO = {"sqlalchemy", "alembic", "aiosqlite", "asyncpg"}
AWAY = ("spawner.spawner", "spawner.client", "spawner.options", "authenticator.authenticator",
        "spawner.agent", "spawner.accelerators", "spawner.monitors")  # fmt: skip
"""Modules that run in the hub or on a node, where no database is."""

PURE = Path("spawner/scheduler")
PURE_MODULES = {
    "__future__", "abc", "bisect", "collections", "dataclasses", "datetime", "enum", "fractions",
    "functools", "heapq", "itertools", "math", "operator", "re", "typing",
}  # fmt: skip
PURE_BANNED_CALLS = {"open", "input", "print", "exec", "eval", "hash", "id", "__import__"}
PURE_BANNED_METHODS = {"now", "utcnow", "today", "getenv", "urandom"}
"""``hash`` and ``id`` differ from run to run; a plan must not."""

FORBIDDEN_NAMES = {"utils", "util", "helpers", "misc", "common", "base_impl", "manager2"}
LOOSE_ENDS = re.compile(r"\b(" + "|".join(("TO" + "DO", "FIX" + "ME", "XX" + "X")) + r")\b")
TEXTS = {".py", ".ts", ".tsx", ".js", ".css", ".html", ".md", ".sh", ".cfg", ".toml", ".mako"}

BOUNDARIES = {
    "perijove/execution.py",
    "spawner/accelerators/registry.py",
    "spawner/agent/runner.py",
    "spawner/monitors/registry.py",
    "spawner/resuming.py",
    "spawner/sessions/control.py",
    "spawner/sessions/scheduling.py",
    "store/database.py",
}
"""Files with a place where any error is caught and handed on or logged: ends of tasks and processes.

``perijove/execution.py``: a kernel may fail in any way; who asked waits for the answer, or the end of the run.
``spawner/accelerators/registry.py``: a plug-in is foreign code; the others must go on without it.
``spawner/agent/runner.py``: engines and plug-ins of others may raise anything; the start has failed then.
``spawner/monitors/registry.py``: a monitor is foreign code; the service must go on whatever it does.
``spawner/resuming.py``: the hub's proxy client may raise anything; the hub's next check adds the route.
``spawner/sessions/scheduling.py``: plug-ins may raise anything; the pass goes on without their group.
``spawner/sessions/control.py``: the leader's loops are logged and started again whatever ends them.
``store/database.py``: whatever a caller's work raises goes to that caller, not to the committing task.
"""


def sources(root: Path, *suffixes: str) -> list[Path]:
    """Files of the tree with these suffixes, as paths relative to ``root``; nothing generated."""
    found: list[Path] = []
    for folder, below, files in os.walk(root):
        below[:] = [n for n in below if n not in SKIPPED and not n.endswith(".egg-info")]
        found += [Path(folder, name) for name in files if name.endswith(suffixes)]
    return [path.relative_to(root) for path in sorted(found)]


def tree_of(root: Path, path: Path) -> ast.Module:
    """The syntax tree of a source file."""
    return _parsed((root / path).read_text("utf-8"), str(path))


@cache
def _parsed(text: str, path: str) -> ast.Module:
    gc.disable()  # trees are kept: looking through them again and again takes five times the parsing
    try:
        return ast.parse(text, path)
    finally:
        gc.enable()


@cache
def nodes(tree: ast.Module) -> list[ast.AST]:
    """All nodes of the tree: several rules look at each of them."""
    return list(ast.walk(tree))


@cache
def imports(tree: ast.Module) -> list[tuple[int, str]]:
    """Every module a file imports anywhere, but for type checking only: ``(line, dotted name)``."""
    typing_only = {
        id(node)
        for block in nodes(tree)
        if isinstance(block, ast.If) and "TYPE_CHECKING" in ast.dump(block.test)
        for statement in block.body
        for node in ast.walk(statement)
    }
    found: list[tuple[int, str]] = []
    for node in nodes(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            found += [(node.lineno, f"{base}.{alias.name}") for alias in node.names]
    return found


def import_floors(root: Path) -> list[str]:
    """No room imports one above it; the scheduler imports the standard library only."""
    findings: list[str] = []
    for path in sources(root, ".py"):
        room = path.parts[0]
        if room not in BELOW:
            continue
        for line, name in imports(tree_of(root, path)):
            top = name.partition(".")[0]
            where = f"{path}:{line}"
            if not top:
                findings.append(f"{where}: relative import of {name}")
            elif top in BELOW and top != room and top not in BELOW[room]:
                findings.append(f"{where}: {room} imports {name}")
            elif PURE in path.parents and not (
                name.startswith("spawner.scheduler.") or top in PURE_MODULES
            ):
                findings.append(f"{where}: the scheduler imports {name}")
            elif room == "store" and not (
                top == "store" or top in STORE_ALSO or top in sys.stdlib_module_names
            ):
                findings.append(f"{where}: store imports {name}")
    return findings


def no_database_away(root: Path) -> list[str]:
    """What runs in the hub or on a node reaches no ``store`` and no tables, over any chain of imports."""
    modules: dict[str, Path] = {}
    for path in sources(root, ".py"):
        if path.parts[0] in BELOW:
            parts = path.with_suffix("").parts
            modules[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    findings: list[str] = []
    for start in sorted(modules):
        if not any(start == away or start.startswith(away + ".") for away in AWAY):
            continue
        chain = _chain_to_database(root, modules, start)
        if chain:
            findings.append(f"{modules[start]}: imports the database over {' > '.join(chain)}")
    return findings


def _chain_to_database(root: Path, modules: dict[str, Path], start: str) -> list[str]:
    came_from: dict[str, str | None] = {start: None}
    queue = [start]
    for module in queue:
        if module.partition(".")[0] == "store" or module.endswith(".tables"):
            chain = [module]
            while (before := came_from[chain[-1]]) is not None:
                chain.append(before)
            return chain[::-1]
        for _, name in imports(tree_of(root, modules[module])):
            parts = name.split(".")
            for end in range(1, len(parts) + 1):
                target = ".".join(parts[:end])
                if target in modules and target not in came_from:
                    came_from[target] = module
                    queue.append(target)
    return []


def sizes(root: Path, *, file: int = 600, function: int = 60, klass: int = 400) -> list[str]:
    """No file, function or class is too long to be read in one sitting."""
    findings: list[str] = []
    for path in sources(root, ".py", ".ts", ".tsx", ".js"):
        if MIGRATIONS in path.parents:
            continue
        lines = len((root / path).read_text("utf-8").splitlines())
        if lines > file:
            findings.append(f"{path}: {lines} lines, at most {file}")
        if path.suffix != ".py":
            continue
        for node in nodes(tree_of(root, path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                most = klass if isinstance(node, ast.ClassDef) else function
                long = (node.end_lineno or node.lineno) - node.lineno + 1
                if long > most:
                    findings.append(
                        f"{path}:{node.lineno}: {node.name} has {long} lines, at most {most}"
                    )
    return findings


def pure_scheduler(root: Path) -> list[str]:
    """No clock, no I/O, no randomness, no order that differs from run to run in the scheduler."""
    findings: list[str] = []
    for path in sources(root, ".py"):
        if PURE not in path.parents:
            continue
        for node in nodes(tree_of(root, path)):
            if isinstance(node, ast.Name) and node.id in PURE_BANNED_CALLS:
                findings.append(f"{path}:{node.lineno}: uses {node.id}")
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                if node.func.attr in PURE_BANNED_METHODS:
                    findings.append(f"{path}:{node.lineno}: calls .{node.func.attr}()")
            elif isinstance(node, ast.AsyncFunctionDef | ast.Await):
                findings.append(f"{path}:{node.lineno}: awaits")
        text = (root / path).read_text("utf-8")
        for line, content in enumerate(text.splitlines(), 1):
            if re.search(
                r"\b(random|socket|subprocess|asyncio|pathlib|time\.time|monotonic)\b", content
            ):
                findings.append(f"{path}:{line}: {content.strip()}")
    return findings


def loose_ignores(root: Path) -> list[str]:
    """Checks are switched off by their code only."""
    bad = re.compile(r"#\s*type:\s*ignore(?!\[[a-z-]+)|#\s*noqa(?!: [A-Z]+\d+)|#\s*ruff:\s*noqa")
    return [
        f"{path}:{number}: {line.strip()}"
        for path in sources(root, ".py")
        for number, line in enumerate((root / path).read_text("utf-8").splitlines(), 1)
        if bad.search(line)
    ]


def blind_excepts(root: Path, boundaries: frozenset[str] | set[str] = BOUNDARIES) -> list[str]:
    """Whoever catches everything raises again; at process boundaries the error is at least used."""
    findings: list[str] = []
    for path in sources(root, ".py"):
        if path.parts[0] not in (*ROOMS, "benchmarks"):
            continue
        for node in nodes(tree_of(root, path)):
            if not isinstance(node, ast.ExceptHandler) or not _is_blind(node):
                continue
            where = f"{path}:{node.lineno}"
            inside = [each for statement in node.body for each in ast.walk(statement)]
            if any(isinstance(each, ast.Raise) for each in inside):
                continue
            if str(path) not in boundaries:
                findings.append(f"{where}: catches everything and goes on; no process boundary")
            elif not any(_speaks(each, node.name) for each in inside):
                findings.append(f"{where}: swallows an error without a word")
    return findings


def _is_blind(handler: ast.ExceptHandler) -> bool:
    caught = handler.type
    if caught is None:
        return True
    names = caught.elts if isinstance(caught, ast.Tuple) else [caught]
    return any(isinstance(n, ast.Name) and n.id in {"Exception", "BaseException"} for n in names)


def _speaks(node: ast.AST, error: str | None) -> bool:
    if isinstance(node, ast.Name):
        return node.id == error
    if isinstance(node, ast.keyword):
        return node.arg == "exc_info"
    return isinstance(node, ast.Attribute) and node.attr == "exception"


def lost_cancellations(root: Path) -> list[str]:
    """``asyncio.timeout`` instead of ``wait_for``, which before Python 3.12 may swallow a cancellation."""
    return [
        f"{path}:{node.lineno}: calls wait_for"
        for path in sources(root, ".py")
        if path.parts[0] in ROOMS
        for node in nodes(tree_of(root, path))
        if isinstance(node, ast.Attribute) and node.attr == "wait_for"
    ]


def loose_ends(root: Path) -> list[str]:
    """No notes to finish something later."""
    return [
        f"{path}:{number}: {line.strip()[:80]}"
        for path in sources(root, *TEXTS)
        for number, line in enumerate((root / path).read_text("utf-8").splitlines(), 1)
        if LOOSE_ENDS.search(line)
    ]


def forbidden_names(root: Path) -> list[str]:
    """Modules are called by what they are for."""
    return [
        f"{path}: names nothing"
        for path in sources(root, ".py", ".ts", ".tsx", ".js")
        if FORBIDDEN_NAMES & {path.stem, *path.parts[:-1]}
    ]


def module_docstrings(root: Path) -> list[str]:
    """Every module opens with a sentence on what it is for."""
    return [
        f"{path}: no docstring"
        for path in sources(root, ".py")
        if (root / path).stat().st_size and not ast.get_docstring(tree_of(root, path))
    ]


def _setup(root: Path) -> configparser.ConfigParser:
    parser = configparser.ConfigParser(delimiters=("=",))
    parser.optionxform = str  # type: ignore[assignment,method-assign]  # option names keep their case
    parser.read(root / "setup.cfg", "utf-8")
    return parser


def _listed(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip()]


def undocumented_dependencies(root: Path) -> list[str]:
    """Each requirement of setup.cfg has a line ``- `name`: reason`` in docs/dependencies.md, and only those."""
    parser = _setup(root)
    lines = _listed(parser.get("options", "install_requires"))
    for extra in parser.options("options.extras_require"):
        lines += _listed(parser.get("options.extras_require", extra))
    required = {re.split(r"[\[<>=!~; ]", line, maxsplit=1)[0].lower() for line in lines}
    page = root / "docs/dependencies.md"
    text = page.read_text("utf-8") if page.exists() else ""
    given = {name.lower() for name in re.findall(r"^- `([\w.-]+)`: \S+ \S+", text, re.MULTILINE)}
    return [f"docs/dependencies.md: no reason for {name}" for name in sorted(required - given)] + [
        f"docs/dependencies.md: {name} is not required" for name in sorted(given - required)
    ]


def broken_entry_points(root: Path) -> list[str]:
    """Every entry point of setup.cfg can be loaded."""
    parser = _setup(root)
    findings: list[str] = []
    for group in parser.options("options.entry_points"):
        for line in _listed(parser.get("options.entry_points", group)):
            name, _, target = (part.strip() for part in line.partition("="))
            module, _, attribute = target.partition(":")
            try:
                getattr(importlib.import_module(module), attribute)
            except (ImportError, AttributeError) as error:
                findings.append(f"{group} {name}: {error}")
    return findings


def silent_traits(modules: Iterator[str] | list[str]) -> list[str]:
    """Every setting of our classes has a help text: it is the manual."""
    from traitlets import HasTraits

    findings: set[str] = set()
    for name in modules:
        for _, cls in inspect.getmembers(importlib.import_module(name), inspect.isclass):
            if not issubclass(cls, HasTraits) or cls.__module__ != name:
                continue
            for trait, value in cls.class_own_traits(config=True).items():
                if not (value.help or "").strip():
                    findings.add(f"{name}.{cls.__name__}.{trait}: no help")
    return sorted(findings)


def modules_of(root: Path, *rooms: str) -> list[str]:
    """Dotted names of the modules of ``rooms`` that define a trait somewhere in their text."""
    return [
        ".".join(path.with_suffix("").parts)
        for path in sources(root, ".py")
        if path.parts[0] in rooms and "config=True" in (root / path).read_text("utf-8")
    ]
