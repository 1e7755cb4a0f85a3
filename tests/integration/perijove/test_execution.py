"""Code run for programs by a real kernel: queries, questions, batches, interrupts, and a kernel that dies."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from perijove import execution
from perijove.execution import DIED, KEY
from tests.harness.ports import free_port

pytestmark = [pytest.mark.integration, pytest.mark.timeout(180)]


class Repl:
    """Asks the program in a process of its own."""

    def __init__(self, port: int) -> None:
        self._port = port

    async def ask(self, mode: str, code: str = "", key: str = "secret", **more: Any) -> Any:
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        question = {"key": key, "mode": mode, "code": code, **more}
        writer.write(json.dumps(question).encode() + b"\n")
        answer = json.loads(await reader.read())
        writer.close()
        return answer

    async def run(self, mode: str, code: str, *answers: str, **more: Any) -> tuple[list[Any], Any]:
        """All output of a run, and every other status with its exit code or options."""
        console: list[Any] = []
        seen: list[Any] = []
        rest = list(answers)
        told = await self.ask(mode, code, **more)
        while True:
            console += told["console"]
            if told["status"] != "continued":
                seen.append((told["status"], told["options"] or told["exitCode"]))
            if told["status"] == "finished":
                assert rest == []
                return console, seen
            asked = told["status"] == "waiting-input"
            told = await self.ask(
                "input" if asked else "continue", rest.pop(0) if asked else "", runId=told["runId"]
            )


@pytest.fixture
async def repl(tmp_path: Path) -> AsyncIterator[Repl]:
    port = free_port()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "perijove.execution", "127.0.0.1", str(port)),
        env={**os.environ, KEY: "secret", "SHELL": "/bin/sh", "PYTHONPATH": str(Path.cwd())},
        cwd=tmp_path,
    )
    made = Repl(port)
    try:
        async with asyncio.timeout(30):
            while True:
                try:
                    await made.ask("interrupt")
                    break
                except OSError:
                    await asyncio.sleep(0.05)
        yield made
    finally:
        process.terminate()
        await process.wait()


def text(console: list[Any], kind: str = "stdout") -> str:
    return "".join(data for each, data in console if each == kind)


async def test_code_asks_and_its_state_stays(repl: Repl) -> None:
    code = "import getpass; name = input('who? '); word = getpass.getpass('word? '); name"
    console, seen = await repl.run("query", code, "ada", "secret")
    assert text(console) == "who? word? 'ada'\n"
    assert seen == [
        ("waiting-input", {"is_password": False}),
        ("waiting-input", {"is_password": True}),
        ("finished", 0),
    ]
    console, seen = await repl.run("query", "print(word); 1 / 0")
    assert (text(console), seen) == ("secret\n", [("finished", 1)])
    assert "ZeroDivisionError" in text(console, "stderr")
    assert "word" in (await repl.ask("complete", "wor"))["completions"]
    picture = "from IPython.display import SVG, HTML; display(SVG('<svg/>'), HTML('<b>x</b>'))"
    console, _ = await repl.run("query", picture)
    assert [each for each, _ in console] == ["media", "html"]


async def test_output_comes_while_code_runs(repl: Repl, tmp_path: Path) -> None:
    code = "import os, time\nprint('begun')\nwhile not os.path.exists('go'): time.sleep(.05)"
    first = await repl.ask("query", code, wait=30)
    assert (first["status"], text(first["console"])) == ("continued", "begun\n")
    assert (await repl.ask("continue", runId=first["runId"], wait=0.1))["status"] == "continued"
    (tmp_path / "go").touch()
    last = await repl.ask("continue", runId=first["runId"], wait=30)
    assert (last["status"], last["exitCode"]) == ("finished", 0)


async def test_a_batch_goes_stage_by_stage_and_its_programs_ask(repl: Repl, tmp_path: Path) -> None:
    (tmp_path / "main.py").write_text("print('hello', input('who? ')); raise SystemExit(4)")
    options = {"clean": "echo cleaned", "build": "echo built $HOME {x}", "exec": "*"}
    console, seen = await repl.run("batch", "", "ada", options=options)
    said = text(console).replace("\r\n", "\n")
    assert said == f"cleaned\nbuilt {os.environ['HOME']} {{x}}\nwho? hello ada\n"
    assert seen == [
        ("clean-finished", 0),
        ("build-finished", 0),
        ("waiting-input", {"is_password": False}),
        ("finished", 4),
    ]
    failing = {"build": "exit 3", "exec": "echo never"}
    assert await repl.run("batch", "", options=failing) == ([], [("finished", 3)])


async def test_an_interrupt_reaches_code_and_questions(repl: Repl) -> None:
    for code in ("print('begun'); import time; time.sleep(600)", "input('who? ')"):
        first = await repl.ask("query", code, wait=60)
        await repl.ask("interrupt")
        told = first
        while told["status"] != "finished":
            told = await repl.ask("continue", runId=first["runId"], wait=30)
        assert told["exitCode"] == 1
    assert (await repl.run("query", "print('well')"))[0] == [["stdout", "well\n"]]


async def test_a_dead_kernel_is_told_and_started_again(repl: Repl) -> None:
    console, seen = await repl.run("query", "import os; os._exit(1)")
    assert (console, seen) == ([], [("finished", DIED)])
    assert (await repl.run("query", "1"))[0] == [["stdout", "1\n"]]


def kernelspec(folder: Path, monkeypatch: pytest.MonkeyPatch, *argv: str) -> None:
    """Let the Python kernel of this process, and of those that it starts, be another program."""
    (folder / "kernels/python3").mkdir(parents=True)
    spec = {"argv": argv, "display_name": "none", "language": "python"}
    (folder / "kernels/python3/kernel.json").write_text(json.dumps(spec))
    monkeypatch.setenv("JUPYTER_PATH", str(folder))


@pytest.fixture
def useless_kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kernelspec(tmp_path, monkeypatch)


async def test_a_run_ends_however_the_kernel_fails(useless_kernel: None, repl: Repl) -> None:
    console, seen = await repl.run("query", "1")
    assert "the kernel cannot be used" in text(console, "stderr")
    assert seen == [("finished", DIED)]
    assert "the kernel cannot be used" in (await repl.ask("complete", "wor"))["error"]


async def test_a_kernel_that_does_not_get_ready_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = (
        "import os, pathlib, time; pathlib.Path('it').write_text(str(os.getpid())); time.sleep(600)"
    )
    kernelspec(tmp_path, monkeypatch, sys.executable, "-c", write)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(execution, "PATIENCE", 2.0)
    with pytest.raises(RuntimeError):
        await execution.Kernel().complete("wor")
    assert not Path(f"/proc/{(tmp_path / 'it').read_text()}").exists()


async def test_refusals(repl: Repl) -> None:
    assert await repl.ask("query", "1", key="wrong") == {"error": "the key is wrong"}
    assert "no run" in (await repl.ask("continue", runId="nosuch"))["error"]
    assert "one of query" in (await repl.ask("nosuch"))["error"]


async def test_endless_output_is_bounded(repl: Repl) -> None:
    told = await repl.ask("query", "for n in range(3000): print('x' * 1000)", wait=30)
    size = len(text(told["console"]))
    while told["status"] != "finished":
        told = await repl.ask("continue", runId=told["runId"], wait=30)
        assert len(text(told["console"])) <= 1024 * 1024 + 1000
    assert size <= 1024 * 1024 + 1000
