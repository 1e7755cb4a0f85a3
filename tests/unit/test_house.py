"""The house keeps its rules, and each rule can find what it is for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.harness import house

ROOT = Path(__file__).resolve().parents[2]

Rule = Callable[[Path], list[str]]

RULES: list[Rule] = [
    house.import_floors,
    house.no_database_away,
    house.sizes,
    house.pure_scheduler,
    house.loose_ignores,
    house.blind_excepts,
    house.lost_cancellations,
    house.loose_ends,
    house.forbidden_names,
    house.module_docstrings,
    house.undocumented_dependencies,
    house.broken_entry_points,
]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_house_keeps_its_rules(rule: Rule) -> None:
    assert rule(ROOT) == [], (rule.__doc__ or "").splitlines()[0]


def test_every_setting_has_a_help_text() -> None:
    modules = house.modules_of(ROOT, "hub", "spawner", "authenticator", "vfolder")
    assert modules, "there are settings"
    assert house.silent_traits(modules) == []


SCHEDULER = "spawner/scheduler/plan.py"
TYPE_IGNORE = "# type: " + "ignore"
NO_QA = "# no" + "qa"
SETUP = """
[options]
install_requires =
    one>=1
    two[extra]>=2
[options.extras_require]
test =
    three
[options.entry_points]
console_scripts =
    gone = tests.harness.house:gone
    lost = tests.harness.lost:main
    here = tests.harness.house:sizes
"""

FOUND: list[tuple[Rule, dict[str, str], list[str]]] = [
    (
        house.import_floors,
        {"store/a.py": "import hub.app"},
        ["store/a.py:1: store imports hub.app"],
    ),
    (
        house.import_floors,
        {"store/a.py": "import aiohttp"},
        ["store/a.py:1: store imports aiohttp"],
    ),
    (
        house.import_floors,
        {"vfolder/a.py": "def f():\n    from spawner.sessions import tables"},
        ["vfolder/a.py:2: vfolder imports spawner.sessions.tables"],
    ),
    (
        house.import_floors,
        {"perijove/a.py": "import store", "kernels/a.py": "from authenticator.problems import X"},
        [
            "kernels/a.py:1: kernels imports authenticator.problems.X",
            "perijove/a.py:1: perijove imports store",
        ],
    ),
    (
        house.import_floors,
        {SCHEDULER: "import attrs\nimport time\nfrom spawner.sessions.states import Status"},
        [
            f"{SCHEDULER}:1: the scheduler imports attrs",
            f"{SCHEDULER}:2: the scheduler imports time",
            f"{SCHEDULER}:3: the scheduler imports spawner.sessions.states.Status",
        ],
    ),
    (house.import_floors, {"hub/a.py": "from . import b"}, ["hub/a.py:1: relative import of ..b"]),
    (
        house.no_database_away,
        {
            "spawner/__init__.py": "",
            "spawner/spawner.py": "from spawner.form import view",
            "spawner/form.py": "from spawner.sessions.tables import AgentRow",
            "spawner/sessions/__init__.py": "",
            "spawner/sessions/tables.py": "",
        },
        [
            "spawner/spawner.py: imports the database over "
            "spawner.spawner > spawner.form > spawner.sessions.tables"
        ],
    ),
    (
        house.sizes,
        {
            "hub/a.py": "x = 1\n" * 601,
            "labextension/src/a.ts": "\n" * 601,
            "store/migrations/versions/1.py": "\n" * 601,
        },
        ["hub/a.py: 601 lines, at most 600", "labextension/src/a.ts: 601 lines, at most 600"],
    ),
    (
        house.sizes,
        {
            "hub/a.py": "def f():\n" + "    x = 1\n" * 60,
            "hub/b.py": "class C:\n" + "    x = 1\n" * 400,
        },
        ["hub/a.py:1: f has 61 lines, at most 60", "hub/b.py:1: C has 401 lines, at most 400"],
    ),
    (
        house.pure_scheduler,
        {
            SCHEDULER: "import random\nnow = datetime.now()\nopen('x')\nhash('x')\nasync def f(): pass\nsnapshot.now"
        },
        [
            f"{SCHEDULER}:5: awaits",
            f"{SCHEDULER}:2: calls .now()",
            f"{SCHEDULER}:3: uses open",
            f"{SCHEDULER}:4: uses hash",
            f"{SCHEDULER}:1: import random",
        ],
    ),
    (
        house.loose_ignores,
        {"hub/a.py": f"a  {TYPE_IGNORE}\nb  {TYPE_IGNORE}[arg-type]\nc  {NO_QA}\nd  {NO_QA}: S101"},
        [f"hub/a.py:1: a  {TYPE_IGNORE}", f"hub/a.py:3: c  {NO_QA}"],
    ),
    (
        house.blind_excepts,
        {
            "hub/a.py": "try: f()\nexcept: log.exception('x')",
            "hub/b.py": "try: f()\nexcept Exception: raise",
        },
        ["hub/a.py:2: catches everything and goes on; no process boundary"],
    ),
    (
        house.blind_excepts,
        {"store/database.py": "try: f()\nexcept (OSError, Exception): pass"},
        ["store/database.py:2: swallows an error without a word"],
    ),
    (
        house.lost_cancellations,
        {"hub/a.py": "await asyncio.wait_for(event.wait(), 1)", "tests/a.py": "x.wait_for()"},
        ["hub/a.py:1: calls wait_for"],
    ),
    (house.loose_ends, {"docs/a.md": "one\nTO" + "DO: two"}, ["docs/a.md:2: TO" + "DO: two"]),
    (
        house.forbidden_names,
        {"hub/utils.py": "", "hub/common/a.py": "", "hub/commons.py": ""},
        ["hub/common/a.py: names nothing", "hub/utils.py: names nothing"],
    ),
    (
        house.module_docstrings,
        {"hub/a.py": "x = 1", "hub/b.py": '"""Why."""', "hub/__init__.py": ""},
        ["hub/a.py: no docstring"],
    ),
    (
        house.undocumented_dependencies,
        {
            "setup.cfg": SETUP,
            "docs/dependencies.md": "- `one`: it serves.\n- `two`:\n- `four`: is gone.\n",
        },
        [
            "docs/dependencies.md: no reason for three",
            "docs/dependencies.md: no reason for two",
            "docs/dependencies.md: four is not required",
        ],
    ),
    (
        house.broken_entry_points,
        {"setup.cfg": SETUP},
        [
            "console_scripts gone: module 'tests.harness.house' has no attribute 'gone'",
            "console_scripts lost: No module named 'tests.harness.lost'",
        ],
    ),
]


@pytest.mark.parametrize(
    ("rule", "files", "findings"),
    FOUND,
    ids=[f"{rule.__name__}-{n}" for n, (rule, _, _) in enumerate(FOUND)],
)
def test_a_rule_finds_what_it_is_for(
    tmp_path: Path, rule: Rule, files: dict[str, str], findings: list[str]
) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert rule(tmp_path) == findings


def test_imports_for_type_checking_only_do_not_count(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "store/a.py").write_text(
        "if TYPE_CHECKING:\n    import hub.app\nelse:\n    import hub.b"
    )
    assert house.import_floors(tmp_path) == ["store/a.py:4: store imports hub.b"]


def test_a_setting_without_help_is_found() -> None:
    assert house.silent_traits([__name__]) == [f"{__name__}.Silent.volume: no help"]


from traitlets import HasTraits, Int  # noqa: E402 - the class below is what the test above looks at


class Silent(HasTraits):
    volume = Int(help="").tag(config=True)
    pitch = Int(help="How high, in hertz.").tag(config=True)
    hidden = Int()
