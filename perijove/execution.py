"""Code that programs run in a session: a Python kernel that is asked in lines of JSON, on one port.

``python3 -m perijove.execution HOST PORT``. A connection carries one question and its answer. Questions need the key
that the platform gave to the session (``PERIJOVE_EXECUTION_KEY``): others reach the port as well. A run is polled: each
answer has what was printed since the last one, until its status is ``finished``.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import os
import sys
import uuid
from collections import OrderedDict, deque
from collections.abc import Mapping
from typing import Any

from jupyter_client.asynchronous.client import AsyncKernelClient
from jupyter_client.manager import AsyncKernelManager

KEY = "PERIJOVE_EXECUTION_KEY"
MAX_LINE = 4 * 1024 * 1024
MAX_RUNS = 100
MAX_CONSOLE = 1024 * 1024
"""Characters of output that a run keeps for whoever asks next."""
LOOK = 1.0
"""Seconds between looks at whether the kernel lives."""
WAIT = 2.0
"""Seconds that an answer may wait for something to tell."""
PATIENCE = 60.0
"""Seconds that the kernel has to start, or to find completions."""
GATHER = 0.1
"""Seconds in which output that comes in pieces is put together."""
DIED = 130
STAGES = ("clean", "build", "exec")
USUAL = {
    "clean": "true",
    "build": "[ ! -f setup.py ] || python3 -m pip install -e .",
    "exec": "python3 main.py",
}
"""What ``*`` means, by stage of a batch."""
_PROGRAM = "from perijove.programs import Program as _p; _exit_code = _p({!r}).run(); del _p"
Answer = dict[str, Any]


class Refusal(Exception):
    """A question that cannot be answered; the sentence is for whoever asked."""


class Run:
    """One run: what it printed, what it asks for, and the stages that ended."""

    def __init__(self, run_id: str) -> None:
        self.id = run_id
        self.console: list[tuple[str, Any]] = []
        self.ended: deque[Answer] = deque()
        self.question: Mapping[str, Any] | None = None
        self.answer: asyncio.Future[str | None] | None = None
        self.changed = asyncio.Event()
        self._kept = 0

    def show(self, kind: str, data: Any) -> None:
        """Keep output for the next answer; too much of it is dropped, with a word."""
        size = len(str(data))
        if self._kept + size > MAX_CONSOLE:
            if self._kept <= MAX_CONSOLE:
                self.console.append(("stderr", "\n[further output was dropped]\n"))
            self._kept = MAX_CONSOLE + 1
            return
        self._kept += size
        last = self.console[-1] if self.console else None
        if last is not None and last[0] == kind and kind in ("stdout", "stderr"):
            self.console[-1] = (kind, last[1] + data)
        else:
            self.console.append((kind, data))
        self.changed.set()

    @property
    def is_over(self) -> bool:
        """Whether nothing will happen in it any more."""
        return bool(self.ended) and self.ended[-1]["status"] == "finished"

    def end(self, status: str, code: int) -> None:
        """A stage has ended: the next answer says so, with all until here."""
        self.ended.append(self._told(status, code))
        self.changed.set()

    async def step(self, wait: float) -> Answer:
        """What there is to tell, at the latest after ``wait`` seconds."""
        if not self._tells:
            self.changed.clear()
            try:
                async with asyncio.timeout(wait):
                    await self.changed.wait()
            except TimeoutError:
                return self._told("continued", None)
        if not self.ended and self.question is None:
            await asyncio.sleep(GATHER)
        if self.ended:
            return self.ended.popleft()
        if self.question is not None:
            return self._told("waiting-input", None, self.question)
        return self._told("continued", None)

    @property
    def _tells(self) -> bool:
        return bool(self.ended or self.console or self.question is not None)

    async def ask(self, question: Mapping[str, Any]) -> str | None:
        """What the person answers; None when the run was interrupted instead."""
        self.question, self.answer = question, asyncio.get_running_loop().create_future()
        self.changed.set()
        try:
            return await self.answer
        finally:
            self.question = self.answer = None

    def tell(self, answer: str | None) -> None:
        """The person's answer."""
        if self.answer is not None and not self.answer.done():
            self.answer.set_result(answer)
            self.question = None

    def _told(
        self, status: str, code: int | None, options: Mapping[str, Any] | None = None
    ) -> Answer:
        console, self.console, self._kept = self.console, [], 0
        return {
            "runId": self.id,
            "status": status,
            "exitCode": code,
            "options": options,
            "files": [],
            "console": console,
        }


