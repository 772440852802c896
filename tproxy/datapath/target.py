"""The target of connections: the service that they go to, and counts of what became of them."""

from __future__ import annotations

from tproxy.addresses import SERVICE_ADDRESS_IPV6
from tproxy.datapath import counters
from tproxy.datapath.counters import Record
from tproxy.datapath.counts import OPEN, Counts
from tproxy.log.limit import LineLimit
from tproxy.model import Service

# Log lines of ended connections for each target: so many at once, then one in so many seconds. An operator
# who looks for a fault sees the beginning of a flood whole. What lasts is bound to 17 MB a day: 87,840 lines
# of 190 bytes. A service with ten connections an hour per guest and 300 guests still gets nearly all lines.
LINES_AT_ONCE = 200
LINE_INTERVAL = 1.0


class Target:
    """A service, and the counts of its connections, which go on across reloads while its port exists.

    ``bridge`` is a label and nothing else here: log lines show it, and ``Connections.abort_bridge`` ends the
    connections that have the same one. ``network`` and ``label`` are names for the log. A reload replaces
    ``service``; connections keep the endpoint they dialled. ``sharers`` is how many processes share the limit
    of log lines.
    """

    __slots__ = ("bridge", "counts", "label", "limited", "lines", "network", "record", "service")

    def __init__(
        self, bridge: str, service: Service, record: Record | None = None, *, sharers: int = 1
    ) -> None:
        self.bridge = bridge
        self.network = ""
        self.service = service
        self.label = service.key.in_words
        self.record = record if record is not None else counters.unshared()
        self.counts = self.record.counts
        self.limited = self.record.limited
        self.lines = LineLimit(max(LINES_AT_ONCE // sharers, 1), LINE_INTERVAL * sharers)

    @property
    def fields(self) -> dict[str, object]:
        """What a line of the log says of it, where that has fields."""
        return {"bridge": self.bridge, "network": self.network, "service": self.label}

    @property
    def open(self) -> int:
        """The open connections in this process."""
        return self.counts[OPEN]

    def failed(self, why: str) -> None:
        """Note why a connection failed, for ``tproxy status``."""
        self.record.failed(why)

    def read(self) -> Counts:
        """Return the counts as they are now."""
        return self.record.read()


def reached_at(target: Target, peer: tuple[str, int]) -> str:
    """Return the service address at which a guest has reached a target; ``peer`` is the guest's."""
    return SERVICE_ADDRESS_IPV6 if ":" in peer[0] else target.service.key.address
