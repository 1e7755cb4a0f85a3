"""A real Python kernel, and a front end that answers what its programs ask."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_client.manager import KernelManager, start_new_kernel

EXTENSION = "--InteractiveShellApp.extra_extensions=['perijove.programs']"
PATIENCE = 60.0


class FrontEnd:
    """What a notebook does: runs cells, shows their output, asks the person."""

    def __init__(self, manager: KernelManager, client: BlockingKernelClient) -> None:
        self._manager, self._client = manager, client

    def run(
        self, code: str, answers: Sequence[str | None] = (), *, may_ask: bool = True
    ) -> tuple[str, list[bool]]:
        """Output of a cell, and of each question whether the answer was hidden; an answer None interrupts."""
        rest = list(answers)
        hidden: list[bool] = []
        output: list[str] = []

        def ask(message: dict[str, Any]) -> None:
            hidden.append(message["content"]["password"])
            answer = rest.pop(0)
            if answer is None:
                self._manager.interrupt_kernel()
            else:
                self._client.input(answer)

        def show(message: dict[str, Any]) -> None:
            content = message["content"]
            if message["msg_type"] == "stream":
                output.append(content["text"])
            elif message["msg_type"] == "error":
                output.append(f"{content['ename']}: {content['evalue']}\n")

        self._client.execute_interactive(
            code, allow_stdin=may_ask, stdin_hook=ask, output_hook=show, timeout=PATIENCE
        )
        assert rest == [], f"it did not ask: {''.join(output)}"
        return "".join(output), hidden


@contextmanager
def kernel(*arguments: str) -> Iterator[FrontEnd]:
    """A kernel of this Python."""
    environ = {**os.environ, "SHELL": "/bin/sh"}
    manager, client = start_new_kernel(
        kernel_name="python3", extra_arguments=list(arguments), env=environ
    )
    try:
        yield FrontEnd(manager, client)
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