class Kernel:
    """One Python kernel, started when it is needed first, and anew when it died."""

    def __init__(self) -> None:
        self._manager: AsyncKernelManager | None = None
        self._client: AsyncKernelClient | None = None
        self._turn = asyncio.Lock()
        self._starting = asyncio.Lock()

    async def query(self, run: Run, code: str) -> None:
        """Run code; one run after the other."""
        async with self._turn:
            failed, _ = await self._execute(run, code)
        run.end("finished", failed)

    async def batch(self, run: Run, commands: Mapping[str, str]) -> None:
        """Run commands in the shell, stage by stage; a failed build ends it."""
        code = 0
        async with self._turn:
            for stage in STAGES:
                if stage not in commands:
                    continue
                died, told = await self._execute(run, _PROGRAM.format(commands[stage]))
                code = died or int(told or 0)
                if stage == "exec" or died or (stage == "build" and code):
                    break
                run.end(f"{stage}-finished", code)
        run.end("finished", code)

    async def complete(self, code: str) -> list[str]:
        """What may follow; nothing while something runs, for the kernel does one thing at a time."""
        if self._turn.locked():
            return []
        async with self._turn:
            client = await self._ready()
            try:
                reply: Any = await client.complete(code, len(code), reply=True, timeout=PATIENCE)
            except TimeoutError:
                return []
        return [str(each) for each in reply["content"].get("matches", ())]

    async def interrupt(self) -> None:
        """As if somebody pressed ^C."""
        if self._manager is not None and await self._manager.is_alive():
            await self._manager.interrupt_kernel()

    async def _execute(self, run: Run, code: str) -> tuple[int, str | None]:
        """Status of the code (0: fine), and the text of ``_exit_code``."""
        client = await self._ready()
        manager = self._manager

        async def ask(message: Mapping[str, Any]) -> None:
            content = message["content"]
            if content["prompt"]:
                run.show("stdout", content["prompt"])
            answer = await run.ask({"is_password": bool(content["password"])})
            if answer is not None:
                client.input(answer)

        work = asyncio.ensure_future(
            client.execute_interactive(
                code,
                allow_stdin=True,
                output_hook=lambda message: show(run, message),
                stdin_hook=ask,
                user_expressions={"code": "_exit_code"},
            )
        )
        while not work.done():
            await asyncio.wait({work}, timeout=LOOK)
            if not work.done() and manager is not None and not await manager.is_alive():
                work.cancel()
                await asyncio.wait({work})
                self._forget()
                return DIED, None
        content = work.result()["content"]
        told = content.get("user_expressions", {}).get("code", {}).get("data", {})
        return int(content["status"] != "ok"), told.get("text/plain")

    async def _ready(self) -> AsyncKernelClient:
        async with self._starting:
            if self._manager is not None and not await self._manager.is_alive():
                self._forget()
            if self._client is None:
                manager = AsyncKernelManager(kernel_name="python3", transport="ipc")
                await manager.start_kernel()
                client = manager.client()
                client.start_channels()
                try:
                    await client.wait_for_ready(timeout=PATIENCE)
                except RuntimeError:
                    client.stop_channels()
                    await manager.shutdown_kernel(now=True)
                    raise
                self._manager, self._client = manager, client
            return self._client

    def _forget(self) -> None:
        if self._client is not None:
            self._client.stop_channels()
        self._manager = self._client = None


def show(run: Run, message: Mapping[str, Any]) -> None:
    """What a message of the kernel shows."""
    content = message["content"]
    kind = message["msg_type"]
    if kind == "stream":
        run.show(content["name"], content["text"])
    elif kind == "error":
        run.show("stderr", "\n".join(content["traceback"]) + "\n")
    elif kind in ("display_data", "execute_result"):
        data = content["data"]
        if "image/svg+xml" in data:
            run.show("media", ["image/svg+xml", data["image/svg+xml"]])
        elif "image/png" in data:
            image = data["image/png"].replace("\n", "")
            run.show("media", ["image/png", f"data:image/png;base64,{image}"])
        elif "text/html" in data:
            run.show("html", data["text/html"])
        elif "text/plain" in data:
            run.show("stdout", data["text/plain"] + "\n")


