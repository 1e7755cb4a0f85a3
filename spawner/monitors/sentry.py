"""Errors for Sentry. Needs ``sentry-sdk`` (extra ``sentry``)."""

from __future__ import annotations

import importlib
import importlib.metadata
import logging
import os
import re
from typing import Any

from traitlets import Float, Unicode

from spawner.monitors.base import ErrorMonitor, LoggedError, Repeats

SHORTEST_SECRET = 8
LONGEST_TEXT = 8192
HIDDEN = "[hidden]"
_SECRET_NAME = re.compile(r"SECRET|TOKEN|PASSW|CREDENTIAL|COOKIE|_KEY|DSN", re.IGNORECASE)
_SECRET_TEXT = re.compile(
    r"""(?ix)
    (\b(?:set-)?cookie["']?\s*[:=]\s*["']?) [^\r\n"']+           # a header
    | (\b(?:[\w-]{0,40}session-id|(?:jupyterhub|service)-[\w-]+|_xsrf)=["']?) [^\s;"']+
    | (\bcredential=) [^\s"',]+
    | (\b(?:bearer|token)\s+) [\w.~+/=-]{8,}
    | ((?:secret|token|passw(?:or)?d|signature|api_?key|secret_key)["']?\s*[:=]\s*["']?) [^\s"'&,;}]+
    | (://[^/\s:@]*:) [^/\s@]+ (?=@)
    """
)


class SentryMonitor(ErrorMonitor):
    """Where errors are sent. Values of variables and contents of requests are not, nor secrets in messages."""

    dsn = Unicode(help="DSN of the project. Default: the environment variable SENTRY_DSN.").tag(
        config=True
    )
    environment = Unicode("production", help="Name of this deployment there.").tag(config=True)
    sample_rate = Float(1.0, min=0, max=1, help="Part of the errors that is sent.").tag(config=True)
    ca_file = Unicode(help="Certificate authorities of the server, if it is one of your own.").tag(
        config=True
    )

    def __init__(self, **traits: Any) -> None:
        super().__init__(**traits)
        self._sdk: Any = None
        self._client: Any = None
        self._process = ""
        self._secrets: re.Pattern[str] | None = None

    def open(self, process: str) -> None:
        """Make the client; nothing is sent yet."""
        try:
            self._sdk = importlib.import_module("sentry_sdk")
        except ImportError as error:
            raise ValueError(
                "the package sentry-sdk is missing: install perijove[sentry]"
            ) from error
        self._process = process
        logging.getLogger("urllib3.connectionpool").addFilter(Repeats())
        found = {value for name, value in os.environ.items() if _SECRET_NAME.search(name)}
        secrets = [re.escape(value) for value in found if len(value) >= SHORTEST_SECRET]
        self._secrets = re.compile("|".join(secrets)) if secrets else None
        try:
            self._client = self._sdk.Client(
                dsn=self.dsn or None,
                environment=self.environment,
                release=f"perijove@{importlib.metadata.version('perijove')}",
                sample_rate=self.sample_rate,
                ca_certs=self.ca_file or None,
                # What is logged is handed on by us; nothing else in the process is touched.
                default_integrations=False,
                auto_enabling_integrations=False,
                include_local_variables=False,
                shutdown_timeout=2,
            )
        except self._sdk.utils.BadDsn as error:
            raise ValueError(f"dsn is {self.dsn!r}: {error}") from error
        if not self._client.options["dsn"]:
            raise ValueError("dsn is missing: set SentryMonitor.dsn or SENTRY_DSN")

    def capture(self, error: LoggedError) -> None:
        """Queued in the client, which sends from a thread of its own."""
        with self._sdk.new_scope() as scope:
            scope.set_client(self._client)
            scope.set_tag("process", self._process)
            event: dict[str, Any] = {"level": "error", "logger": error.logger}
            if error.exception is not None:
                event, _ = self._sdk.utils.event_from_exception(
                    error.exception, client_options=self._client.options
                )
                event |= {"level": "error", "logger": error.logger}
            event["logentry"] = {"message": error.template, "formatted": error.message}
            scope.capture_event(self._without_secrets(event))

    def _without_secrets(self, value: Any) -> Any:
        """A copy of an event in which no text holds a secret of the environment, or what looks like one."""
        if isinstance(value, dict):
            return {key: self._without_secrets(each) for key, each in value.items()}
        if isinstance(value, list | tuple):
            return [self._without_secrets(each) for each in value]
        if not isinstance(value, str):
            return value
        if self._secrets is not None:
            value = self._secrets.sub(HIDDEN, value)
        value = _SECRET_TEXT.sub(lambda found: f"{found[found.lastindex or 0]}{HIDDEN}", value)
        return value[:LONGEST_TEXT]  # last: a part of a secret is not known as one

    def close(self) -> None:
        """Waits for what is being sent."""
        if self._client is not None:
            self._client.close()
