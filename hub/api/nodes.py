"""Nodes for administrators: who they are, closing, emptying and removing them, and the tokens that they join with."""

from __future__ import annotations

import uuid
from dataclasses import asdict, dataclass

from authenticator.problems import InvalidParameters
from hub.api import views
from hub.api.endpoints import Access, endpoint
from hub.api.handler import ApiHandler
from hub.api.parameters import param
from spawner.sessions.durations import seconds_of


@dataclass(frozen=True, slots=True)
class Drain:
    """Parameters of ``POST /agents/{agent}/drain``."""

    grace: object = param(
        "Duration after which what still runs is ended, such as 1h; null: it may end when it likes.",
        default="1h",
    )


@dataclass(frozen=True, slots=True)
class Removal:
    """Parameters of ``DELETE /agents/{agent}``."""

    forced: bool = param("End the sessions of a node that is lost for ever.", default=False)


@dataclass(frozen=True, slots=True)
class Token:
    """Parameters of ``POST /agents/tokens``."""

    note: str = param("What it is for.", default="", max_length=200)
    agent: str | None = param("The only agent that may use it.", default=None, max_length=64)
    lifetime: object = param("Duration within which a node must join with it.", default="1d")


class Agents(ApiHandler):
    """Nodes."""

    paths = ("/agents",)

    @endpoint("Agents with devices, usage and sessions", access=Access.ADMIN)
    async def get(self) -> None:
        """All of them."""
        found = await self.services.control.nodes.list(self.principal)
        self.answer({"agents": [views.agent(each) for each in found]})


class Agent(ApiHandler):
    """One node."""

    paths = ("/agents/{agent}",)

    @endpoint("Take a node out of the cluster", access=Access.ADMIN, parameters=Removal, status=204)
    async def delete(self, agent: str, given: Removal) -> None:
        """It must hold nothing, or be lost for ever."""
        control = self.services.control
        await control.nodes.remove(
            self.principal, agent, forced=given.forced, request_id=self.request_id
        )
        await control.agents.drop(agent, "this agent was removed from the cluster")
        self.answer_nothing()


class Cordon(ApiHandler):
    """Keep new sessions away from a node, or let them come again."""

    paths = ("/agents/{agent}/cordon",)
    schedulable = False

    @endpoint("Schedule no further session on an agent", access=Access.ADMIN)
    async def post(self, agent: str) -> None:
        """Sessions that run there go on."""
        nodes = self.services.control.nodes
        made = await nodes.set_schedulable(self.principal, agent, self.schedulable, self.request_id)
        self.answer(views.agent(made))


class Uncordon(Cordon):
    """The way back."""

    paths = ("/agents/{agent}/uncordon",)
    schedulable = True

    @endpoint("Schedule sessions on an agent again", access=Access.ADMIN)
    async def post(self, agent: str) -> None:
        """Waiting sessions are looked at, at once; a drain ends."""
        await Cordon.post.__wrapped__(self, agent)  # type: ignore[attr-defined]  # set by functools.wraps


class AgentDrain(ApiHandler):
    """Emptying a node."""

    paths = ("/agents/{agent}/drain",)

    @endpoint("Empty a node", access=Access.ADMIN, parameters=Drain)
    async def post(self, agent: str, given: Drain) -> None:
        """Batch sessions go back to the queue at once, the others end after the grace."""
        nodes = self.services.control.nodes
        made = await nodes.drain(self.principal, agent, given.grace, self.request_id)
        self.answer(views.agent(made))


class AgentAudit(ApiHandler):
    """Whether everything is as the database says."""

    paths = ("/agents/audit",)

    @endpoint("Compare rows, agents and engines once", access=Access.OPERATOR)
    async def get(self) -> None:
        """What is under way may differ for a moment."""
        found = await self.services.control.audit.look(self.caller.principal)
        self.answer(asdict(found))


class AgentTokenList(ApiHandler):
    """Tokens that nodes join with."""

    paths = ("/agents/tokens",)

    @endpoint("Tokens of agents, without secrets", access=Access.ADMIN)
    async def get(self) -> None:
        """Oldest first, revoked ones too."""
        rows = await self.services.control.tokens.list()
        self.answer({"tokens": [views.agent_token(row) for row in rows]})

    @endpoint(
        "Make a token with which one node joins", access=Access.ADMIN, parameters=Token, status=201
    )
    async def post(self, given: Token) -> None:
        """The secret is shown this once."""
        try:
            lifetime = seconds_of(given.lifetime)
        except ValueError as error:
            raise InvalidParameters({"lifetime": str(error)}) from error
        plain, token_id = await self.services.control.tokens.create(
            given.note, given.agent, lifetime=lifetime
        )
        self.answer({"id": str(token_id), "token": plain}, status=201)


class AgentToken(ApiHandler):
    """One token."""

    paths = ("/agents/tokens/{token}",)

    @endpoint("Revoke a token of agents", access=Access.ADMIN, status=204)
    async def delete(self, token: str) -> None:
        """Agents that dialled with it are refused from now on."""
        try:
            token_id = uuid.UUID(token)
        except ValueError as error:
            raise InvalidParameters({"token": f"{token[:80]!r} is no id of a token"}) from error
        await self.services.control.tokens.revoke(token_id)
        self.services.control.agents.recheck()
        self.answer_nothing()


HANDLERS = (AgentAudit, AgentTokenList, AgentToken, Agents, Agent, Cordon, Uncordon, AgentDrain)
