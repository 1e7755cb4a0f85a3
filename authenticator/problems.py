"""Errors that reach people: a slug for programs, a sentence for the reader, and data.

Every room raises these; the API writes them as ``application/problem+json``. Slugs, titles and HTTP
statuses are those of Backend.AI's manager, so that its published clients understand them.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

PROBLEM_BASE = "https://api.backend.ai/probs/"
WRONG_CREDENTIALS = "Invalid username or password"
"""The one sentence for an unknown user, a wrong password and a disabled user."""


class Problem(Exception):
    """An error with a slug, an HTTP status, a title, an optional sentence and optional data."""

    slug: ClassVar[str] = "internal-server-error"
    status: ClassVar[int] = 500
    title: ClassVar[str] = "Internal server error."

    def __init__(self, message: str | None = None, data: Any = None) -> None:
        super().__init__(message or self.title)
        self.message = message
        self.data = data

    def body(self) -> dict[str, Any]:
        """The JSON object of the error body."""
        answer: dict[str, Any] = {"type": PROBLEM_BASE + self.slug, "title": self.problem_title}
        if self.message is not None:
            answer["msg"] = self.message
        if self.data is not None:
            answer["data"] = self.data
        return answer

    @property
    def problem_title(self) -> str:
        """Title as written in the body; subclasses may name the object in it."""
        return self.title


class InvalidParameters(Problem):
    """Bad input; ``data`` maps each offending field to a sentence with its value and what is allowed."""

    slug, status, title = "invalid-api-params", 400, "Missing or invalid API parameters."

    def __init__(self, fields: Mapping[str, str], message: str = "Input validation error") -> None:
        super().__init__(message, dict(fields))
        self.fields = dict(fields)

    def sentence(self) -> str:
        """All field errors as one readable line."""
        return "; ".join(f"{field}: {reason}" for field, reason in self.fields.items())


class BadRequest(Problem):
    """A well-formed request that cannot be done as asked."""

    slug, status, title = "generic-bad-request", 400, "Bad request."


class InvalidAuthParameters(Problem):
    """The authorization headers are missing parts or cannot be read."""

    slug, status = "invalid-auth-params", 400
    title = "Missing or invalid authorization parameters."


class AuthFailed(Problem):
    """Nobody is known by these credentials."""

    slug, status, title = "auth-failed", 401, "Credential/signature mismatch."


class Forbidden(Problem):
    """Known, but not allowed."""

    slug, status, title = "generic-forbidden", 403, "Forbidden operation."


class NotFound(Problem):
    """There is no such object, or the caller may not know of it: both look the same."""

    slug, status, title = "object-not-found", 404, "No such object."

    def __init__(self, what: str, message: str | None = None, data: Any = None) -> None:
        self.what = what
        super().__init__(message, data)

    @property
    def problem_title(self) -> str:
        """``No such <object>.``"""
        return f"No such {self.what}."


class UnknownPath(Problem):
    """No route has this path."""

    slug, status, title = "url-not-found", 404, "Unknown URL path."


class MethodNotAllowed(Problem):
    """The route exists, the method does not."""

    slug, status, title = "method-not-allowed", 405, "HTTP Method Not Allowed."


class SessionAlreadyExists(Problem):
    """A live session has this name and reuse was not asked for (or cannot be)."""

    slug, status = "session-already-exists", 400
    title = "The session already exists but you requested not to reuse existing one."


class TooManySessionsMatched(Problem):
    """A name or prefix fits several sessions; ``data.matches`` lists them."""

    slug, status, title = "too-many-sessions-matched", 404, "Too many sessions matched."


class FolderAlreadyExists(Problem):
    """The owner already has a folder with this name."""

    slug, status = "vfolder-already-exists", 400
    title = "The virtual folder already exists with the same name."


class FolderOperationFailed(Problem):
    """The folder cannot be changed as asked."""

    slug, status, title = "vfolder-operation-failed", 400, "Virtual folder operation has failed."


class QuotaExceeded(Problem):
    """A policy limit would be passed."""

    slug, status, title = "quota-exceeded", 412, "You have reached your resource limit."


class RateLimited(Problem):
    """Too many requests or log-in attempts; ``retry_after`` says when to come back."""

    slug, status, title = "rate-limit-exceeded", 429, "You have reached your API query rate limit."

    def __init__(self, message: str | None = None, retry_after: float | None = None) -> None:
        super().__init__(message, None if retry_after is None else {"retry_after": retry_after})
        self.retry_after = retry_after


class Unavailable(Problem):
    """Cannot be served now; try again."""

    slug, status, title = "service-unavailable", 503, "Service unavailable."


class AgentUnavailable(Problem):
    """The node that holds the session cannot be reached now."""

    slug, status, title = "instance-not-available", 503, "There is no available instance."


class TooLarge(Problem):
    """The request body is longer than the manager reads."""

    slug, status, title = "request-too-large", 413, "The request is too large."
