"""What the manager knows about the session that this process runs in.

The one client behind the widget, the command line and JupyterLab's status bar. Standard library only
and no proxy settings: the manager is next door, and a session's start should not pay for more.
"""

from __future__ import annotations

import http.client
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlsplit

TIMEOUT = 5.0
"""Seconds for each step of the exchange with the manager."""
_MOST_BYTES = 1 << 20


class SessionUnknown(Exception):
    """Nothing new is known about the session; the sentence says why."""


class NotInSession(SessionUnknown):
    """This process does not run in a session, or in one that may not ask about itself."""


@dataclass(frozen=True, slots=True)
class Access:
    """Where the manager is, which session is meant, and the token (of JupyterHub) that proves it."""

    url: str
    session_id: str
    token: str

    def __repr__(self) -> str:
        return f"Access({self.url!r}, {self.session_id!r})"  # never the token

    @classmethod
    def from_environ(cls, environ: Mapping[str, str] | None = None) -> Access:
        """As the session's environment says; raises ``NotInSession``."""
        given = os.environ if environ is None else environ
        session_id = given.get("PERIJOVE_SESSION_ID", "")
        if not session_id:
            raise NotInSession("this does not run in a session of Perijove")
        url, token = given.get("PERIJOVE_API_URL", ""), given.get("JUPYTERHUB_API_TOKEN", "")
        if not url or not token:
            missing = "JUPYTERHUB_API_TOKEN" if url else "PERIJOVE_API_URL"
            name = given.get("PERIJOVE_SESSION_NAME", session_id)
            raise NotInSession(
                f"session {name} may not ask about itself: it was started without {missing},"
                " which JupyterHub gives to its servers"
            )
        if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).hostname:
            raise NotInSession(f"PERIJOVE_API_URL must be an http or https URL, not {url!r}")
        return cls(url.rstrip("/"), session_id, token)


@dataclass(frozen=True, slots=True)
class SessionFacts:
    """A session as its owner sees it.

    ``resources`` are sentences by slot (``{"cpu": "2 CPUs"}``), CPU and memory first; ``age`` is in
    seconds since the session was asked for; ``created_at`` is ISO 8601; ``message`` may be empty.
    """

    id: str
    name: str
    status: str
    message: str
    resources: dict[str, str]
    image: str
    resource_group: str
    project: str
    owner: str
    created_at: str
    age: float

    def rows(self) -> list[tuple[str, str]]:
        """Titles and texts for people, in the order in which they matter."""
        news = self.message.lower() not in ("", self.status.lower())
        rows = [
            ("Session", self.name),
            ("Status", f"{self.status}: {self.message}" if news else self.status),
            ("Resources", ", ".join(self.resources.values()) or "none yet"),
            ("Age", age_text(self.age)),
            ("Image", self.image),
            ("Resource group", self.resource_group),
            ("Project", self.project),
            ("Owner", self.owner),
            ("Id", self.id),
        ]
        return [(title, text) for title, text in rows if text]

    def __str__(self) -> str:
        rows = self.rows()
        width = max(len(title) for title, _ in rows)
        return "\n".join(f"{title:<{width}}  {text}" for title, text in rows)


def age_text(seconds: float) -> str:
    """A duration as the status bar says it: ``< 1 min``, ``12 min``, ``3 h 4 min``, ``2 d 3 h``."""
    minutes = int(seconds // 60)
    if minutes < 1:
        return "< 1 min"
    if minutes < 60:
        return f"{minutes} min"
    hours = minutes // 60
    if hours < 24:
        return f"{hours} h {minutes % 60} min"
    return f"{hours // 24} d {hours % 24} h"


def fetch(access: Access, timeout: float = TIMEOUT) -> SessionFacts:
    """Ask the manager; blocks. Raises ``SessionUnknown`` with a sentence that says why it cannot tell."""
    place = urlsplit(access.url)
    secure = place.scheme == "https"
    kind = http.client.HTTPSConnection if secure else http.client.HTTPConnection
    connection = kind(place.hostname or "", place.port, timeout=timeout)
    try:
        connection.request(
            "GET",
            f"{place.path}/session/{quote(access.session_id, safe='')}",
            headers={"Authorization": f"token {access.token}", "Accept": "application/json"},
        )
        answer = connection.getresponse()
        body = answer.read(_MOST_BYTES)
    except (OSError, http.client.HTTPException) as error:
        reason = str(error) or type(error).__name__
        raise SessionUnknown(f"the manager does not answer ({reason})") from error
    finally:
        connection.close()
    if answer.status != 200:
        raise SessionUnknown(_refusal(answer.status, body, access))
    try:
        return _facts(json.loads(body))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise SessionUnknown("the manager's answer is not a session's description") from error


def _refusal(status: int, body: bytes, access: Access) -> str:
    if status in (401, 403):
        return f"the manager refuses this session's token (HTTP {status})"
    if status == 404:
        return f"the manager knows no session {access.session_id}"
    try:
        problem = json.loads(body)
        sentence = str(problem.get("msg") or problem.get("title") or "")
    except (ValueError, AttributeError):
        sentence = ""
    return f"the manager cannot tell (HTTP {status})" + (f": {sentence}" if sentence else "")


def _facts(told: dict[str, Any]) -> SessionFacts:
    ours = told["perijove"]
    slots = sorted(ours["resources"], key=lambda slot: (slot not in ("cpu", "mem"), slot))
    return SessionFacts(
        id=str(told["sessionId"]),
        name=str(told["sessionName"]),
        status=str(told["status"]),
        message=str(ours["message"] or ""),
        resources={slot: str(ours["resources"][slot]) for slot in slots},
        image=str(told["image"]),
        resource_group=str(told["resourceGroup"] or ""),
        project=str(told["groupName"] or ""),
        owner=str(ours["owner"] or ""),
        created_at=str(told["creationTime"]),
        age=int(told["age"]) / 1000,
    )
