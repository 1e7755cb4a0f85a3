"""A server that takes Sentry's envelopes; or one that takes connections and never answers."""

from __future__ import annotations

import contextlib
import gzip
import http.server
import json
import queue
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Sentry:
    """What was received, one by one."""

    dsn: str = ""
    events: queue.Queue[tuple[str, dict[str, Any]]] = field(default_factory=queue.Queue)
    """Path and event."""

    def until(self, sentence: str, within: float) -> list[dict[str, Any]]:
        """Events up to the first whose exception or message has ``sentence``."""
        found: list[dict[str, Any]] = []
        while not found or sentence not in json.dumps(found[-1]):
            try:
                found.append(self.events.get(timeout=within)[1])
            except queue.Empty:
                raise AssertionError(f"no event with {sentence!r} among {found}") from None
        return found

    def rest(self) -> list[dict[str, Any]]:
        """Events that are here already."""
        return [self.events.get()[1] for _ in range(self.events.qsize())]


@contextlib.contextmanager
def receiving() -> Iterator[Sentry]:
    """A server on a free port."""
    sentry = Sentry()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            lines = body.split(b"\n")
            for head, content in zip(lines[1::2], lines[2::2], strict=False):
                if json.loads(head).get("type") == "event":
                    sentry.events.put((self.path, json.loads(content)))
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            """Not of interest."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    sentry.dsn = f"http://key@127.0.0.1:{server.server_port}/7"
    try:
        yield sentry
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextlib.contextmanager
def silent() -> Iterator[str]:
    """DSN of a server that accepts and says nothing."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(100)
        yield f"http://key@127.0.0.1:{listener.getsockname()[1]}/7"
