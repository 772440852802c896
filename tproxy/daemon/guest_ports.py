"""Behind which port of its bridge each guest is, as the bridge's forwarding table says.

The kernel tells of each entry of a forwarding table that comes, moves or goes (``kernel.netlink``). A table
is read only when a bridge is new here, and after messages were lost.

A MAC address is where it was seen last, as long as that port is a port of the bridge, even if the kernel has
forgotten it: a guest that was silent for some minutes is where it was. An address that moves from one guest's
port to another is at SEVERAL for CONTESTED seconds, while both ports are there: two guests use it, or one
guest uses another's. The same goes for an address in several VLANs at different ports. Uplinks are no guests'
ports: what is seen there is not known.

Guests decide how many addresses there are, so there is a limit for each port, and for the messages of the
kernel (``netlink.ForwardingEvents``).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import NamedTuple

from tproxy.datapath.membership import SEVERAL
from tproxy.kernel import kinds, links, rtnetlink
from tproxy.kernel.loop import Loop
from tproxy.kernel.netlink import Entry, ForwardingEvents, Name
from tproxy.log import limit
from tproxy.names import BridgeNames

log = logging.getLogger(__name__)

# Seconds. A guest that uses another's address has to be found out, and one that moved is there soon.
CONTESTED = 60.0

# Addresses that are known at one port. A guest with many, which runs guests itself, is known by the first.
MOST_AT_A_PORT = 256

# Seconds between two times that all tables are read because messages were lost.
RETRY = 2.0

# By MAC: the port's name, SEVERAL if two guests use it, or "" if it is not known any more.
Places = dict[str, str]


class Contest(NamedTuple):
    """The ports at which an address was seen in turn, and until when that counts, by time.monotonic()."""

    until: float
    ports: set[int]


class _Bridge:
    """One bridge: the index of the port of each MAC, by VLAN, and what was told of it."""

    def __init__(self, index: int) -> None:
        self.index = index
        self.seen: dict[str, dict[int, int]] = {}
        self.contested: dict[str, Contest] = {}
        self.told: Places = {}


class GuestPorts:
    """``changed`` is called with a bridge, and the ports that are others now.

    ``named_uplinks`` returns the uplinks of a bridge that the operator named.
    """

    def __init__(
        self,
        loop: Loop,
        changed: Callable[[str, Places], None],
        named_uplinks: Callable[[str], Iterable[str]],
    ) -> None:
        self._loop = loop
        self._changed = changed
        self._named_uplinks = named_uplinks
        self._events: ForwardingEvents | None = None
        self._bridges: dict[str, _Bridge] = {}
        self._names: dict[int, str] = {}  # of guests' ports; "" for other ports
        self._counts: dict[int, int] = {}  # addresses at each port
        self._expires = self._rereads = False  # whether a timer runs
        self._read_at = -RETRY
        self._warnings = limit.warnings()

    def follow(self, bridges: Iterable[str]) -> None:
        """Follow exactly these bridges, from now on."""
        wanted = set(bridges)
        for bridge in self._bridges.keys() - wanted:
            self._drop(bridge)
        if wanted and self._events is None:
            self._events = ForwardingEvents(self._loop, self._heard, self._lost)
        for bridge in self._bridges:  # a port may be an uplink now
            self._tell(bridge, [*self._bridges[bridge].seen])
        for bridge in wanted - self._bridges.keys():
            self._bridges[bridge] = _Bridge(0)
            self._read(bridge)
        if not wanted:
            self.close()

    def of(self, bridge: str) -> Places:
        """Return what is known of a bridge that is followed."""
        found = self._bridges.get(bridge)
        return dict(found.told) if found is not None else {}

    def close(self) -> None:
        if self._events is not None:
            self._events.close()
            self._events = None
        self._bridges.clear()
        self._names.clear()
        self._counts.clear()

    # What the kernel tells

    def _heard(self, events: list[Entry | Name]) -> None:
        touched: dict[str, set[str]] = {}
        for event in events:
            if isinstance(event, Name):
                self._rename(event, touched)
                continue
            bridge = next((name for name, each in self._bridges.items() if each.index == event.bridge), "")
            if bridge and event.present:
                self._see(bridge, event)
                touched.setdefault(bridge, set()).add(event.mac)
        for bridge, macs in touched.items():
            self._tell(bridge, macs)

    def _rename(self, event: Name, touched: dict[str, set[str]]) -> None:
        """Note that a link has another name, is at another bridge, or is gone (then without both)."""
        bridge = self._bridges.get(event.name)
        if bridge is not None and bridge.index != event.link:  # it was made anew
            self._drop(event.name)
            self._bridges[event.name] = _Bridge(0)
            self._read(event.name)
        self._names.pop(event.link, None)
        for name, each in self._bridges.items():
            if event.master != each.index:
                touched.setdefault(name, set()).update(_left(each.contested, event.link))
        if event.link not in self._counts:
            return
        for name, each in self._bridges.items():
            macs = {mac for mac, ports in each.seen.items() if event.link in ports.values()}
            if event.master != each.index:
                for mac in macs:
                    self._forget(each, mac, event.link)
            touched.setdefault(name, set()).update(macs)

    def _lost(self) -> None:
        """Forget all, because messages were lost; read anew, but not all the time."""
        for name, bridge in self._bridges.items():
            self._clear(bridge)
            self._tell(name, bridge.told)
        if not self._rereads:
            self._rereads = True
            delay = max(self._read_at + RETRY - time.monotonic(), 0.0)
            self._loop.call_later(delay, self._read_again)

    def _read_again(self) -> None:
        self._rereads = False
        for bridge in list(self._bridges):
            self._read(bridge)

    # What is known

    def _read(self, bridge: str) -> None:
        """Read the forwarding table of a bridge, port by port."""
        self._read_at = time.monotonic()
        known = self._bridges[bridge]
        with suppress(OSError):  # it goes away, or there is no descriptor: what is missing is left out
            found = rtnetlink.link(bridge)
            known.index = found.ifindex if found is not None else 0
            for port in links.ports(bridge):
                link = rtnetlink.link(port)
                if link is None or not self._name(bridge, link.ifindex):
                    continue
                for mac, vlan in rtnetlink.forwarding_entries(link.ifindex, MOST_AT_A_PORT):
                    self._see(bridge, Entry(known.index, link.ifindex, mac, vlan, True))
        self._tell(bridge, known.seen)

    def _see(self, bridge: str, entry: Entry) -> None:
        known = self._bridges[bridge]
        before = known.seen.get(entry.mac, {}).get(entry.vlan)
        if before == entry.port:
            return
        if before is not None:
            self._forget(known, entry.mac, before, entry.vlan)
        if not self._name(bridge, entry.port):
            return
        if before is not None:
            ports = {before, entry.port}
            if entry.mac in known.contested:
                ports |= known.contested[entry.mac].ports
            known.contested[entry.mac] = Contest(time.monotonic() + CONTESTED, ports)
            self._expire_later()
            if self._warnings.allows(time.monotonic()):
                log.warning(
                    "bridge %s: %s was seen behind %s and %s: endpoints are told no port for %g s%s",
                    bridge,
                    entry.mac,
                    self._name(bridge, before) or "an uplink",
                    self._name(bridge, entry.port),
                    CONTESTED,
                    self._warnings.suffix(),
                )
        if self._counts.get(entry.port, 0) < MOST_AT_A_PORT:
            self._counts[entry.port] = self._counts.get(entry.port, 0) + 1
            known.seen.setdefault(entry.mac, {})[entry.vlan] = entry.port

    def _forget(self, known: _Bridge, mac: str, port: int, vlan: int | None = None) -> None:
        """Forget that a MAC was seen at a port, in this VLAN or in all."""
        vlans = known.seen.get(mac, {})
        for each in [one for one, at in vlans.items() if at == port and vlan in (None, one)]:
            del vlans[each]
            self._counts[port] -= 1
            if not self._counts[port]:
                del self._counts[port]
        if not vlans:
            known.seen.pop(mac, None)

    def _clear(self, known: _Bridge) -> None:
        for mac, vlans in list(known.seen.items()):
            for port in set(vlans.values()):
                self._forget(known, mac, port)
        known.contested.clear()

    def _drop(self, bridge: str) -> None:
        known = self._bridges[bridge]
        self._clear(known)
        self._tell(bridge, known.told)
        del self._bridges[bridge]

    def _name(self, bridge: str, port: int) -> str:
        """Return the name of a guest's port; "" for an uplink, our own port, and one that is gone."""
        if port not in self._names:
            name = rtnetlink.name(port)
            others = {"", BridgeNames(bridge).veth_bridge}
            if name in others or kinds.uplinks(bridge, frozenset({name})):
                name = ""
            self._names[port] = name
        name = self._names[port]
        return "" if name in self._named_uplinks(bridge) else name

    def _place(self, bridge: str, mac: str) -> str:
        known = self._bridges[bridge]
        ports = set(known.seen.get(mac, {}).values())
        if len(ports) > 1 or (ports and mac in known.contested):
            return SEVERAL
        if not ports:
            return ""
        return self._name(bridge, ports.pop())

    def _tell(self, bridge: str, macs: Iterable[str]) -> None:
        known = self._bridges[bridge]
        now = {mac: self._place(bridge, mac) for mac in macs}
        changes = {mac: port for mac, port in now.items() if known.told.get(mac, "") != port}
        for mac, port in changes.items():
            if port:
                known.told[mac] = port
            else:
                del known.told[mac]
        if changes:
            self._changed(bridge, changes)

    def _expire_later(self) -> None:
        if not self._expires:
            self._expires = True
            self._loop.call_later(CONTESTED, self._expire)

    def _expire(self) -> None:
        self._expires = False
        now = time.monotonic()
        for name, known in self._bridges.items():
            over = [mac for mac, contest in known.contested.items() if contest.until <= now]
            for mac in over:
                del known.contested[mac]
            self._tell(name, over)
        if any(known.contested for known in self._bridges.values()):
            self._expire_later()


def _left(contested: dict[str, Contest], port: int) -> list[str]:
    """Note that a port is no port of the bridge any more; return the addresses that it contests no more."""
    for contest in contested.values():
        contest.ports.discard(port)
    over = [mac for mac, contest in contested.items() if len(contest.ports) < 2]
    for mac in over:
        del contested[mac]
    return over
