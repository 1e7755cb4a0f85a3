"""The server half asks the manager rarely, remembers what it heard, and lets the age go on."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import labextension
from labextension.handlers import FRESH, SessionWatch
from perijove.session import NotInSession, SessionFacts, SessionUnknown

FACTS = SessionFacts(
    id="1",
    name="ada-lab",
    status="RUNNING",
    message="",
    resources={"cpu": "2 CPUs"},
    image="i",
    resource_group="default",
    project="research",
    owner="ada",
    created_at="2026-01-01T00:00:00+00:00",
    age=60.0,
)


class Manager:
    """Answers, or not; counts; carries the clock."""

    def __init__(self) -> None:
        self.time, self.asked = 100.0, 0
        self.problem: SessionUnknown | None = None
        self.watch = SessionWatch(self.answer, lambda: self.time)

    def answer(self) -> SessionFacts:
        self.asked += 1
        if self.problem is not None:
            raise self.problem
        return FACTS


async def test_many_tabs_are_one_question() -> None:
    manager = Manager()
    told = await asyncio.gather(*(manager.watch.look() for _ in range(20)))
    assert manager.asked == 1
    assert all(each.session == FACTS and each.problem is None for each in told)
    manager.time += FRESH
    await manager.watch.look()
    assert manager.asked == 2


async def test_the_age_goes_on_between_questions() -> None:
    manager = Manager()
    await manager.watch.look()
    manager.time += FRESH - 1
    told = await manager.watch.look()
    assert told.session is not None
    assert told.session.age == 60.0 + FRESH - 1
    assert manager.asked == 1


async def test_what_was_known_is_kept_with_the_reason_why_it_is_old() -> None:
    manager = Manager()
    await manager.watch.look()
    manager.problem = SessionUnknown("the manager does not answer")
    manager.time += 1000
    told = await manager.watch.look()
    assert told.problem == "the manager does not answer"
    assert told.session is not None
    assert told.session.age == 1060.0
    manager.problem = None
    manager.time += FRESH
    told = await manager.watch.look()
    assert told.problem is None
    assert told.session is not None
    assert told.session.age == 60.0


async def test_a_manager_that_is_away_is_not_asked_more_often() -> None:
    manager = Manager()
    manager.problem = SessionUnknown("away")
    assert (await manager.watch.look()).session is None
    assert (await manager.watch.look()).problem == "away"
    assert manager.asked == 1


async def test_outside_of_a_session_there_is_nothing_to_ask_for() -> None:
    manager = Manager()
    manager.problem = NotInSession("elsewhere")
    told = await manager.watch.look()
    assert (told.session, told.problem, told.outside) == (None, "elsewhere", True)


def test_the_extension_is_found_under_one_name() -> None:
    root = Path(labextension.__file__).parent
    package = json.loads((root / "package.json").read_text())
    assert package["name"] == labextension.NAME
    assert package["jupyterlab"]["outputDir"] == labextension.PREBUILT.name
    enabled = json.loads((root / "jupyter-config/perijove.json").read_text())
    modules = [point["module"] for point in labextension._jupyter_server_extension_points()]
    assert list(enabled["ServerApp"]["jpserver_extensions"]) == modules


def test_the_lock_file_names_no_registry() -> None:
    lock = (Path(labextension.__file__).parent / "yarn.lock").read_text()
    assert "://" not in lock
