"""What fits a node: never more than there is, and nothing always."""

from __future__ import annotations

import pytest

from spawner.agent.admission import Refused, check
from spawner.agent.protocol import DeviceReport, Share

CPU = DeviceReport("cpu", "0", 2_000_000)


def test_what_is_left_may_be_taken_and_no_more() -> None:
    held = [Share("cpu", "0", 1_500_000)]
    check([Share("cpu", "0", 500_000)], [CPU], held)
    with pytest.raises(Refused, match=r"1 of cpu 0 were planned for it, 0\.5 are free"):
        check([Share("cpu", "0", 1_000_000)], [CPU], held)
    with pytest.raises(Refused, match=r"its node has no cuda\.device 7"):
        check([Share("cuda.device", "7", 1_000_000)], [CPU], held)


def test_nothing_fits_also_a_device_that_went_away_while_others_hold_it() -> None:
    check([Share("cuda.shares", "0", 0)], [CPU], [Share("cuda.shares", "0", 500_000)])
