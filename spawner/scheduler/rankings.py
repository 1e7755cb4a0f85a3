"""Rankings: the nodes that may serve requests of one class, best first, kept in order through a pass."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Collection, Iterable, Sequence

from spawner.scheduler.nodes import FOREVER, Need, Node
from spawner.scheduler.select import Key

BLOCK = 64
"""Nodes per block; blocks are split at twice the number."""

Entry = tuple[Key, int]


class Block:
    """Neighbours in a ranking. ``most``: no node in it has more free of any slot asked for."""

    __slots__ = ("entries", "most")

    def __init__(self, entries: list[Entry]) -> None:
        self.entries = entries
        self.most: dict[str, int] = {}

    def measure(self, nodes: dict[int, Node], slots: Iterable[str]) -> None:
        """Find out what the nodes have free at most."""
        frees = [nodes[index].free for _, index in self.entries]
        self.most = {slot: max((free.get(slot, 0) for free in frees), default=0) for slot in slots}

    def may_have(self, need: Need) -> bool:
        """False when surely no node of it has ``need`` free."""
        most = self.most
        for slot, amount in need:  # noqa: SIM110 - a generator costs three times as much here
            if most[slot] < amount:
                return False
        return True


class Ranking:
    """The nodes that may serve one class of requests, best first, kept in order as a pass goes on.

    A class is all requests that want the same slots with the same architecture, designation, session
    group and image preference; they differ in amounts only. ``log`` is the pass's list of changed
    nodes: a ranking catches up when it is used. Nodes that cannot serve even ``least`` (the least that
    any request of the class wants of each slot) leave for good, because nodes only get fuller in a
    pass. The cost of a placement is thus a search in sorted blocks, of which those without a node
    that has enough are passed over as a whole.
    """

    __slots__ = ("_blocks", "_cursor", "_key", "_keys", "_least", "_log", "_nodes", "_slots")

    def __init__(
        self, nodes: Iterable[Node], key: Callable[[Node], Key], least: Need, log: Sequence[Node]
    ) -> None:
        self._key = key
        self._least = least
        self._slots = tuple(slot for slot, _ in least)
        self._log = log
        self._cursor = len(log)
        self._nodes = {node.index: node for node in nodes if node.has(least)}
        self._keys = {index: key(node) for index, node in self._nodes.items()}
        entries = sorted((rank, index) for index, rank in self._keys.items())
        self._blocks = [Block(entries[at : at + BLOCK]) for at in range(0, len(entries), BLOCK)]
        for block in self._blocks:
            block.measure(self._nodes, self._slots)

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
        if self._cursor < len(self._log):
            self._catch_up()
        emptied: list[Block] = []
        found = self._search(need, ends_at, avoid, accept, emptied)
        if emptied:
            self._blocks = [block for block in self._blocks if block.entries]
        return found

    def _search(
        self,
        need: Need,
        ends_at: float,
        avoid: Collection[str],
        accept: Callable[[Node], bool] | None,
        emptied: list[Block],
    ) -> Node | None:
        spare: Node | None = None
        nodes = self._nodes
        for block in self._blocks:
            if not block.may_have(need):
                continue
            fruitless = True
            for _, index in block.entries:
                node = nodes[index]
                if not node.fits(need, ends_at):
                    continue
                fruitless = False
                if accept is not None and not accept(node):
                    continue
                if node.agent_id not in avoid:
                    return node
                if spare is None:
                    spare = node
            if fruitless:
                self._tidy(block)
                if not block.entries:
                    emptied.append(block)
        return spare

    def _tidy(self, block: Block) -> None:
        """Let go of nodes that are too full for everybody, and measure the others."""
        nodes, least = self._nodes, self._least
        kept = [entry for entry in block.entries if nodes[entry[1]].has(least)]
        if len(kept) < len(block.entries):
            for _, index in block.entries:
                if not nodes[index].has(least):
                    del self._keys[index]
            block.entries = kept
        block.measure(nodes, self._slots)

    def _catch_up(self) -> None:
        log = self._log
        since, self._cursor = self._cursor, len(log)
        indices = {log[-1].index} if since + 1 == len(log) else {n.index for n in log[since:]}
        for index in indices:
            rank = self._keys.pop(index, None)
            if rank is None:
                continue
            place = bisect_left(self._blocks, (rank, index), key=_last)
            block = self._blocks[place]
            entries = block.entries
            del entries[bisect_left(entries, (rank, index))]
            node = self._nodes[index]
            stays = node.has(self._least)
            if stays:
                rank = self._key(node)
                last = place + 1 == len(self._blocks)
                if entries and (
                    (place == 0 or entries[0] < (rank, index))
                    and (last or (rank, index) < entries[-1])
                ):  # it got fuller, so that what its block has at most still holds
                    self._keys[index] = rank
                    insort(entries, (rank, index))
                    continue
            if not entries:
                del self._blocks[place]
            if stays:
                self._insert(index, node, rank)

    def _insert(self, index: int, node: Node, rank: Key) -> None:
        self._keys[index] = rank
        if not self._blocks:
            self._blocks.append(Block([(rank, index)]))
            self._blocks[0].measure(self._nodes, self._slots)
            return
        place = bisect_left(self._blocks, (rank, index), key=_last)
        block = self._blocks[min(place, len(self._blocks) - 1)]
        insort(block.entries, (rank, index))
        most = block.most
        for slot in self._slots:
            most[slot] = max(most[slot], node.free.get(slot, 0))
        if len(block.entries) > 2 * BLOCK:
            other = Block(block.entries[BLOCK:])
            del block.entries[BLOCK:]
            other.most = dict(most)
            self._blocks.insert(self._blocks.index(block) + 1, other)


def _last(block: Block) -> Entry:
    return block.entries[-1]