class Server:
    """Answers questions."""

    def __init__(self, key: str) -> None:
        self._key = key.encode()
        self._kernel = Kernel()
        self._runs: OrderedDict[str, Run] = OrderedDict()
        self._working: set[asyncio.Task[None]] = set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One question."""
        try:
            async with asyncio.timeout(PATIENCE):
                line = await reader.readline()
            given = json.loads(line)
            if not hmac.compare_digest(str(given.get("key")).encode(), self._key):
                raise Refusal("the key is wrong")
            answer = await self.answer(given)
        except Refusal as refusal:
            answer = {"error": str(refusal)}
        except (ValueError, AttributeError):
            answer = {"error": "the question is no JSON object in one line"}
        except (ConnectionError, TimeoutError):
            writer.close()
            return
        except Exception as error:  # noqa: BLE001 - whatever it is, who asked waits
            answer = {"error": _useless(error)}
        writer.write(json.dumps(answer).encode() + b"\n")
        writer.close()

    async def answer(self, given: Mapping[str, Any]) -> Answer:
        """The answer to a question. Raises ``Refusal``."""
        mode, code = given.get("mode"), str(given.get("code") or "")
        run = self._runs.get(str(given.get("runId")))
        wait = float(given.get("wait", WAIT))
        if not isinstance(given.get("options") or {}, dict):
            raise Refusal("options: an object with clean, build and exec")
        if mode == "complete":
            return {"status": "finished", "completions": await self._kernel.complete(code)}
        if mode == "interrupt":
            await self._kernel.interrupt()
            for each in self._runs.values():
                each.tell(None)
            return {}
        if mode in ("query", "batch") and run is None:
            run = self._begin(given, str(mode), code)
        elif mode not in ("query", "batch", "continue", "input"):
            raise Refusal(f"mode {mode!r}: one of query, batch, continue, input, complete")
        if run is None:
            raise Refusal(f"there is no run {given.get('runId')!r} that goes on")
        if mode == "input":
            run.tell(code)
        told = await run.step(wait)
        if told["status"] == "finished":
            self._runs.pop(run.id, None)
        return told

    def _begin(self, given: Mapping[str, Any], mode: str, code: str) -> Run:
        for each in [each for each in self._runs.values() if each.is_over]:
            if len(self._runs) >= MAX_RUNS:  # nobody came for its end
                del self._runs[each.id]
        if len(self._runs) >= MAX_RUNS:
            raise Refusal(f"{MAX_RUNS} runs go on: end some first")
        run = Run(str(given.get("runId") or uuid.uuid4().hex))
        self._runs[run.id] = run
        task = asyncio.create_task(self._work(run, mode, code, given.get("options") or {}))
        self._working.add(task)
        task.add_done_callback(self._working.discard)
        return run

    async def _work(self, run: Run, mode: str, code: str, options: Mapping[str, Any]) -> None:
        try:
            if mode == "query":
                await self._kernel.query(run, code)
            else:
                given = {stage: options.get(stage) for stage in STAGES}
                commands = {
                    stage: USUAL[stage] if command == "*" else str(command)
                    for stage, command in given.items()
                    if command
                }
                await self._kernel.batch(run, commands)
        except Exception as error:  # noqa: BLE001 - who asked waits for the end of the run
            run.show("stderr", f"{_useless(error)}\n")
            run.end("finished", DIED)


def _useless(error: Exception) -> str:
    return f"the kernel cannot be used: {error or type(error).__name__}"


async def main(host: str, port: int) -> None:
    """Serve until the session ends."""
    key = os.environ.get(KEY)
    if not key:
        raise SystemExit(f"perijove.execution: {KEY} is not set: nobody could ask")
    server = await asyncio.start_server(Server(key).serve, host, port, limit=MAX_LINE)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2])))
