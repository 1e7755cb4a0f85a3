"""Slots and devices that only an agent's plug-in knows are counted, shown and scheduled rightly."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec
import pytest

from spawner.agent.protocol import DeviceReport, Hello, ProtocolError, SlotMetadata
from spawner.scheduler.slots import SlotType, kind_of, parse_amount
from spawner.sessions.slotkinds import record, refresh
from spawner.sessions.snapshot import read_snapshot
from tests.harness.agent import FakeAgent
from tests.harness.plane import Rig

ANVIL = SlotMetadata(
    "anvil.store", "Anvil store", "Memory of anvils", "anvil memory", "GiB", "anvil",
    type="bytes", quantum=1, binary=True, round_length=1,
)  # fmt: skip


@dataclass
class Anvils(FakeAgent):
    """Offers two linked anvils, one of them masked."""

    def hello(self) -> Hello:
        ours = (
            DeviceReport("anvil.store", "a", 2**34, links=("b",), reserved=2**20),
            DeviceReport("anvil.store", "b", 0, links=("a",), masked=True),
        )
        plain = super().hello()
        return msgspec.structs.replace(plain, devices=(*plain.devices, *ours), slots=(ANVIL,))


async def test_a_foreign_slot_shows_up(plane: Rig) -> None:
    await plane.agent(Anvils())
    offers = plane.plane.offers
    assert (await offers.slot_types())["anvil.store"] == "bytes"
    details = await offers.slot_details()
    assert details["anvil.store"] == {
        "slot_name": "anvil.store",
        "description": "Memory of anvils",
        "human_readable_name": "Anvil store",
        "display_unit": "GiB",
        "number_format": {"binary": True, "round_length": 1},
        "display_icon": "anvil",
    }
    assert details["cpu"]["display_unit"] == "CPU"
    assert details["cuda.shares"]["number_format"] == {"binary": False, "round_length": 2}
    assert parse_amount("anvil.store", "1g") == 2**30
    assert kind_of("anvil.store").type is SlotType.BYTES


async def test_slots_of_a_group_are_those_of_its_nodes(plane: Rig) -> None:
    await plane.agent(Anvils())
    offers = plane.plane.offers
    assert set(await offers.slot_details("default")) == {"cpu", "mem", "anvil.store"}
    assert set(await offers.slot_details("unheard-of")) == {"cpu", "mem"}


async def test_partitions_are_of_the_type_that_backendai_names(plane: Rig) -> None:
    await plane.agent(FakeAgent(amounts={"cpu": "1", "cuda.device:1g.10gb-mig": 1}))
    types = await plane.plane.offers.slot_types()
    assert types["cuda.device:1g.10gb-mig"] == "unique"


async def test_links_and_masks_reach_the_scheduler(plane: Rig) -> None:
    await plane.agent(Anvils())
    reading = await plane.store.read(lambda db: read_snapshot(db, plane.clock()))
    (agent,) = reading.snapshot.agents
    first, second = (device for device in agent.devices if device.slot == "anvil.store")
    assert (first.capacity, first.links, first.masked) == (2**34, frozenset({"b"}), False)
    assert (second.capacity, second.masked) == (0, True)


async def test_known_slots_are_not_redefined(plane: Rig) -> None:
    lie = msgspec.structs.replace(ANVIL, name="cpu")
    await plane.store.write(lambda db: record(db, (lie,)))
    assert kind_of("cpu").type is SlotType.COUNT
    assert (await plane.store.read(refresh))["cpu"]["type"] == "bytes"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [({"type": "odd"}, "type 'odd'"), ({"quantum": 0}, "quantum of 0"), ({"name": ""}, "slot ''")],
)
async def test_nonsense_is_refused(plane: Rig, change: dict[str, object], sentence: str) -> None:
    wrong = msgspec.structs.replace(ANVIL, **change)
    with pytest.raises(ProtocolError, match=sentence):
        await plane.store.write(lambda db: record(db, (wrong,)))
