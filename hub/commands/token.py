"""``perijove token``: key pairs of users and tokens of agents."""

from __future__ import annotations

import datetime as dt
import uuid
from typing import ClassVar

from traitlets import Bool, Unicode

from authenticator.keypairs import KeyPairService
from hub.commands.base import Command, Group, UsageError, say, table
from hub.commands.records import with_store
from hub.first_start import now
from spawner.sessions.durations import seconds_of
from spawner.sessions.tokens import AgentTokens


class TokenCommand(Command):
    """What the token commands share."""

    agent = Bool(False, help="Work on agent tokens instead of key pairs of users.").tag(config=True)


class TokenCreate(TokenCommand):
    """Create a key pair for the user NAME, who signs with it from then on (the former one signs no more).

    With --agent: create a token with which one node joins; NAME (optional) binds it to that agent id. The agent
    gets a credential of its own for it, and the token is worth nothing afterwards. With --standing: a token
    with which agents dial as often as they like."""

    arguments = ("NAME?",)
    note = Unicode("", help="What the agent token is for.").tag(config=True)
    lifetime = Unicode("1d", help="How long a node may take to join with the token.").tag(
        config=True
    )
    standing = Bool(False, help="Whether the agent token may be used again and again.").tag(
        config=True
    )

    def act(self, *arguments: str) -> None:
        """Create it and show the secret once."""
        name = arguments[0] if arguments else None
        if name is None and not self.agent:
            raise UsageError("usage: perijove token create NAME, or perijove token create --agent")
        if name is None or self.agent:
            lifetime = None if self.standing else self._seconds()
            token, token_id = with_store(
                self.deployment(),
                lambda store: AgentTokens(store, now).create(self.note, name, lifetime=lifetime),
            )
            say(f"Agent token {token_id}; put it into a file, and run on the node:")
            say("  perijove agent --manager-url URL --token-file FILE")
            say(f"Token, shown only now: {token}")
            return
        pair = with_store(self.deployment(), lambda store: KeyPairService(store, now).create(name))
        say(f"Access key: {pair.access_key}")
        say(f"Secret key, shown only now: {pair.secret_key}")

    def _seconds(self) -> float:
        try:
            return seconds_of(self.lifetime)
        except ValueError as error:
            raise UsageError(f"lifetime: {error}") from error


class TokenList(TokenCommand):
    """List the key pairs (of the user NAME, if given), or with --agent the agent tokens."""

    arguments = ("NAME?",)

    def act(self, *arguments: str) -> None:
        """One line each, without secrets."""
        if self.agent:
            tokens = with_store(self.deployment(), lambda store: AgentTokens(store, now).list())
            rows = [
                (
                    str(row.id),
                    row.kind,
                    row.agent_id or "any",
                    "revoked" if row.revoked_at else "valid",
                    _day(row.created_at),
                    _day(row.used_at),
                    row.note,
                )
                for row in tokens
            ]
            say(table(("ID", "KIND", "AGENT", "STATE", "CREATED", "USED", "NOTE"), rows))
            return
        name = arguments[0] if arguments else None
        pairs = with_store(self.deployment(), lambda store: KeyPairService(store, now).list(name))
        say(
            table(
                ("ACCESS KEY", "USER", "POLICY", "STATE", "CREATED", "LAST USED"),
                [
                    (
                        pair.access_key,
                        pair.username,
                        pair.policy,
                        "revoked" if not pair.is_active else "signs" if pair.is_main else "former",
                        _day(pair.created_at),
                        _day(pair.last_used),
                    )
                    for pair in pairs
                ],
            )
        )


class TokenRevoke(TokenCommand):
    """Revoke the key pair with access key KEY, or with --agent the agent token with id KEY."""

    arguments = ("KEY",)

    def act(self, *arguments: str) -> None:
        """Revoke it; there is no way back."""
        (key,) = arguments
        token_id = _token_id(key) if self.agent else None
        if token_id is None:
            with_store(self.deployment(), lambda store: KeyPairService(store, now).revoke(key))
            say(f"The key pair {key} signs no more")
            return
        with_store(self.deployment(), lambda store: AgentTokens(store, now).revoke(token_id))
        say(f"The agent token {token_id} is revoked; agents that use it are refused from now on")


class TokenGroup(Group):
    """Create, list and revoke key pairs of users and tokens of agents."""

    name = "perijove token"
    commands: ClassVar = {"create": TokenCreate, "list": TokenList, "revoke": TokenRevoke}


def _day(moment: dt.datetime | None) -> str:
    return "never" if moment is None else f"{moment:%Y-%m-%d %H:%M}"


def _token_id(text: str) -> uuid.UUID:
    try:
        return uuid.UUID(text)
    except ValueError as error:
        raise UsageError(
            f"{text!r} is no id of an agent token; `perijove token list --agent` shows them"
        ) from error
