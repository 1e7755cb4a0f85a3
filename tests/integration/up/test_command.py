"""The ``perijove`` command as a process: what it loads, the configuration file it writes."""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.integration


def perijove(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run the command to its end."""
    command = [sys.executable, "-m", "hub.app", *words]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=60)


def test_generate_config_names_our_traits_once(tmp_path):
    done = perijove("--generate-config", cwd=tmp_path)
    path = tmp_path / "perijove_config.py"
    assert (done.returncode, done.stdout, done.stderr) == (0, f"Wrote {path}\n", "")
    text = path.read_text()
    compile(text, str(path), "exec")
    for trait in ("Deployment.state_dir", "Up.engine", "PerijoveSpawner.hub_secret"):
        assert text.count(f"# c.{trait} = ") == 1
    path.write_text("mine")
    done = perijove("--generate-config", cwd=tmp_path)
    assert done.returncode == 1
    assert "not changed" in done.stderr
    assert path.read_text() == "mine"


def imported_by(*words: str) -> set[str]:
    """Modules in memory after ``perijove WORDS --help``."""
    program = (
        "import sys\nfrom hub.app import main\n"
        "try:\n    main(sys.argv[1:])\nexcept SystemExit:\n    pass\n"
        "print(*sys.modules, sep='\\n', file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *words, "--help"],
        capture_output=True,
        text=True,
        check=True,
    )
    return set(done.stderr.split())


def test_help_loads_little():
    loaded = imported_by()
    assert not loaded & {"sqlalchemy", "jupyterhub", "docker", "aiohttp", "alembic", "tornado"}
