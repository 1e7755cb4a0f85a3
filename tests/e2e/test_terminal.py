"""A terminal in the browser, from the page of sessions: it runs what is typed, and a new shell follows the old."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.e2e.lab import SLOW, Person
from tests.e2e.platform import Platform

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]


def typed(page: Page, command: str, expected: str) -> None:
    """Type ``command`` and see ``expected`` come out on a line of its own."""
    page.keyboard.type(command + "\n", delay=15)
    line = page.locator(".xterm-rows > div").filter(has_text=re.compile(f"^{expected}\\s*$"))
    expect(line.first).to_be_visible()


def test_a_terminal_is_opened_from_the_page_of_sessions(
    platform: Platform, browser: Browser, shots: Path
) -> None:
    context = browser.new_context(viewport={"width": 1100, "height": 700})
    person = Person(context.new_page(), platform.url, shots)
    faults: list[str] = []
    try:
        person.log_in("admin", platform.password)
        person.start(cpu="0.5", mem="0.5")
        person.page.wait_for_url(re.compile(r"/user/"), timeout=SLOW)
        person.page.goto(f"{platform.url}/services/perijove/")
        with context.expect_page() as opened:
            person.page.get_by_role("link", name=re.compile("^Terminal of ")).click()
        page = person.page = opened.value
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("console", lambda told: faults.append(told.text) if told.type == "error" else None)
        state = page.locator("#perijove-terminal-state")
        expect(state).to_have_text("Connected", timeout=SLOW)
        typed(page, "echo $((40 + 2)) säule", "42 säule")
        wide = page.evaluate("document.querySelector('.xterm-screen').clientWidth")
        page.set_viewport_size({"width": 700, "height": 500})
        page.wait_for_function(
            "wide => document.querySelector('.xterm-screen').clientWidth < wide", arg=wide
        )
        columns = re.compile(r"size [1-9]\d [4-9]\d")
        page.keyboard.type("echo size $(stty size)\n", delay=15)
        expect(page.locator(".xterm-rows")).to_contain_text(columns)
        page.set_viewport_size({"width": 1100, "height": 700})
        person.shot("terminal-1-page")
        page.keyboard.type("exit 3\n", delay=15)
        expect(state).to_contain_text("The shell has ended (3)")
        person.shot("terminal-2-ended")
        page.get_by_role("button", name="New shell").click()
        expect(state).to_have_text("Connected")
        typed(page, "echo new $((6 * 7))", "new 42")
        assert faults == []
    except BaseException:
        person.shot("terminal-failed")
        print(faults, platform.logs())
        raise
    finally:
        context.close()
