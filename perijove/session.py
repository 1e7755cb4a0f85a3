"""What the manager knows about the session that this process runs in.

The one client behind the widget, the command line and JupyterLab's status bar. Standard library only
and no proxy settings: the manager is next door, and a session's start should not pay for more.
"""

from __future__ import annotations

import http.client
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import quote, urlsplit

TIMEOUT = 5.0
"""Seconds for each step of the exchange with the manager."""
_MOST_BYTES = 1 << 20


class SessionUnknown(Exception):
    """Nothing new is known about the session; the sentence says why."""


class NotExtended(Exception):
    """The session was not extended; the sentence says why."""


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
class EndWarning:
    """The owner was told that the session ends in ``ends_in`` seconds by this ``check``, and why."""

    check: str
    message: str
    ends_in: float


@dataclass(frozen=True, slots=True)
class SessionFacts:
    """A session as its owner sees it.

    ``resources`` are sentences by slot (``{"cpu": "2 CPUs"}``), CPU and memory first; ``age`` is in
    seconds since the session was asked for; ``created_at`` is ISO 8601; ``message`` may be empty;
    ``ends_in`` is in seconds until the first of its limits, None where it has none.
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
    ends_in: float | None = None
    warning: EndWarning | None = None

    def later(self, seconds: float) -> SessionFacts:
        """The same, as it is some seconds later."""
        told, left = self.warning, self.ends_in
        return replace(
            self,
            age=self.age + seconds,
            ends_in=None if left is None else left - seconds,
            warning=None if told is None else replace(told, ends_in=told.ends_in - seconds),
        )

    def rows(self) -> list[tuple[str, str]]:
        """Titles and texts for people, in the order in which they matter."""
        news = self.message.lower() not in ("", self.status.lower())
        rows = [
            ("Session", self.name),
            ("Status", f"{self.status}: {self.message}" if news else self.status),
            ("Resources", ", ".join(self.resources.values()) or "none yet"),
            ("Age", age_text(self.age)),
            ("Time left", "" if self.ends_in is None else age_text(max(self.ends_in, 0.0))),
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
    status, body = _call(access, "GET", "", timeout)
    if status != 200:
        raise SessionUnknown(_refusal(status, body, access))
    try:
        return _facts(json.loads(body))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise SessionUnknown("the manager's answer is not a session's description") from error


def extend(access: Access, timeout: float = TIMEOUT) -> float | None:
    """Keep the session from ending; blocks. Seconds until it ends now at the earliest, None if it does not.

    Raises ``NotExtended`` with the policy's sentence, ``SessionUnknown`` when the manager cannot be asked.
    """
    status, body = _call(access, "POST", "/extend", timeout)
    try:
        told = json.loads(body)
        if status == 200:
            return None if told["ends_in"] is None else float(told["ends_in"])
        if status in (400, 412):
            raise NotExtended(str(told["msg"]))
    except (ValueError, TypeError, KeyError) as error:
        raise SessionUnknown(_refusal(status, body, access)) from error
    raise SessionUnknown(_refusal(status, body, access))


def _call(access: Access, method: str, path: str, timeout: float) -> tuple[int, bytes]:
    """Status and body of what the manager answers about the session. Raises ``SessionUnknown``."""
    place = urlsplit(access.url)
    secure = place.scheme == "https"
    kind = http.client.HTTPSConnection if secure else http.client.HTTPConnection
    connection = kind(place.hostname or "", place.port, timeout=timeout)
    try:
        connection.request(
            method,
            f"{place.path}/session/{quote(access.session_id, safe='')}{path}",
            headers={"Authorization": f"token {access.token}", "Accept": "application/json"},
        )
        answer = connection.getresponse()
        return answer.status, answer.read(_MOST_BYTES)
    except (OSError, http.client.HTTPException) as error:
        reason = str(error) or type(error).__name__
        raise SessionUnknown(f"the manager does not answer ({reason})") from error
    finally:
        connection.close()


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
    warning, left = ours.get("warning"), ours.get("ends_in")
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
        ends_in=None if left is None else float(left),
        warning=None
        if warning is None
        else EndWarning(str(warning["check"]), str(warning["message"]), float(warning["ends_in"])),
    )
