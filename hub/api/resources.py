"""Resources: slots, presets, groups, and the agents that administrators look after."""

from __future__ import annotations

from dataclasses import dataclass

from authenticator.principals import Scope
from hub.api import views
from hub.api.endpoints import Access, endpoint
from hub.api.handler import ApiHandler
from hub.api.parameters import param


@dataclass(frozen=True, slots=True)
class PresetCheck:
    """Parameters of ``POST /resource/check-presets``."""

    project: str | None = param("Project, by name or id.", default=None, names=("group", "project"))
    resource_group: str | None = param(
        "Resource group.", default=None, names=("scaling_group", "scalingGroup", "resource_group")
    )


@dataclass(frozen=True, slots=True)
class OfGroup:
    """Parameters of ``GET /resource/fair-share``."""

    group: str = param("Resource group.", names=("group", "resource_group"), max_length=64)


@dataclass(frozen=True, slots=True)
class WithGroup:
    """Parameters of ``GET /config/resource-slots/details``."""

    group: str | None = param(
        "Only slots of this resource group.",
        default=None,
        names=("sgroup", "scaling_group", "resource_group"),
        max_length=64,
    )


class Presets(ApiHandler):
    """Named bundles."""

    paths = ("/resource/presets",)

    @endpoint("Resource presets", scope=Scope.SESSIONS_READ)
    async def get(self) -> None:
        """By rank."""
        rows = await self.services.control.offers.presets()
        self.answer(
            {
                "presets": [
                    {
                        "name": row.name,
                        "shared_memory": None
                        if row.shared_memory is None
                        else str(row.shared_memory),
                        "resource_slots": views.slots_text(row.resource_slots),
                    }
                    for row in rows
                ]
            }
        )


class CheckPresets(ApiHandler):
    """What fits now."""

    paths = ("/resource/check-presets",)

    @endpoint(
        "Limits, usage and which presets fit now", scope=Scope.SESSIONS_READ, parameters=PresetCheck
    )
    async def post(self, given: PresetCheck) -> None:
        """Amounts are texts."""
        self.answer(
            await self.services.control.offers.check_presets(
                self.principal, project=given.project, resource_group=given.resource_group
            )
        )


class Slots(ApiHandler):
    """Kinds of resources."""

    paths = ("/config/resource-slots",)

    @endpoint("Slots and their types", access=Access.PUBLIC)
    async def get(self) -> None:
        """Slot to ``count``, ``bytes`` or ``unique``."""
        self.answer(await self.services.control.offers.slot_types())


class SlotDetails(ApiHandler):
    """How to show them."""

    paths = ("/config/resource-slots/details",)

    @endpoint(
        "Names, units and number formats of slots", access=Access.PUBLIC, parameters=WithGroup
    )
    async def get(self, given: WithGroup) -> None:
        """For user interfaces."""
        self.answer(await self.services.control.offers.slot_details(given.group))


class ScalingGroups(ApiHandler):
    """Resource groups, under Backend.AI's name."""

    paths = ("/scaling-groups",)

    @endpoint("Resource groups that the caller may use", scope=Scope.SESSIONS_READ)
    async def get(self) -> None:
        """Their names."""
        rows = await self.services.control.offers.resource_groups()
        self.answer({"scaling_groups": [{"name": row.name} for row in rows]})


class FairShare(ApiHandler):
    """Why who comes first."""

    paths = ("/resource/fair-share",)

    @endpoint(
        "What orders a fair-share resource group now", access=Access.ADMIN, parameters=OfGroup
    )
    async def get(self, given: OfGroup) -> None:
        """Domains, projects, people in projects; in each scope the next one first."""
        found = await self.services.control.offers.shares(self.principal, given.group)
        self.answer({"group": given.group, "factors": [views.share(each) for each in found]})


HANDLERS = (Presets, CheckPresets, FairShare, Slots, SlotDetails, ScalingGroups)
