"""A session that will end says so in JupyterLab and on the page of sessions, and is extended from both."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, expect

from tests.e2e.lab import SLOW, Person
from tests.e2e.platform import Platform

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

LIFETIME = 80
"""Seconds that the session may run at first: JupyterLab must be there before half of it is over."""


def policy(platform: Platform, *settings: str) -> None:
    platform.command("policy", "set", "default", *settings)


def sessions(person: Person) -> list[dict[str, Any]]:
    page = person.page.request.get(
        f"{person.url}/services/perijove/sessions", headers={"Accept": "application/json"}
    )
    return list(page.json()["sessions"])


def test_an_owner_is_warned_and_extends(platform: Platform, browser: Browser, shots: Path) -> None:
    policy(platform, f"max_session_lifetime={LIFETIME}", 'idle_checks={"warn_before": "5m"}')
    context = browser.new_context(viewport={"width": 1200, "height": 800})
    person = Person(context.new_page(), platform.url, shots)
    try:
        person.log_in("admin", platform.password)
        person.start(cpu="0.5", mem="0.5")
        person.lands_in_lab()
        policy(platform, "max_session_lifetime=2h")  # from now on there is something to extend to
        in_the_lab(person)
        on_the_page_of_sessions(person, platform)
    except BaseException:
        person.shot("ending-failed")
        print(platform.logs())
        raise
    finally:
        context.close()


def in_the_lab(person: Person) -> None:
    page = person.page
    notice = page.locator(".Toastify__toast", has_text="This session ends in")
    expect(notice).to_contain_text(
        re.compile(r"This session ends in \d+ s: its run time is nearly over\."), timeout=SLOW
    )
    first = notice.locator(".jp-toast-message").inner_text()
    # It counts down by itself.
    page.wait_for_function(
        "first => document.querySelector('.jp-toast-message')?.innerText !== first", arg=first
    )
    person.shot("ending-1-warning")
    ends_at = page.evaluate("Date.now()") + 1000 * int(re.findall(r"\d+", first)[0])
    notice.get_by_role("button", name="Extend").click()
    expect(page.locator(".Toastify__toast")).to_contain_text(
        re.compile(r"The session was extended: it goes on at least until .*\d")
    )
    person.shot("ending-2-extended")
    page.wait_for_function("end => Date.now() > end", arg=ends_at + 5000)
    expect(notice).to_have_count(0)
    person.open_notebook()
    person.run_cell("print(6 * 7)", "42")


def on_the_page_of_sessions(person: Person, platform: Platform) -> None:
    page = person.page
    policy(platform, 'idle_checks={"warn_before": "5m", "extensions": 2}')
    page.goto(f"{platform.url}/services/perijove/")
    row = page.locator("#perijove-rows tr")
    expect(row).to_contain_text(re.compile(r"\d+ (min|h \d+ min) left"), timeout=SLOW)
    extend = page.get_by_role("button", name=re.compile("^Extend "))
    extend.click()
    news = page.locator("#perijove-news")
    expect(news).to_contain_text(re.compile("was extended and goes on for at least 1 h"))
    person.shot("ending-3-page")
    extend.click()
    expect(news).to_contain_text("was not extended: it was extended 2 times, and your policy")
    person.shot("ending-4-refused")
    assert [each["status"] for each in sessions(person)] == ["RUNNING"]
