"""Handlers that run inside the hub for our pages."""

from __future__ import annotations

import json
from typing import Any

from jupyterhub.apihandlers.base import APIHandler
from jupyterhub.scopes import needs_scope
from tornado import web

from authenticator.problems import InvalidParameters
from spawner import options
from spawner.client import Refusal, Unreachable, Verdict
from spawner.spawner import PerijoveSpawner

MAX_BODY = 16 * 1024


class CheckHandler(APIHandler):
    """``POST perijove/check/USER``: what would become of the spawn form as it is filled in now.

    The body is an object of form fields to text. Answers ``{"verdict": "now" | "wait" | "never" |
    "unknown", "message", "errors": {form field: sentence}}``. Needs the scope ``servers`` of that user;
    JupyterHub checks XSRF tokens of cookie-authenticated requests.
    """

    @web.authenticated
    @needs_scope("servers")  # type: ignore[untyped-decorator]  # JupyterHub's
    async def post(self, user_name: str) -> None:
        """Answer the check for the user named in the path."""
        user = self.find_user(user_name)
        if user is None:
            raise web.HTTPError(404)
        if len(self.request.body) > MAX_BODY:
            raise web.HTTPError(413, f"at most {MAX_BODY} bytes are allowed")
        spawner = user.spawner
        if not isinstance(spawner, PerijoveSpawner):
            raise web.HTTPError(404, "servers of this hub do not run on Perijove")
        verdict = await _verdict(spawner, self.get_json_body())
        self.finish(
            json.dumps(
                {
                    "verdict": verdict.verdict,
                    "message": options.sentence(verdict.message),
                    "errors": {options.form_field(k): why for k, why in verdict.errors.items()},
                }
            )
        )


async def _verdict(spawner: PerijoveSpawner, body: Any) -> Verdict:
    if not isinstance(body, dict):
        raise web.HTTPError(400, "give an object of form fields")
    try:
        chosen = options.from_form({str(name): [value] for name, value in body.items()})
        offer = await spawner.manager.spawn_options(spawner.user.name)
        _, verdict = await spawner.consider(options.parse(chosen), offer)
        return verdict
    except InvalidParameters as problem:
        return Verdict("never", _sentence(problem.fields), problem.fields)
    except Refusal as refusal:
        return Verdict("never", refusal.message, refusal.fields)
    except Unreachable:
        return Verdict("unknown", "The manager does not answer now; a start would wait for it.")


def _sentence(fields: dict[str, str]) -> str:
    return "Please change " + ", ".join(fields) + "."


class StaticHandler(web.StaticFileHandler):
    """Style and scripts of our pages: public, like JupyterHub's own."""

    def set_extra_headers(self, path: str) -> None:
        """Let browsers ask whether a file changed instead of guessing."""
        self.set_header("Cache-Control", "no-cache")
        self.set_header("X-Content-Type-Options", "nosniff")
