"""Migrations: one transaction, a copy of the old file, and the same tables as the rooms declare."""

import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import create_engine

from store import schema
from store.engine import StoreError
from tests.declared_tables import declared_tables


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "perijove.sqlite"


@pytest.fixture
def url(path: Path) -> str:
    return f"sqlite:///{path}"


def statements(path: Path) -> dict[str, list[str]]:
    """Of each table and index: its statement, cut at commas outside parentheses; their order means nothing."""
    with closing(sqlite3.connect(path)) as database:
        rows = database.execute(
            "SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL AND name <> 'alembic_version'"
        ).fetchall()
    return {name: sorted(_clauses(" ".join(sql.split()))) for name, sql in rows}


def _clauses(sql: str) -> Iterator[str]:
    head, _, body = sql.partition("(")
    yield head
    depth, clause = 0, ""
    for character in body.removesuffix(")"):
        depth += {"(": 1, ")": -1}.get(character, 0)
        if character == "," and depth == 0:
            yield clause.strip()
            clause = ""
        else:
            clause += character
    yield clause.strip()


def test_migrations_make_exactly_the_tables_that_the_rooms_declare(
    path: Path, url: str, tmp_path: Path
) -> None:
    schema.upgrade(url)
    declared = tmp_path / "declared.sqlite"
    engine = create_engine(f"sqlite:///{declared}")
    declared_tables().create_all(engine)
    engine.dispose()
    made, wanted = statements(path), statements(declared)
    assert made == wanted
    assert (
        "CONSTRAINT ck_agent_devices_not_overcommitted CHECK (used <= capacity)"
        in made["agent_devices"]
    )
    assert re.search(r"WHERE status NOT IN", " ".join(made["uq_sessions_owner_name"]))


def test_a_missing_database_is_named_with_the_command_and_not_made(path: Path, url: str) -> None:
    with pytest.raises(schema.SchemaMismatch, match=r"has no tables yet.*`perijove db upgrade`"):
        schema.check(url)
    assert not path.exists()
    assert schema.current_revision(url) is None


def test_an_upgraded_database_is_right_and_a_second_upgrade_does_nothing(
    path: Path, url: str, tmp_path: Path
) -> None:
    first = schema.upgrade(url)
    assert (first.before, first.after, first.backup) == (None, schema.head_revision(), None)
    assert first.changed
    schema.check(url)
    second = schema.upgrade(url)
    assert not second.changed
    assert path.stat().st_mode & 0o777 == 0o600
    assert not list(tmp_path.glob("*.before-*"))


def test_foreign_tables_and_newer_revisions_are_left_alone(path: Path, url: str) -> None:
    with closing(sqlite3.connect(path)) as database:
        database.execute("CREATE TABLE cats (name TEXT)")
    for ask in (schema.check, schema.upgrade):
        with pytest.raises(schema.SchemaMismatch, match="tables that are not Perijove's"):
            ask(url)
    path.unlink()
    schema.upgrade(url)
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("UPDATE alembic_version SET version_num = '9999'")
    for ask in (schema.check, schema.upgrade):
        with pytest.raises(schema.SchemaMismatch, match=r"revision 9999.*newer"):
            ask(url)


@pytest.fixture
def next_revision(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder of migrations with two revisions: an empty one, and what the test writes."""
    folder = tmp_path / "migrations"
    (folder / "versions").mkdir(parents=True)
    source = Path(schema.__file__).parent / "migrations"
    (folder / "env.py").write_text((source / "env.py").read_text())
    (folder / "versions" / "0000_old.py").write_text('revision = "0000"\ndown_revision = None\n')
    monkeypatch.setattr(schema, "MIGRATIONS", folder)
    schema.revisions.cache_clear()
    return folder / "versions" / "0001_new.py"


@pytest.fixture(autouse=True)
def _forget_revisions() -> Iterator[None]:
    yield
    schema.revisions.cache_clear()


NEXT = 'from alembic import op\nrevision = "0001"\ndown_revision = "0000"\ndef upgrade():\n'


def test_the_old_file_is_copied_before_its_upgrade(
    path: Path, url: str, next_revision: Path
) -> None:
    next_revision.write_text(NEXT + '    op.execute("DELETE FROM domains")\n')
    _old_database(path)
    done = schema.upgrade(url)
    assert (done.before, done.after) == ("0000", "0001")
    assert done.backup == path.with_name("perijove.sqlite.before-0001")
    assert done.backup.stat().st_mode & 0o777 == 0o600
    assert (_domains(path), _domains(done.backup)) == ([], ["old"])


@pytest.mark.parametrize(
    ("last", "error"),
    [
        ('op.execute("nonsense")', "syntax error"),
        ("op.execute(\"INSERT INTO members VALUES ('nobody')\")", "without their parents"),
    ],
)
def test_an_upgrade_that_fails_changes_nothing(
    path: Path, url: str, next_revision: Path, last: str, error: str
) -> None:
    next_revision.write_text(NEXT + f'    op.execute("DELETE FROM domains")\n    {last}\n')
    _old_database(path)
    with pytest.raises(StoreError, match=error):
        schema.upgrade(url)
    assert schema.current_revision(url) == "0000"
    assert _domains(path) == ["old"]


def _old_database(path: Path) -> None:
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("CREATE TABLE domains (name TEXT PRIMARY KEY)")
        database.execute("CREATE TABLE members (domain TEXT REFERENCES domains(name))")
        database.execute("INSERT INTO domains VALUES ('old')")
        database.execute("CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL)")
        database.execute("INSERT INTO alembic_version VALUES ('0000')")


def _domains(path: Path) -> list[str]:
    with closing(sqlite3.connect(path)) as database:
        return [name for (name,) in database.execute("SELECT name FROM domains")]
