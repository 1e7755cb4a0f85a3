"""Who is connected to a kernel: the TCP connections that come in from outside its session.

Read from ``/proc/<pid>/net`` of the kernel's network namespace. A connection counts when its local port
is one that something listens on there, and its other end is neither the kernel itself nor another member
of a network that it shares (its session's other kernels): the proxy comes through a gateway.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

LISTEN = "0A"
ESTABLISHED = "01"
CLOSED = frozenset({"04", "05", "06", "08", "09", "0B"})
"""FIN_WAIT1, FIN_WAIT2, TIME_WAIT, CLOSE_WAIT, LAST_ACK, CLOSING: it was open a moment ago."""
OPENED = ("ActiveOpens", "PassiveOpens", "AttemptFails", "EstabResets", "CurrEstab")
LOOK_AGAIN = 60.0
_MAPPED = "0000000000000000FFFF0000"
_SELF = "00000000000000000000000001000000"
_LINK_LOCAL = "000080FE"

Peer = tuple[int, str, int]
"""Local port, address of the other end as the kernel writes it, its port."""


@dataclass(frozen=True, slots=True)
class Line:
    """One socket."""

    local: str
    port: int
    peer: Peer
    state: str


@dataclass(frozen=True, slots=True)
class Incoming:
    """Connections from outside: open ones, and those that were open until a moment ago."""

    open: frozenset[Peer]
    closed: frozenset[Peer]


@dataclass(frozen=True, slots=True)
class Routes:
    """Networks that a namespace is a member of, and the gateways through which the rest of the world comes."""

    linked: tuple[tuple[int, int], ...]
    """Address and mask, as the kernel writes them."""
    gateways: frozenset[int]

    def inside(self, address: str) -> bool:
        """Whether ``address`` is the namespace's own or that of a neighbour."""
        if len(address) != 8:
            return address == _SELF or address.startswith(_LINK_LOCAL)
        number = int(address, 16)
        if number & 0xFF == 0x7F:
            return True
        on_link = any(number & mask == network for network, mask in self.linked)
        return on_link and number not in self.gateways


@dataclass(frozen=True, slots=True)
class Counted:
    """What Linux counted of TCP in a network namespace."""

    connections: tuple[int, ...]
    """Opened, failed, reset, and open now: another set of connections has other numbers."""
    segments: int
    """Received."""


def counted(text: str) -> Counted:
    """From a ``/proc/net/snmp``. Raises ``ValueError``."""
    names, values = (row.split()[1:] for row in text.splitlines() if row.startswith("Tcp:"))
    numbers = dict(zip(names, map(int, values), strict=True))
    try:
        return Counted(tuple(numbers[name] for name in OPENED), numbers["InSegs"])
    except KeyError as error:
        raise ValueError(f"no {error} in /proc/net/snmp") from error


def same(before: Counted | None, now: Counted, seconds: float) -> bool:
    """Whether the connections are certainly those of ``seconds`` ago.

    Without a segment nothing changes. With segments one may have been closed by its other end only, which
    is not counted until this end does so too: that is looked for once in a while.
    """
    if before is None or before == now:
        return before is not None
    return before.connections == now.connections and seconds < LOOK_AGAIN


def lines(text: str) -> Iterator[Line]:
    """Sockets of a ``/proc/net/tcp`` or ``tcp6``."""
    for row in text.splitlines()[1:]:
        fields = row.split(None, 4)
        if len(fields) < 4 or ":" not in fields[1]:  # a second file's title
            continue
        local, port = _address(fields[1])
        other, other_port = _address(fields[2])
        yield Line(local, port, (port, other, other_port), fields[3])


def routes(text: str) -> Routes:
    """From a ``/proc/net/route``."""
    linked, gateways = [], set()
    for row in text.splitlines()[1:]:
        fields = row.split()
        if len(fields) < 8:
            continue
        destination, gateway, mask = int(fields[1], 16), int(fields[2], 16), int(fields[7], 16)
        if gateway:
            gateways.add(gateway)
        elif mask:
            linked.append((destination, mask))
    return Routes(tuple(linked), frozenset(gateways))


def candidates(text: str) -> tuple[frozenset[Peer], frozenset[Peer]]:
    """Peers of ports that are listened on: of open connections, and of ones just closed."""
    rows = list(lines(text))
    listening = {row.port for row in rows if row.state == LISTEN}
    mine = [row for row in rows if row.port in listening]
    opened = frozenset(row.peer for row in mine if row.state == ESTABLISHED)
    return opened, frozenset(row.peer for row in mine if row.state in CLOSED)


def incoming(text: str, network: Routes) -> Incoming:
    """Connections of ``text`` (``tcp`` and ``tcp6`` one after the other) that come from outside."""
    opened, closed = candidates(text)
    return Incoming(
        frozenset(peer for peer in opened if not network.inside(peer[1])),
        frozenset(peer for peer in closed if not network.inside(peer[1])),
    )


def at_ports(text: str, ports: Collection[int]) -> Incoming:
    """Connections to some ports of this host, wherever they come from."""
    opened, closed = candidates(text)
    return Incoming(
        frozenset(peer for peer in opened if peer[0] in ports),
        frozenset(peer for peer in closed if peer[0] in ports),
    )


def count(now: Incoming, before: Incoming | None) -> int:
    """Connections that were open at some time since ``before`` was seen, as far as they can be told."""
    if before is None:
        return len(now.open)
    return len(now.open | (now.closed - before.closed - before.open))


def _address(text: str) -> tuple[str, int]:
    address, _, port = text.partition(":")
    if len(address) == 32 and address.startswith(_MAPPED):
        address = address[24:]
    return address, int(port, 16)
