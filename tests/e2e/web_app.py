"""A small web app that a session runs on port 9000: what it was asked, streams, redirects, cookies, a WebSocket."""

from __future__ import annotations

import asyncio
import hashlib
import json
import sys
from typing import Any

from tornado import web, websocket

PAGE = """<!DOCTYPE html><title>Echo</title><h1>A small app</h1><p id="said">-</p><script>
fetch("headers").then((answer) => answer.json()).then((told) => {
  document.title = Object.keys(told).length > 3 ? "asked" : "lost";
});
const at = new URL("ws", location.href); at.protocol = at.protocol.replace("http", "ws");
const socket = new WebSocket(at, ["other", "echo"]);
socket.onopen = () => socket.send("hello");
socket.onmessage = (event) => {
  document.getElementById("said").textContent = `${socket.protocol}: ${event.data}`;
};
</script>"""
gate = asyncio.Event()


class Page(web.RequestHandler):
    def get(self) -> None:
        self.set_header("Set-Cookie", "mine=1; Path=/; Domain=localhost")
        self.finish(PAGE)

    head = get


class Headers(web.RequestHandler):
    def get(self) -> None:
        self.finish({"path": self.request.uri, **dict(self.request.headers.get_all())})

    post = get

    def check_xsrf_cookie(self) -> None:
        pass


@web.stream_request_body
class Stream(web.RequestHandler):
    """PUT counts what comes; GET gives as much; POST gives back what it gets while it comes."""

    def prepare(self) -> None:
        self.digest, self.length = hashlib.sha256(), 0
        self.request.connection.set_max_body_size(1 << 40)  # type: ignore[union-attr]

    async def data_received(self, chunk: bytes) -> None:
        self.digest.update(chunk)
        self.length += len(chunk)
        if self.request.method == "POST":
            self.write(chunk)
            await self.flush()

    def put(self) -> None:
        self.finish(json.dumps([self.length, self.digest.hexdigest()]))

    def post(self) -> None:
        self.finish()

    async def get(self) -> None:
        piece = bytes(range(256)) * 4096
        for _ in range(int(self.get_argument("megabytes"))):
            self.write(piece)
            await self.flush()


class Gate(web.RequestHandler):
    """GET says a line, and the next when somebody else asked to POST."""

    async def get(self) -> None:
        gate.clear()
        self.write("one\n")
        await self.flush()
        await gate.wait()
        self.finish("two\n")

    def post(self) -> None:
        gate.set()


class Redirect(web.RequestHandler):
    def get(self) -> None:
        self.redirect("/headers")


class Echo(websocket.WebSocketHandler):
    def select_subprotocol(self, subprotocols: list[str]) -> str | None:
        return "echo" if "echo" in subprotocols else None

    def on_message(self, message: Any) -> None:
        if message == "close":
            self.close(4001, "as you like")
            return
        self.write_message(message, binary=isinstance(message, bytes))


async def main(port: int) -> None:
    app = web.Application(
        [
            ("/", Page),
            ("/headers", Headers),
            ("/stream", Stream),
            ("/gate", Gate),
            ("/redirect", Redirect),
            ("/ws", Echo),
        ],
        websocket_max_message_size=64 * 1024 * 1024,
    )
    app.listen(port, "0.0.0.0")
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))
