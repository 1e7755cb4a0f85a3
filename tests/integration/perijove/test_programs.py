"""Input of cells and of programs that cells start, in a real kernel."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.integration.perijove.kernels import EXTENSION, FrontEnd, kernel

pytestmark = [pytest.mark.integration, pytest.mark.timeout(180)]
PYTHON = sys.executable


@pytest.fixture(scope="module")
def notebook() -> Iterator[FrontEnd]:
    with kernel(EXTENSION) as started:
        yield started


def test_input_and_getpass_of_a_cell(notebook: FrontEnd) -> None:
    code = "import getpass; print(input('name? '), getpass.getpass('word? '))"
    assert notebook.run(code, ["ada", "secret"]) == ("ada secret\n", [False, True])


def test_a_shell_reads_lines(notebook: FrontEnd) -> None:
    said = notebook.run(
        "!printf 'who? '; read who; echo hello $who; read more; echo and $more", ["ada", "bob"]
    )
    assert said == ("who? hello ada\r\nand bob\r\n", [False, False])


def test_what_is_typed_is_not_shown_twice_and_passwords_never(notebook: FrontEnd) -> None:
    script = "import getpass; print(len(input('name? ')), len(getpass.getpass('word? ')))"
    said, hidden = notebook.run(f'!{PYTHON} -c "{script}"', ["ada", "secret"])
    assert said.replace("\r\n", "\n") == "name? word? \n3 6\n"
    assert hidden == [False, True]


def test_programs_that_edit_lines_themselves(notebook: FrontEnd) -> None:
    script = "import readline; print('got', input('name? '))"
    said, hidden = notebook.run(f'!{PYTHON} -c "{script}"', ["ada"])
    assert "got ada" in said
    assert hidden == [False]


def test_a_child_of_the_shell_reads_and_static_programs_need_no_library(notebook: FrontEnd) -> None:
    assert notebook.run("!true; env -i /bin/sh -c 'read x; echo $x' | tr a-z A-Z", ["ada"])[
        0
    ].endswith("ADA\r\n")
    assert notebook.run("!head -n 2 | sort", ["b", "a"])[0] == "a\r\nb\r\n"


def test_a_program_that_only_takes_its_time_asks_nothing(notebook: FrontEnd) -> None:
    assert notebook.run("!sleep 0.4; echo done; cat /dev/null; echo x | cat")[0] == "done\r\nx\r\n"


def test_the_end_of_the_input(notebook: FrontEnd) -> None:
    assert notebook.run("!cat; echo over", ["one", "\x04"])[0] == "one\r\nover\r\n"
    assert notebook.run("!cat; echo over", may_ask=False)[0] == "over\r\n"


def test_exit_codes_variables_and_refusals_are_ipythons(notebook: FrontEnd) -> None:
    assert notebook.run("!exit 3\nprint(_exit_code)")[0] == "3\n"
    assert notebook.run("!kill -9 $$\nprint(_exit_code)")[0] == "-9\n"
    assert notebook.run("x = 'ada'\n!echo {x} $x")[0] == "ada ada\r\n"
    assert "Background processes not supported" in notebook.run("!sleep 1 &")[0]
    assert notebook.run("lines = !echo one\nprint(lines)")[0] == "['one']\n"
    raised = "get_ipython().system_raise_on_error = True\n!exit 4"
    assert "CalledProcessError" in notebook.run(raised)[0]
    notebook.run("get_ipython().system_raise_on_error = False")


def test_an_interrupt_ends_the_program_and_not_the_kernel(notebook: FrontEnd) -> None:
    notebook.run("!trap 'echo bye; exit 5' INT; read x; echo $x", [None])
    assert notebook.run("print(_exit_code)")[0] == "5\n"


def test_without_the_extension_it_is_as_it_was(notebook: FrontEnd) -> None:
    notebook.run("%unload_ext perijove.programs")
    assert notebook.run("'system' in vars(get_ipython())")[1] == []
    notebook.run("%load_ext perijove.programs")
    assert notebook.run("!read x; echo $x", ["ada"])[0] == "ada\r\n"


def test_a_program_that_let_go_of_its_terminal_is_interrupted_too() -> None:
    command = "exec <&- >&- 2>&-; sleep 0.3; kill -INT $PPID; exec sleep 600"
    script = f"from perijove.programs import Program; print(Program({command!r}).run())"
    done = subprocess.run(
        [PYTHON, "-c", script], capture_output=True, text=True, timeout=30, check=False
    )
    assert (done.stderr, int(done.stdout.removeprefix("^C")) < 0) == ("", True)
