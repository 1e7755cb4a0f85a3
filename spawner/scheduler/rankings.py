"""Rankings: the nodes that may serve requests of one class, best first, kept in order through a pass."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Collection, Iterable, Sequence

from spawner.scheduler.nodes import FOREVER, Need, Node
from spawner.scheduler.select import Key


class Ranking:
    """The nodes that may serve one class of requests, best first, kept in order as a pass goes on.

    A class is all requests that want the same slots with the same architecture, designation and
    image preference; they differ in amounts only. ``log`` is the pass's list of changed nodes: a
    ranking catches up when it is used. Nodes that cannot serve even ``least`` (the least that any
    request of the class wants of each slot) leave for good, because nodes only get fuller in a pass.
    The cost of a placement is thus a search in a sorted list, not a walk over all nodes.
    """

    __slots__ = ("_cursor", "_entries", "_key", "_keys", "_least", "_log", "_nodes")

    def __init__(
        self, nodes: Iterable[Node], key: Callable[[Node], Key], least: Need, log: Sequence[Node]
    ) -> None:
        self._key = key
        self._least = least
        self._log = log
        self._cursor = len(log)
        self._nodes = {node.index: node for node in nodes if node.has(least)}
        self._keys = {index: key(node) for index, node in self._nodes.items()}
        self._entries = sorted((rank, index) for index, rank in self._keys.items())

    def pick(
        self,
        need: Need,
        ends_at: float = FOREVER,
        avoid: Collection[str] = (),
        accept: Callable[[Node], bool] | None = None,
    ) -> Node | None:
        """The best node that fits ``need`` until ``ends_at`` and that ``accept`` accepts.

        One outside ``avoid`` (agent ids) if there is any.
        """
        self._catch_up()
        spare: Node | None = None
        chosen: Node | None = None
        gone: list[int] = []
        for _, index in self._entries:
            node = self._nodes[index]
            if not node.fits(need, ends_at):
                if not node.has(self._least):
                    gone.append(index)
            elif accept is not None and not accept(node):
                continue
            elif node.agent_id not in avoid:
                chosen = node
                break
            elif spare is None:
                spare = node
        if gone:
            for index in gone:
                del self._keys[index]
            self._entries = [entry for entry in self._entries if entry[1] in self._keys]
        return chosen or spare

    def _catch_up(self) -> None:
        if self._cursor == len(self._log):
            return
        for index in {node.index for node in self._log[self._cursor :]}:
            rank = self._keys.pop(index, None)
            if rank is None:
                continue
            del self._entries[bisect_left(self._entries, (rank, index))]
            node = self._nodes[index]
            if node.has(self._least):
                self._keys[index] = rank = self._key(node)
                insort(self._entries, (rank, index))
        self._cursor = len(self._log)
