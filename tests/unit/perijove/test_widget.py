"""The widget says the same as the status bar, and keeps itself up to date."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

import perijove
from tests.harness.session_upstream import Upstream, upstream


@pytest.fixture
def manager(monkeypatch: pytest.MonkeyPatch) -> Iterator[Upstream]:
    with upstream() as running:
        for name, value in running.environ().items():
            monkeypatch.setenv(name, value)
        yield running


@pytest.fixture
def widget(manager: Upstream) -> Iterator[perijove.SessionInfo]:
    made = perijove.SessionInfo()
    yield made
    made.close()


def test_it_shows_the_session_in_every_form(widget: perijove.SessionInfo) -> None:
    bundle = widget._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in bundle
    for form in (widget.value, bundle["text/html"], bundle["text/plain"], repr(widget)):
        assert "ada-lab" in form
        assert "2 CPUs, 4 GiB of memory, 1 GPU" in form
        assert "12 min" in form


def test_what_the_manager_says_cannot_become_markup(manager: Upstream) -> None:
    manager.tell(sessionName="<img src=x onerror=alert(1)>")
    widget = perijove.SessionInfo()
    assert "<img" not in widget.value
    assert "&lt;img" in widget.value
    widget.close()


def test_the_last_facts_stay_when_the_manager_is_away(
    manager: Upstream, widget: perijove.SessionInfo
) -> None:
    manager.status = 503
    widget.refresh()
    assert "ada-lab" in widget.value
    assert "Not up to date: The manager cannot tell (HTTP 503)" in str(widget)
    manager.tell(sessionName="renamed")
    widget.refresh()
    assert "renamed" in widget.value
    assert widget.problem == ""


def test_outside_of_a_session_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PERIJOVE_SESSION_ID", raising=False)
    widget = perijove.SessionInfo()
    assert widget.facts is None
    assert str(widget) == "This does not run in a session of Perijove."
    widget.close()


async def test_it_follows_the_session_until_it_is_closed(manager: Upstream) -> None:
    widget = perijove.SessionInfo(interval=5)
    widget.interval = 0.01
    assert widget._task is not None
    widget._task.cancel()
    widget._keep_up_to_date()
    task = widget._task
    changed = asyncio.Event()
    widget.observe(lambda _: changed.set(), "value")
    manager.tell(sessionName="renamed")
    await asyncio.wait_for(changed.wait(), 5)
    assert "renamed" in widget.value
    widget.close()
    await asyncio.wait([task], timeout=5)
    assert task.cancelled()


def test_an_interval_that_would_flood_the_manager_is_refused() -> None:
    with pytest.raises(ValueError, match="interval: 1 is too short; at least 5 seconds"):
        perijove.SessionInfo(interval=1)


def test_unknown_names_are_unknown() -> None:
    assert "SessionInfo" in dir(perijove)
    with pytest.raises(AttributeError, match="no attribute 'SessionLauncher'"):
        _ = perijove.SessionLauncher
