"""The folder of a run of the process engine, on which others are at work meanwhile."""

from __future__ import annotations

import shutil
from pathlib import Path

from spawner.agent.engines.process_table import ProcessId
from spawner.agent.engines.scratch import Run, Scratch

RUN = Run("k", "s", 1, ("true",), {}, "/", (), (), None, ())


class Vanishing(Scratch):
    """Somebody removes the folder just after its first process was looked at."""

    def process(self) -> ProcessId | None:
        found = super().process()
        shutil.rmtree(self.folder)
        return found


def test_a_folder_that_is_removed_while_it_is_read_is_of_a_run_that_ended(tmp_path: Path) -> None:
    scratch = Vanishing(tmp_path / "k-1")
    scratch.write(RUN)
    (scratch.folder / "process").write_text("boot\n7 (sh) S" + " 0" * 30)
    state = scratch.state(RUN, oom_killed=False)
    assert (state.phase, state.started_at, state.ended_at) == ("exited", None, None)


def test_what_cannot_be_noted_ends_nothing(tmp_path: Path) -> None:
    scratch = Scratch(tmp_path / "k-1")
    scratch.note_out_of_memory()
    scratch.note("its folder is gone")
    scratch.log.mkdir(parents=True)
    scratch.note("its log cannot be written")
    scratch.bound_log()
