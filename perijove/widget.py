"""``SessionInfo``: the session that a notebook runs in, as a widget that keeps itself up to date."""

from __future__ import annotations

import asyncio
import html
from typing import Any

from ipywidgets.widgets.widget_string import HTML

from perijove.session import Access, SessionFacts, SessionUnknown, fetch

_STYLE = (
    "display:grid;grid-template-columns:max-content 1fr;gap:2px 16px;margin:0;"
    "line-height:1.5;color:var(--jp-ui-font-color1,inherit)"
)
_TITLE_STYLE = (
    "margin:0;width:auto;float:none;white-space:nowrap;font-weight:normal;"
    "color:var(--jp-ui-font-color2,inherit)"
)
"""JupyterLab gives titles in outputs a width of their own, which breaks long ones."""


class SessionInfo(HTML):
    """Name, status, resources and age of this session.

    Shown as a widget it asks the manager again every ``interval`` seconds (at least 5); ``refresh``
    does so at once. ``facts`` holds what was told last (None before that), ``problem`` the sentence why
    nothing newer is known. Where widgets cannot be shown, its text and HTML forms say the same once.
    """

    _task: asyncio.Task[None] | None = None

    def __init__(self, interval: float = 30.0, **options: Any) -> None:
        if not interval >= 5:
            raise ValueError(f"interval: {interval!r} is too short; at least 5 seconds")
        super().__init__(**options)
        self.interval = interval
        self.facts: SessionFacts | None = None
        self.problem = ""
        self.refresh()
        self._keep_up_to_date()

    def refresh(self) -> None:
        """Ask the manager now; waits for its answer, at most a few seconds."""
        self._take(_ask())

    def close(self) -> None:
        """Stop asking, and take the widget off the page."""
        if self._task is not None:
            self._task.cancel()
            self._task = None
        super().close()

    def _take(self, told: SessionFacts | SessionUnknown) -> None:
        if isinstance(told, SessionFacts):
            self.facts, self.problem = told, ""
        else:
            self.problem = str(told)
        self.value = self._html()

    def _keep_up_to_date(self) -> None:
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            return  # no kernel's event loop: a script, which sees it once
        self._task = loop.create_task(self._follow())

    async def _follow(self) -> None:
        """Until it is closed; the asking is done in a thread, for the kernel's sake."""
        while True:
            await asyncio.sleep(self.interval)
            self._take(await asyncio.to_thread(_ask))

    def _html(self) -> str:
        rows = [] if self.facts is None else self.facts.rows()
        lines = [
            f'<dt style="{_TITLE_STYLE}">{html.escape(title)}</dt>'
            f'<dd style="margin:0">{html.escape(text)}</dd>'
            for title, text in rows
        ]
        parts = [f'<dl style="{_STYLE}">{"".join(lines)}</dl>'] if lines else []
        if self.problem:
            parts.append(f"<p><em>{html.escape(self._caveat())}</em></p>")
        return "".join(parts)

    def _caveat(self) -> str:
        sentence = self.problem[:1].upper() + self.problem[1:] + "."
        return sentence if self.facts is None else f"Not up to date: {sentence}"

    def __str__(self) -> str:
        parts = [] if self.facts is None else [str(self.facts)]
        return "\n".join([*parts, self._caveat()] if self.problem else parts)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return self._html()

    def _repr_mimebundle_(self, **options: Any) -> dict[str, Any]:
        bundle = super()._repr_mimebundle_(**options) or {}
        return {**bundle, "text/plain": str(self), "text/html": self._html()}


def _ask() -> SessionFacts | SessionUnknown:
    try:
        return fetch(Access.from_environ())
    except SessionUnknown as unknown:
        return unknown
