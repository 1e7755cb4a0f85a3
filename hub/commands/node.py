"""``perijove node``: nodes of the cluster, on the database, on the manager's host.

The manager notices at once on PostgreSQL, within half a minute on SQLite.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import ClassVar, TypeVar

from traitlets import Bool, Unicode

from authenticator.principals import Principal
from hub.commands.administration import REQUEST_ID, operator
from hub.commands.base import Command, Group, say, table
from hub.commands.records import with_store
from hub.first_start import now
from spawner.scheduler.slots import human_amount
from spawner.sessions.events import EventBus
from spawner.sessions.nodes import NodeService
from spawner.sessions.transitions import Journal
from store.database import Store

T = TypeVar("T")


class NodeCommand(Command):
    """What the commands about nodes share."""

    def with_nodes(self, work: Callable[[NodeService, Principal], Awaitable[T]]) -> T:
        """Run ``work`` as the deployment's operator."""

        async def run(store: Store) -> T:
            nodes = NodeService(Journal(store, EventBus(), now), lambda agent_id: False)
            return await work(nodes, operator())

        return with_store(self.deployment(), run)


class NodeList(NodeCommand):
    """List the nodes with what is in use on them."""

    def act(self, *arguments: str) -> None:
        """One line each."""
        views = self.with_nodes(lambda nodes, who: nodes.list(who))
        rows = [
            (
                view.id,
                view.resource_group,
                "UNWELL" if view.unwell and view.status == "ALIVE" else view.status,
                "emptied" if view.drain else "open" if view.schedulable else "closed",
                str(len(view.sessions)),
                ", ".join(
                    f"{human_amount(slot, view.used.get(slot, 0))} of {human_amount(slot, amount)}"
                    for slot, amount in sorted(view.capacity.items())
                ),
            )
            for view in views
        ]
        say(table(("NODE", "GROUP", "STATUS", "SCHEDULING", "CONTAINERS", "IN USE"), rows))
        for view in views:
            for device in view.devices:
                if fault := device["attributes"].get("fault"):
                    name = f"{view.id}: {device['slot']} {device['device_id']}"
                    say(f"{name} is out of order: {fault}")


class NodeCordon(NodeCommand):
    """Close a node to new sessions; those that run there go on."""

    arguments = ("NODE",)
    schedulable = False

    def act(self, *arguments: str) -> None:
        """Harmless when repeated."""
        (node,) = arguments
        opened = self.schedulable
        self.with_nodes(lambda nodes, who: nodes.set_schedulable(who, node, opened, REQUEST_ID))
        say(f"{node} is {'open for' if opened else 'closed to'} new sessions")


class NodeUncordon(NodeCordon):
    """Open a node for new sessions again; it is emptied no more."""

    schedulable = True


class NodeDrain(NodeCommand):
    """Empty a node.

    No new session comes, batch sessions go back to the queue at once, and others are ended after the grace."""

    arguments = ("NODE",)
    grace = Unicode("1h", help="Duration, or `none`: sessions may run as long as they like.").tag(
        config=True
    )

    def act(self, *arguments: str) -> None:
        """Say what is left on it."""
        (node,) = arguments
        grace = None if self.grace == "none" else self.grace
        view = self.with_nodes(lambda nodes, who: nodes.drain(who, node, grace, REQUEST_ID))
        say(f"{node} is being emptied; {len(view.sessions)} containers are on it now")


class NodeRemove(NodeCommand):
    """Take an empty node out of the cluster: its credential is worth nothing any more.

    With --forced one that is lost for ever, whose sessions are ended."""

    arguments = ("NODE",)
    forced = Bool(False, help="End the sessions of a lost node.").tag(config=True)

    def act(self, *arguments: str) -> None:
        """There is no way back but joining again."""
        (node,) = arguments
        forced = self.forced
        self.with_nodes(
            lambda nodes, who: nodes.remove(who, node, forced=forced, request_id=REQUEST_ID)
        )
        say(f"{node} is removed")


class NodeGroup(Group):
    """List, close, open, empty and remove the nodes. Works on the manager's host."""

    name = "perijove node"
    commands: ClassVar = {
        "list": NodeList,
        "cordon": NodeCordon,
        "uncordon": NodeUncordon,
        "drain": NodeDrain,
        "remove": NodeRemove,
    }
