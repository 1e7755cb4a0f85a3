"""What a person does in the browser, one method each."""

from __future__ import annotations

import json
import re
from pathlib import Path

from playwright.sync_api import Page, expect

SLOW = 60_000
"""Milliseconds; a cold JupyterLab on two busy cores takes its time."""


_PROGRESS = """
new MutationObserver(() => {
  const told = [...document.querySelectorAll("#perijove-events span")].map((each) => each.textContent);
  if (told.length) sessionStorage.setItem("told", JSON.stringify(told));
}).observe(document, { subtree: true, childList: true });
"""
"""Keeps what the progress page said: it goes on to the server by itself, and fast."""


class Person:
    """A person at a browser page."""

    def __init__(self, page: Page, url: str, shots: Path) -> None:
        self.page, self.url, self.shots = page, url, shots
        page.set_default_timeout(SLOW)
        page.add_init_script(_PROGRESS)

    def shot(self, name: str) -> None:
        """Keep a picture of the page."""
        self.page.screenshot(path=self.shots / f"{name}.png")

    def log_in(self, name: str, password: str) -> None:
        self.page.goto(f"{self.url}/hub/login")
        self.page.locator("#username_input").fill(name)
        self.page.locator("#password_input").fill(password)
        self.page.locator("#login_submit").click()
        self.page.wait_for_url(re.compile(r"/hub/(home|spawn)|/user/"))

    def start(self, *, cpu: str = "", mem: str = "", server: str = "") -> None:
        """Fill the spawn form (or take what it offers) and press Start."""
        self.page.goto(f"{self.url}/hub/spawn{server}")
        if cpu:
            self.page.locator('input[name=preset][value="custom"]').check()
            self.page.locator("#field-cpu").fill(cpu)
            self.page.locator("#field-mem").fill(mem)
        self.page.get_by_role("button", name=re.compile("^Start")).click()

    def told(self) -> list[str]:
        """All that the progress page said of the last start; asked on a page of the platform."""
        read = "() => { const all = sessionStorage.told; delete sessionStorage.told; return all; }"
        return list(json.loads(self.page.evaluate(read) or "[]"))

    def lands_in_lab(self) -> None:
        """Wait until JupyterLab shows its launcher, or the document or terminal that was open last."""
        self.page.wait_for_url(re.compile(r"/user/.*/lab"), timeout=SLOW)
        self.page.locator("#jp-main-dock-panel").wait_for(timeout=SLOW)
        shown = self.page.locator(".jp-LauncherCard, .jp-Notebook, .jp-Terminal")
        shown.filter(visible=True).first.wait_for(timeout=SLOW)

    def open_notebook(self) -> None:
        self.page.locator('.jp-LauncherCard[data-category="Notebook"]').first.click()
        self.page.locator(".jp-Notebook .jp-CodeCell").first.wait_for()
        kernel = self.page.locator("#jp-main-statusbar")
        expect(kernel).to_contain_text("| Idle", timeout=SLOW)

    def run_cell(self, code: str, expected: str) -> None:
        """Type ``code`` into the last cell, run it, and see ``expected`` come out."""
        cell = self.page.locator(".jp-Notebook .jp-CodeCell").last
        cell.locator(".cm-content").click()
        self.page.keyboard.insert_text(code)
        self.page.keyboard.press("Shift+Enter")
        output = self.page.locator(".jp-OutputArea-output", has_text=expected)
        expect(output.first).to_be_visible(timeout=SLOW)

    def save(self) -> None:
        self.page.keyboard.press("Control+s")
        rename = self.page.get_by_role("button", name=re.compile("^Rename"))
        dirty = self.page.locator(".lm-TabBar-tab.jp-mod-dirty")
        if rename.count():
            rename.first.click()
        expect(dirty).to_have_count(0)

    def open_terminal(self, command: str) -> None:
        """Open a terminal from the launcher and type ``command``."""
        self.page.locator("#jp-main-dock-panel .lm-TabBar-addButton").first.click()
        self.page.locator('.jp-LauncherCard[title*="terminal"]').last.click()
        screen = self.page.locator(".jp-Terminal .xterm-screen").last
        screen.wait_for()
        screen.click()
        self.page.keyboard.type(command + "\n", delay=15)

    def contents(self, user: str, path: str, server: str = "") -> dict[str, object] | None:
        """A file as the session's own contents API tells it; None when there is none."""
        base = f"{self.url}/user/{user}/" + (f"{server}/" if server else "")
        answer = self.page.request.get(f"{base}api/contents/{path}")
        return answer.json() if answer.ok else None

    def stop_server(self) -> None:
        """Stop the default server on the hub's home page, and see the page say so."""
        self.page.goto(f"{self.url}/hub/home")
        self.page.wait_for_load_state("networkidle")  # its script gives the button its meaning
        self.page.locator("#stop").click()
        expect(self.page.locator("#start")).to_contain_text(re.compile("Start", re.I), timeout=SLOW)
        expect(self.page.locator("#stop")).to_be_hidden(timeout=SLOW)
