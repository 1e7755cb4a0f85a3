"""What administrators look after: domains, projects, policies, resource groups, presets, users' limits.

``docs/scheduling.md`` lists the fields. Bodies are objects of fields, where null means unlimited.
"""

from __future__ import annotations

from hub.api.endpoints import Access, endpoint
from hub.api.handler import ApiHandler
from spawner.sessions.administration import Administration


class AdministrationHandler(ApiHandler):
    """What these handlers share."""

    @property
    def administration(self) -> Administration:
        """The use cases."""
        return self.services.control.administration


class Records(AdministrationHandler):
    """All records of a kind."""

    paths = ("/admin/{kind}",)

    @endpoint("Domains, projects, keypair-policies, ... by name", access=Access.ADMIN)
    async def get(self, kind: str) -> None:
        """With all fields."""
        self.answer({kind: await self.administration.list(self.principal, kind)})

    @endpoint("Make a record; fields left out get their defaults", access=Access.ADMIN, status=201)
    async def post(self, kind: str) -> None:
        """The answer is the whole record."""
        made = await self.administration.create(self.principal, kind, self.given(), self.request_id)
        self.answer(made, status=201)


class Record(AdministrationHandler):
    """One record."""

    paths = ("/admin/{kind}/{name}",)

    @endpoint("One record", access=Access.ADMIN)
    async def get(self, kind: str, name: str) -> None:
        """Projects by name, id or DOMAIN/NAME."""
        self.answer(await self.administration.get(self.principal, kind, name))

    @endpoint("Change the given fields of a record", access=Access.ADMIN)
    async def patch(self, kind: str, name: str) -> None:
        """Who waits is looked at again, at once."""
        self.answer(
            await self.administration.update(
                self.principal, kind, name, self.given(), self.request_id
            )
        )

    @endpoint("Delete a record that nothing uses", access=Access.ADMIN)
    async def delete(self, kind: str, name: str) -> None:
        """Refused while something uses it."""
        await self.administration.delete(self.principal, kind, name, self.request_id)
        self.answer({})


class Member(AdministrationHandler):
    """A user's place in a project."""

    paths = ("/admin/projects/{project}/members/{user}",)

    @endpoint("Take a user into a project", access=Access.ADMIN)
    async def put(self, project: str, user: str) -> None:
        """Harmless when repeated."""
        await self._set(project, user, True)

    @endpoint("Take a user out of a project", access=Access.ADMIN)
    async def delete(self, project: str, user: str) -> None:
        """Sessions that run go on."""
        await self._set(project, user, False)

    async def _set(self, project: str, user: str, member: bool) -> None:
        self.answer(
            await self.administration.set_member(
                self.principal, project, user, member, self.request_id
            )
        )


class Recalculation(AdministrationHandler):
    """The ledger, made to agree with what runs."""

    paths = ("/resource/recalculate-usage",)

    @endpoint("Recompute what is used from live sessions", access=Access.ADMIN)
    async def post(self) -> None:
        """What was wrong and is right now."""
        done = await self.administration.repair(self.principal)
        self.answer(
            {
                "drifts": [
                    {
                        "agent": drift.agent_id,
                        "slot": drift.slot,
                        "device": drift.device_id,
                        "was": drift.was,
                        "is": drift.should,
                    }
                    for drift in done.drifts
                ],
                "freed": done.freed,
                "restored": done.restored,
            }
        )


HANDLERS = (Member, Record, Records, Recalculation)
