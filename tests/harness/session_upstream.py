"""A small manager that tells of one session over real HTTP, for what runs inside a session."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

TOKEN = "the-session's-token"
SESSION_ID = "0e6f6c1e-1d1c-4b55-8f6e-2f6f6f6f6f6f"


def description(**changes: Any) -> dict[str, Any]:
    """What the manager answers to ``GET /session/{s}``, as far as a session reads it."""
    return {
        "sessionId": SESSION_ID,
        "sessionName": "ada-lab",
        "status": "RUNNING",
        "image": "perijove/jupyterlab:latest",
        "resourceGroup": "default",
        "groupName": "research",
        "creationTime": "2026-01-01T00:00:00+00:00",
        "age": 754_000,
        "perijove": {
            "owner": "ada",
            "message": "running",
            "resources": {"cuda.device": "1 GPU", "mem": "4 GiB of memory", "cpu": "2 CPUs"},
        },
        **changes,
    }


class Upstream:
    """Answers with ``status`` and ``body``; remembers every request as path and Authorization header."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.status, self.body = 200, json.dumps(description()).encode()
        self.headers: dict[str, str] = {}
        self.asked: list[tuple[str, str | None]] = []

    def environ(self) -> dict[str, str]:
        """The variables of a session that may ask this manager."""
        return {
            "PERIJOVE_API_URL": self.url + "/",
            "PERIJOVE_SESSION_ID": SESSION_ID,
            "PERIJOVE_SESSION_NAME": "ada-lab",
            "JUPYTERHUB_API_TOKEN": TOKEN,
        }

    def tell(self, **changes: Any) -> None:
        """Answer with a description that has these fields."""
        self.status, self.body = 200, json.dumps(description(**changes)).encode()


@contextmanager
def upstream() -> Iterator[Upstream]:
    """A manager on a free port of this host."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            told.asked.append((self.path, self.headers["Authorization"]))
            self.send_response(told.status)
            for name, value in told.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(told.body)))
            self.end_headers()
            self.wfile.write(told.body)

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    told = Upstream(f"http://127.0.0.1:{server.server_address[1]}/services/perijove")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield told
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
