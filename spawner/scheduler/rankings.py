"""Rankings: the nodes that may serve requests of one class, best first, kept in order through a pass."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Collection, Iterable, Sequence

from spawner.scheduler.nodes import FOREVER, Need, Node
from spawner.scheduler.select import Key

BLOCK = 64
"""Nodes per block; blocks are split at twice the number."""


class Block:
    """Neighbours in a ranking. ``most``: no node in it has more free of any slot asked for."""

    __slots__ = ("entries", "most")

    def __init__(self, entries: list[Key]) -> None:
        self.entries = entries
        self.most: dict[str, int] = {}

    def measure(self, nodes: dict[int, Node], slots: Iterable[str]) -> None:
        """Find out what the nodes have free at most."""
        frees = [nodes[entry[-1]].free for entry in self.entries]
        self.most = {slot: max([free.get(slot, 0) for free in frees], default=0) for slot in slots}

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
    group and image preference; they differ in amounts only. ``key`` rates a node, the best lowest, and
    ends with its index, so that no two are equal. ``log`` is the pass's list of changed nodes: a ranking
    catches up when it is used. Nodes that cannot serve even ``least`` (the least that any request of the
    class wants of each slot) leave for good, because nodes only get fuller in a pass. The cost of a
    placement is thus a search in sorted blocks, of which those without a node that has enough are passed
    over as a whole.
    """

    __slots__ = (
        "_blocks",
        "_cursor",
        "_key",
        "_keys",
        "_lasts",
        "_least",
        "_log",
        "_nodes",
        "_slots",
    )

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
        entries = sorted(self._keys.values())
        self._blocks = [Block(entries[at : at + BLOCK]) for at in range(0, len(entries), BLOCK)]
        self._lasts = [block.entries[-1] for block in self._blocks]
        """The last entry of each block."""
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
        fruitless: list[Block] = []
        found = self._search(need, ends_at, avoid, accept, fruitless)
        if fruitless:
            for block in fruitless:
                self._tidy(block)
            self._blocks = [block for block in self._blocks if block.entries]
            self._lasts = [block.entries[-1] for block in self._blocks]
        return found

    def _search(
        self,
        need: Need,
        ends_at: float,
        avoid: Collection[str],
        accept: Callable[[Node], bool] | None,
        fruitless: list[Block],
    ) -> Node | None:
        """What ``pick`` returns; blocks that were gone through in vain are added to ``fruitless``."""
        spare: Node | None = None
        nodes = self._nodes
        for block in self._blocks:
            if not block.may_have(need):
                continue
            vain = True
            for entry in block.entries:
                node = nodes[entry[-1]]
                if not node.fits(need, ends_at):
                    continue
                vain = False
                if accept is not None and not accept(node):
                    continue
                if node.agent_id not in avoid:
                    return node
                if spare is None:
                    spare = node
            if vain:
                fruitless.append(block)
        return spare

    def _tidy(self, block: Block) -> None:
        """Let go of nodes that are too full for everybody, and measure the others."""
        nodes, least = self._nodes, self._least
        kept = [entry for entry in block.entries if nodes[entry[-1]].has(least)]
        if len(kept) < len(block.entries):
            for entry in block.entries:
                if not nodes[entry[-1]].has(least):
                    del self._keys[entry[-1]]
            block.entries = kept
        block.measure(nodes, self._slots)

    def _catch_up(self) -> None:
        """Move the nodes that changed since the last time to where they belong now."""
        log, keys = self._log, self._keys
        since, self._cursor = self._cursor, len(log)
        indices = {log[-1].index} if since + 1 == len(log) else {n.index for n in log[since:]}
        for index in indices:
            old = keys.get(index)
            if old is None:
                continue
            place = bisect_left(self._lasts, old)
            entries = self._blocks[place].entries
            at = bisect_left(entries, old)
            node = self._nodes[index]
            if not node.has(self._least):
                del keys[index], entries[at]
                if at == len(entries):
                    self._shrunk(place)
                continue
            new = keys[index] = self._key(node)
            after = at + 1
            behind = entries[at - 1] < new if at else place == 0
            if behind and (
                new < entries[after] if after < len(entries) else place + 1 == len(self._blocks)
            ):
                entries[at] = new  # it got fuller, so that what its block has at most still holds
                self._lasts[place] = entries[-1]
                continue
            del entries[at]
            if at == len(entries):
                self._shrunk(place)
            self._insert(new, node)

    def _shrunk(self, place: int) -> None:
        """The block at ``place`` lost its last entry."""
        entries = self._blocks[place].entries
        if entries:
            self._lasts[place] = entries[-1]
        else:
            del self._blocks[place], self._lasts[place]

    def _insert(self, entry: Key, node: Node) -> None:
        if not self._blocks:
            self._blocks.append(Block([entry]))
            self._lasts.append(entry)
            self._blocks[0].measure(self._nodes, self._slots)
            return
        place = min(bisect_left(self._lasts, entry), len(self._blocks) - 1)
        block = self._blocks[place]
        entries = block.entries
        insort(entries, entry)
        self._lasts[place] = entries[-1]
        most, free = block.most, node.free
        for slot in self._slots:
            here = free.get(slot, 0)
            if here > most[slot]:
                most[slot] = here
        if len(entries) > 2 * BLOCK:
            other = Block(entries[BLOCK:])
            del entries[BLOCK:]
            other.most = dict(most)
            self._blocks.insert(place + 1, other)
            self._lasts[place] = entries[-1]
            self._lasts.insert(place + 1, other.entries[-1])
