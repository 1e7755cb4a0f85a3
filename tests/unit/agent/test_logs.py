"""Kept output: beginning and end, and frames that every connection takes."""

import zlib

import pytest

from spawner.agent.logs import MAX_LOG, Excerpt, frames, pack
from spawner.agent.protocol import MAX_FRAME_BYTES, KernelReport, Report, encode
from spawner.sessions.reports import LOG_TAIL
from spawner.sessions.runs import unpack


def test_beginning_and_end_of_a_long_output_are_kept() -> None:
    short = Excerpt()
    short.add(b"hello")
    assert short.text() == b"hello"
    lines = [b"%07d\n" % number for number in range(1_000_000)]
    kept = unpack(pack(lines))
    assert kept.startswith("0000000\n")
    assert kept.endswith("0999999\n")
    assert len(kept) <= MAX_LOG
    missing = int(kept.partition("[... ")[2].partition(" ")[0])
    mark = f"\n[... {missing} bytes of output are not kept ...]\n"
    assert len(kept) - len(mark) + missing == 8_000_000


def test_a_log_that_is_none_or_a_bomb_hurts_nobody() -> None:
    assert "cannot be read" in unpack(b"nonsense")
    assert len(unpack(zlib.compress(b"x" * 50_000_000))) == MAX_LOG


def test_large_logs_go_ahead_in_frames_of_their_own() -> None:
    def report(name: str, log: bytes = b"") -> KernelReport:
        return KernelReport(name, "s", 1, "TERMINATED" if log else "RUNNING", log=log)

    big = b"x" * (MAX_LOG // 2)
    every = [report("a", big), report("b"), report("c", big), report("d", big)]
    cut = frames(every, whole=True)
    assert [[each.kernel_id for each in part] for part, _ in cut] == [
        ["a", "c"],
        ["d"],
        list("abcd"),
    ]
    assert [whole for _, whole in cut] == [False, False, True]
    assert not any(each.log for each in cut[-1][0])
    assert frames([], whole=True) == [((), True)]
    assert frames([report("b")], whole=False) == [((report("b"),), False)]


@pytest.mark.parametrize("whole", [True, False])
def test_however_many_runs_ended_while_the_manager_was_away_every_frame_fits(whole: bool) -> None:
    tail, measured = "\x1b" * LOG_TAIL, {"mem": {"current": "1" * 200}}
    every = [
        KernelReport(str(n), "s", 1, "TERMINATED", log=b"x", log_tail=tail, last_stat=measured)
        for n in range(200)
    ]
    cut = frames(every, whole=whole)
    assert all(len(encode(Report(1, *each))) < MAX_FRAME_BYTES for each in cut)
    assert [each for part, is_whole in cut if not is_whole for each in part] == every
    assert [len(part) for part, is_whole in cut if is_whole] == ([200] if whole else [])
