"""What agents may tell of measures."""

from __future__ import annotations

import datetime as dt
import uuid
from typing import Any

import pytest

from authenticator.problems import NotFound
from spawner.agent.protocol import Measures, ProtocolError
from spawner.sessions.statistics import MOST_METRICS, Statistics
from tests.harness.plane import FINISHED, Rig, until

NOW = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
SHAPE = {"current": "1"}


def measures(**facts: Any) -> Measures:
    return Measures(**{"at": 0.0, "node": {}, "devices": {}, "kernels": {}, **facts})


def test_the_newest_measures_replace_the_others() -> None:
    statistics, kernel = Statistics(), uuid.uuid4()
    statistics.take("node", measures(kernels={str(kernel): {"mem": SHAPE}}), NOW)
    assert statistics.kernel("node", kernel) == {"mem": SHAPE}
    assert statistics.kernel("other", kernel) is None
    statistics.take("node", measures(), NOW)
    assert statistics.kernel("node", kernel) is None


@pytest.mark.parametrize(
    ("facts", "sentence"),
    [
        ({"kernels": {"k": {"mem": 1}}}, r"kernels\.k\.mem is not an object"),
        ({"kernels": {"k": []}}, r"kernels\.k is not an object"),
        ({"node": {f"m{i}": SHAPE for i in range(MOST_METRICS + 1)}}, "node has 65 entries"),
        ({"node": {"m" * 65: SHAPE}}, "at most 64 characters"),
        ({"devices": {"mem": 1}}, r"devices\.mem is not an object"),
    ],
)
def test_wrong_measures_are_named(facts: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ProtocolError, match=sentence):
        Statistics().take("node", measures(**facts), NOW)


async def test_owners_and_prometheus_see_live_measures(plane: Rig) -> None:
    agent = await plane.agent()
    ada, bob = await plane.user(), await plane.user("bob")
    detail = await plane.run(ada)
    kernel = str(detail.main.id)
    foreign = str(uuid.uuid4())
    shape = {"current": "512", "capacity": "1024", "pct": "50"}
    agent.say(
        measures(node={"mem": shape}, kernels={kernel: {"mem": shape}, foreign: {"mem": shape}})
    )

    async def told() -> Any:
        return (await plane.plane.observing.measures(ada, detail.session.name))[detail.main.id]

    assert await until(told, lambda metrics: metrics == {"mem": shape})
    with pytest.raises(NotFound):
        await plane.plane.observing.measures(bob, str(detail.session.id))
    text = (await plane.plane.render_metrics()).decode()
    assert 'perijove_node_measure{agent="node-1",metric="mem",value="pct"} 50.0' in text
    [line] = [each for each in text.splitlines() if kernel in each and 'value="current"' in each]
    assert 'user="ada"' in line
    assert line.endswith(" 512.0")
    assert foreign not in text, "a kernel that is not there makes no series"


async def test_what_was_measured_last_outlives_the_agent(plane: Rig) -> None:
    """It comes back with no memory of a kernel that ended meanwhile."""
    agent = await plane.agent()
    ada = await plane.user()
    detail = await plane.run(ada)
    kernel = str(detail.main.id)
    agent.say(measures(kernels={kernel: {"mem": SHAPE}, "no-id": {"mem": SHAPE}}))

    async def told() -> Any:
        return (await plane.plane.observing.measures(ada, detail.session.name))[detail.main.id]

    await until(told, lambda metrics: metrics == {"mem": SHAPE})
    await agent.disconnect()
    await until(lambda: plane.kernel(detail), lambda row: row.last_stat == {"mem": SHAPE})
    assert await told() == {"mem": SHAPE}
    agent.kernels.clear()
    await plane.connect(agent)
    ended = await plane.wait(detail, *FINISHED)
    assert ended.main.last_stat == {"mem": SHAPE}
