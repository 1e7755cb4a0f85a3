"""The audit: what rows, agents and engines do not agree about, each told in a sentence."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace as changed

from authenticator.principals import Role, Via
from authenticator.problems import Forbidden
from hub.commands.audit import compare_routes
from spawner.agent.protocol import Answer, Call, DrivenKernel, FoundRun, Inventory, Share
from spawner.sessions.audit import Audit
from tests.harness.agent import FakeAgent
from tests.harness.plane import Rig, hub_launch


class HonestAgent(FakeAgent):
    """Tells what it has; ``told`` is told instead, if it is set."""

    told: Any = None

    def inventory(self) -> Inventory:
        kernels = list(self.kernels.values())
        return Inventory(
            kernels=tuple(DrivenKernel(*k.run, k.status) for k in kernels),
            runs=tuple(
                FoundRun(*k.run, "running", f"c-{k.spec.kernel_id[:8]}-1", k.spec.shares, {})
                for k in kernels
            ),
            networks=(),
            apps=(),
            leftovers=(),
        )

    def answer(self, call: Call) -> None:
        if call.method == "inventory":
            told = self.inventory() if self.told is None else self.told
            self.say(Answer(call.call_id, msgspec.to_builtins(told)))
        else:
            super().answer(call)


async def look(plane: Rig) -> Audit:
    return await plane.plane.audit.look(await plane.user("root", role=Role.SUPERADMIN))


async def test_what_agrees_and_who_may_ask(plane: Rig) -> None:
    await plane.agent(HonestAgent())
    gone = await plane.agent(HonestAgent("node-2"))
    hub = replace(await plane.user(), via=Via.HUB)
    await plane.run(hub, hub=hub_launch("lab"))
    await gone.disconnect()
    found = await look(plane)
    assert found.differences == ()
    assert sum(found.compared.values()) in (0, 1)
    assert set(found.compared) | set(found.silent) == {"node-1", "node-2"}
    assert [(route.hub, route.owner, route.server) for route in found.routes] == [
        ("hub-1", "ada", "lab")
    ]
    with pytest.raises(Forbidden):
        await plane.plane.audit.look(await plane.user())


async def test_every_kind_of_difference(plane: Rig) -> None:
    agent = await plane.agent(HonestAgent())
    await plane.run(await plane.user())
    true = agent.inventory()
    (run,), (kernel,) = true.runs, true.kernels
    less = (Share("cpu", "cpu", 1), *run.shares[1:])
    cases = {
        "the agent says nothing of it": changed(true, kernels=()),
        "the agent says CREATING": changed(true, kernels=(changed(kernel, status="CREATING"),)),
        "the engine has it not": changed(true, runs=()),
        "the engine has it exited": changed(true, runs=(changed(run, phase="exited"),)),
        "it runs as other": changed(true, runs=(changed(run, native_id="other"),)),
        "the engine gave 1 of cpu": changed(true, runs=(changed(run, shares=less),)),
        "the engine at {'80': 1}": changed(true, runs=(changed(run, ports={"80": 1}),)),
        "drives epoch 7": changed(true, kernels=(kernel, changed(kernel, epoch=7))),
        "has epoch 7 as": changed(true, runs=(run, changed(run, epoch=7))),
        "there for no session": changed(true, networks=("old",)),
        "an app of it is open": changed(true, apps=("somebody",)),
        "belongs to nobody": changed(true, leftovers=("the folder X belongs to nobody",)),
        "is no inventory": {"kernels": [1]},
    }
    for sentence, told in cases.items():
        agent.told = told
        (difference,) = (await look(plane)).differences
        assert difference.node == "node-1"
        assert sentence in difference.sentence


def test_routes() -> None:
    server = {"hub": "hub-1", "owner": "ada", "server": "", "url": "http://10.0.0.1:4000"}
    route = {"user": "ada", "server_name": "", "target": "http://10.0.0.1:4000/"}
    assert compare_routes([server], {"/user/ada/": route, "/": {"target": "x"}}) == set()
    assert compare_routes([{**server, "url": None}], {}) == set()
    cases = {
        "its route is None": ([server], {}),
        "its route is http://elsewhere": ([server], {"/": {**route, "target": "http://elsewhere"}}),
        "where nothing runs": ([], {"/user/ada/": route}),
    }
    for sentence, given in cases.items():
        ((node, about, told),) = compare_routes(*given)
        assert (node, about) == ("proxy", "ada/")
        assert sentence in told
