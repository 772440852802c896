"""The second wall: nftables rules inside a bridge's namespace, as text, and the function that loads them.

The guards (``guard_rules``) decide on the bridge which frames reach the namespace. The wall decides once
more, in the namespace, what reaches its TCP/IP stack: TCP to the service ports, and a limited number of pings
and of SYNs to other ports, which the kernel answers with a reset. So a guest cannot use the rest of the
stack, such as ICMP errors that change a route's MTU, fragments, or UDP that is
no service's. A namespace that another program made
has no guards of ours, and a wall all the same. How many connections a guest may open is the guards' matter:
they know the port where a frame came in, which a guest cannot forge.

A port that is no service any more may still have connections, and they go on. So segments without SYN pass to
any port. Where there is no connection the kernel answers them with a reset.

A relay may be taken over. It may bind any port of its namespace (SYSCTLS), but nothing comes in that answers
a connection which it opens: a packet with SYN and ACK passes only from what a route leads to (DIALLED), an
address and a port of a guest. With routes, no SYN leaves for anything else either (DIALS).

ARP is no packet of the families that are filtered here. Connections to the service address from inside the
namespace pass, for people who look for a fault.

Where the bridge has UDP services, fragments of UDP pass too: only the first one of a datagram has ports. The
kernel puts them together, and the chain AFTER, which sees the whole datagram, drops what is for no service.
It also refuses, by ICMP, what is for a service whose endpoints cannot be reached (``refuse``). Over IPv6 the
kernel puts fragments together only behind that chain. So the first fragment has to be for a service, with UDP
right behind the fragment header, and without it the kernel drops the others.

Each rule has a comment with a checksum of its text, as the guards' have. The wall is right when its chain,
comments and ports are; otherwise one transaction replaces it, and no packet sees a namespace without a wall.
"""

from __future__ import annotations

import socket
import zlib
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from functools import cache

from tproxy.addresses import SERVICE_ADDRESS, SERVICE_ADDRESS_IPV6
from tproxy.bridge import nftables
from tproxy.bridge.service_map import protocol_of
from tproxy.errors import NftError, TproxyError
from tproxy.kernel import links, netns
from tproxy.log.lazy import logger
from tproxy.model import TCP, UDP, ServiceKey
from tproxy.names import TABLE, BridgeNames
from tproxy.typed import Any, NamedTuple

log = logger(__name__)

CHAIN = "wall"
PORTS = "ports"  # the set of the service ports of TCP
AFTER = "datagrams"  # the chain behind the place where the kernel puts fragments together
UDP_PORTS = "udp_ports"
REFUSED = "refused"  # the set of the UDP ports whose guests are refused now
# The same sets for SERVICE_ADDRESS_IPV6.
PORTS_IPV6, UDP_PORTS_IPV6, REFUSED_IPV6 = "ports6", "udp_ports6", "refused6"
# The sets of a wall for further service addresses: these addresses; address, protocol and port of their
# services; and those whose guests are refused now.
ADDRESSES, SERVICES, REFUSED_SERVICES = "addresses", "services", "refused_services"
DIALLED, DIALLED_IPV6 = "dialled", "dialled6"  # the sets of the targets of routes
DIALS = "dials"  # the chain for connections that begin here

# Before the kernel would put fragments together, NF_IP_PRI_RAW_BEFORE_DEFRAG in <linux/netfilter_ipv4.h>.
_HOOK, _PRIORITY = "prerouting", -450
_SERVICE = "ipv4_addr . inet_proto . inet_service"
_SETS = {
    PORTS: "inet_service",
    UDP_PORTS: "inet_service",
    REFUSED: "inet_service",
    PORTS_IPV6: "inet_service",
    UDP_PORTS_IPV6: "inet_service",
    REFUSED_IPV6: "inet_service",
    ADDRESSES: "ipv4_addr",
    SERVICES: _SERVICE,
    REFUSED_SERVICES: _SERVICE,
    DIALLED: "ipv4_addr . inet_service",
    DIALLED_IPV6: "ipv6_addr . inet_service",
}
_REFUSING = {REFUSED, REFUSED_IPV6, REFUSED_SERVICES}
_BASE = {
    CHAIN: (_HOOK, _PRIORITY, "drop"),
    AFTER: ("input", 0, "accept"),
    DIALS: ("output", 0, "accept"),
}

Target = tuple[str, int]  # address and port of a guest

SYSCTLS = {
    "ipv4/ip_unprivileged_port_start": "0",  # a relay without capabilities listens at low ports too
    # The wall drops the ICMP errors of a router with a small MTU between a guest and the service, such as a
    # guest's own tunnel. With 1 a connection whose large segments vanish tries smaller ones.
    "ipv4/tcp_mtu_probing": "1",
    # A closed connection keeps its local port for a minute, and those towards one port of a guest are 28,000.
    # With 1 they serve again after a second (ip-sysctl.rst): a route may have over 470 new streams a second.
    "ipv4/tcp_tw_reuse": "1",
    # Fragments of a datagram come right behind each other. Those without the rest must not take the memory of
    # others' (ipfrag_high_thresh) for longer than this, in seconds.
    "ipv4/ipfrag_time": "3",
    "ipv6/ip6frag_time": "3",
}

# In a second, and at once. A monitoring system that pings from each guest fits in.
PINGS, PING_BURST = 100, 200
CLOSED, CLOSED_BURST = 100, 200  # likewise, SYNs to ports without a service

_MARK = "tproxy "  # begins the comment of each of our rules
_FOR_US = f"ip daddr {SERVICE_ADDRESS}"
# Words at a fixed place, for the kernel's fast way (guard_rules). No more fragments, and offset 0:
_WHOLE = "@nh,32,32 & 0x00003fff == 0"
_REFUSE = "reject with icmp type port-unreachable"
_FRAGMENT = "@nh,32,32 & 0x00003fff != 0"
# SYN and ACK: the answer to a connection that began here.
_NO_ANSWER = "@th,96,32 & 0x00120000 != 0x00120000"
# Without headers before the last one: no fragment. Guests have addresses of the link only.
_FROM_LINK = "ip6 saddr fe80::/10"
_FOR_US_IPV6 = f"ip6 daddr {SERVICE_ADDRESS_IPV6} {_FROM_LINK} ip6 nexthdr tcp"
_FOR_US_UDP_IPV6 = f"ip6 daddr {SERVICE_ADDRESS_IPV6} {_FROM_LINK} ip6 nexthdr udp"
_FRAGMENT_IPV6 = f"ip6 daddr {SERVICE_ADDRESS_IPV6} {_FROM_LINK} ip6 nexthdr ipv6-frag frag nexthdr udp"
_REFUSE_IPV6 = "reject with icmpv6 type port-unreachable"
_FOR_US_ICMPV6 = f"ip6 daddr {SERVICE_ADDRESS_IPV6} {_FROM_LINK} ip6 nexthdr icmpv6"
_IPV6 = socket.inet_pton(socket.AF_INET6, SERVICE_ADDRESS_IPV6)
# A neighbour solicitation for us, to our group or to us.
_ASKING_IPV6 = (
    f"{_FROM_LINK} ip6 nexthdr icmpv6 ip6 hoplimit 255 icmpv6 type nd-neighbor-solicit "
    f"ip6 daddr {{ {SERVICE_ADDRESS_IPV6}, ff02::1:ff{_IPV6[13:14].hex()}:{_IPV6[14:].hex()} }} "
    f"@th,64,128 0x{_IPV6.hex()}"
)
_NEW = "tcp flags & (fin | syn | rst | ack) == syn"
_GOES_ON = "tcp flags & syn != syn"
_ANSWER = "tcp flags & (fin | syn | rst | ack) == (syn | ack)"


class Kind(NamedTuple):
    """A wall that a kernel may support.

    ``family`` is ``inet``, or ``ip`` where the kernel has no ``inet``. ``limited``: with limits of what is
    not a connection to a service. ``refuses``: with ICMP for UDP services that cannot be reached.
    """

    family: str
    limited: bool
    refuses: bool = True

    def seen(self, keys: Iterable[ServiceKey]) -> frozenset[ServiceKey]:
        """Those of the services whose packets such a wall sees."""
        return frozenset(key for key in keys if self.family == "inet" or ":" not in key.address)

    def aimed(self, targets: Iterable[Target]) -> frozenset[Target]:
        """Those of the targets of routes whose packets such a wall sees."""
        return frozenset(each for each in targets if self.family == "inet" or ":" not in each[0])

    @property
    def lacks(self) -> str:
        """What a kernel lacks that needs this kind, in words, and what follows; or ""."""
        lacks = [] if self.family == "inet" else ["family inet of nftables: walls let IPv6 pass"]
        lacks += [] if self.limited else ["limit of nftables: walls let any number of pings pass"]
        lacks += [] if self.refuses else ["reject of nftables: guests of UDP get no ICMP"]
        return ", and no ".join(lacks)


_LIMITED = (Kind("inet", True), Kind("ip", True), Kind("inet", False), Kind("ip", False))
# Best first.
KINDS = (*_LIMITED, *(each._replace(refuses=False) for each in _LIMITED))


class Wall(NamedTuple):
    """A wall as it was found: which kind, and for which services. Other rules are no kind."""

    kind: Kind | None
    keys: frozenset[ServiceKey]
    targets: frozenset[Target] = frozenset()


class Parts(NamedTuple):
    """The parts of a wall besides that for TCP at SERVICE_ADDRESS.

    For UDP, further addresses, IPv6, and for connections to guests.
    """

    udp: bool
    further: bool
    ipv6: bool
    dials: bool = False
    dials_ipv6: bool = False

    @property
    def sets(self) -> set[str]:
        """The names of the sets."""
        names = {PORTS}
        names |= {UDP_PORTS, REFUSED} if self.udp else set()
        names |= {ADDRESSES, SERVICES} if self.further else set()
        names |= {PORTS_IPV6} if self.ipv6 else set()
        names |= {DIALLED} if self.dials else set()
        names |= {DIALLED_IPV6} if self.dials_ipv6 else set()
        names |= {UDP_PORTS_IPV6, REFUSED_IPV6} if self.udp and self.ipv6 else set()
        return names | ({REFUSED_SERVICES} if self.udp and self.further else set())


def parts_for(keys: Iterable[ServiceKey], targets: Collection[Target] = ()) -> Parts:
    """The parts that a wall for these services and targets of routes has."""
    addresses = {key.address for key in keys} - {SERVICE_ADDRESS}
    return Parts(
        udp=any(key.protocol == UDP for key in keys),
        further=bool(addresses - {SERVICE_ADDRESS_IPV6}),
        ipv6=SERVICE_ADDRESS_IPV6 in addresses,
        dials=bool(targets),
        dials_ipv6=any(":" in address for address, _ in targets),
    )


@cache
def rules(kind: Kind, parts: Parts) -> dict[str, list[str]]:
    """The rules of the wall's chains."""
    pings = f" limit rate {PINGS}/second burst {PING_BURST} packets" if kind.limited else ""
    closed = f" limit rate {CLOSED}/second burst {CLOSED_BURST} packets" if kind.limited else ""
    datagrams = [
        f"{_FOR_US} {_WHOLE} udp dport @{UDP_PORTS} accept",
        f"{_FOR_US} {_FRAGMENT} ip protocol udp accept",
    ]
    wall = [
        f"{_FOR_US} {_WHOLE} tcp dport @{PORTS} {_NO_ANSWER} accept",
        f"{_FOR_US} {_WHOLE} {_NEW}{closed} accept",
        f"{_FOR_US} {_WHOLE} {_GOES_ON} accept",
        f"{_FOR_US} {_WHOLE} icmp type echo-request{pings} accept",
        *([f"{_FOR_US} {_WHOLE} {_ANSWER} ip saddr . tcp sport @{DIALLED} accept"] if parts.dials else []),
        *(datagrams if parts.udp else []),
        "iif lo accept",
    ]
    dials = {DIALS: [f"oif != lo {_NEW} ip daddr . tcp dport != @{DIALLED} drop"]} if parts.dials else {}
    if parts.dials and not parts.dials_ipv6 and kind.family == "inet":
        dials[DIALS].append(f"oif != lo meta nfproto ipv6 {_NEW} drop")
    elif parts.dials_ipv6:
        dials[DIALS].append(f"oif != lo {_NEW} ip6 daddr . tcp dport != @{DIALLED_IPV6} drop")
        wall.append(f"{_FOR_US_IPV6} {_ANSWER} ip6 saddr . tcp sport @{DIALLED_IPV6} accept")
    there = f"ip daddr @{ADDRESSES}"
    service = "ip daddr . ip protocol . th dport"
    if parts.further:
        wall += [
            f"{there} {_WHOLE} ip protocol tcp {_NO_ANSWER} {service} @{SERVICES} accept",
            f"{there} {_WHOLE} {_NEW}{closed} accept",
            f"{there} {_WHOLE} {_GOES_ON} accept",
            f"{there} {_WHOLE} icmp type echo-request{pings} accept",
        ]
    if parts.ipv6:
        wall.append(f"{_FOR_US_IPV6} tcp dport @{PORTS_IPV6} {_NO_ANSWER} accept")
    if parts.ipv6 or parts.dials_ipv6:
        wall += [
            f"{_FOR_US_IPV6} {_NEW}{closed} accept",
            f"{_FOR_US_IPV6} {_GOES_ON} accept",
            f"{_FOR_US_ICMPV6} icmpv6 type echo-request{pings} accept",
            # RFC 4861, 7.1: a router forwards no packet with this hop limit.
            f"{_FOR_US_ICMPV6} ip6 hoplimit 255 icmpv6 type nd-neighbor-advert accept",
            f"{_ASKING_IPV6} accept",
        ]
    if not parts.udp:
        return {CHAIN: wall, **dials}
    if parts.ipv6:
        wall += [
            f"{_FOR_US_UDP_IPV6} udp dport @{UDP_PORTS_IPV6} accept",
            f"{_FRAGMENT_IPV6} frag frag-off 0 th dport @{UDP_PORTS_IPV6} accept",
            f"{_FRAGMENT_IPV6} frag frag-off != 0 accept",
        ]
    after = [
        "iif lo accept",
        *([f"{_FOR_US} udp dport @{REFUSED} {_REFUSE}"] if kind.refuses else []),
        f"{_FOR_US} udp dport != @{UDP_PORTS} drop",
    ]
    if parts.further:
        wall += [
            f"{there} {_WHOLE} ip protocol udp {service} @{SERVICES} accept",
            f"{there} {_FRAGMENT} ip protocol udp accept",
        ]
        refused = f"{there} ip protocol udp {service} @{REFUSED_SERVICES} {_REFUSE}"
        after += [
            *([refused] if kind.refuses else []),
            f"{there} ip protocol udp {service} != @{SERVICES} drop",
        ]
    if parts.ipv6 and kind.refuses:
        after.append(
            f"ip6 daddr {SERVICE_ADDRESS_IPV6} meta l4proto udp th dport @{REFUSED_IPV6} {_REFUSE_IPV6}"
        )
    return {CHAIN: wall, AFTER: after, **dials}


def load(kind: Kind, keys: Collection[ServiceKey], targets: Collection[Target] = ()) -> str:
    """Return the commands of one transaction that replaces whatever wall there is."""
    table, keys, targets = f"{kind.family} {TABLE}", kind.seen(keys), kind.aimed(targets)
    parts = parts_for(keys, targets)
    chains = rules(kind, parts)
    lines = [
        f"add table {table}",  # first, because deleting fails where there is none
        f"delete table {table}",
        f"add table {table}",
        *(
            f"add set {table} {name} {{ type {of};{' flags timeout;' if name in _REFUSING else ''} }}"
            for name, of in _SETS.items()
            if name in parts.sets
        ),
    ]
    for chain, its_rules in chains.items():
        hook, priority, policy = _BASE[chain]
        base = f"type filter hook {hook} priority {priority}; policy {policy};"
        lines.append(f"add chain {table} {chain} {{ {base} }}")
        lines += [f'add rule {table} {chain} {rule} comment "{_mark(rule)}"' for rule in its_rules]
    elements: dict[str, set[str]] = {}
    for key in keys:
        name, element = _element(key)
        elements.setdefault(name, set()).add(element)
        if name == SERVICES:
            elements.setdefault(ADDRESSES, set()).add(key.address)
    for address, port in targets:
        name = DIALLED_IPV6 if ":" in address else DIALLED
        elements.setdefault(name, set()).add(f"{address} . {port}")
    lines += [
        f"add element {table} {name} {{ {', '.join(sorted(each))} }}" for name, each in elements.items()
    ]
    return "\n".join(lines)


def _element(key: ServiceKey) -> tuple[str, str]:
    """The set in which a service is, and its element there."""
    if key.address == SERVICE_ADDRESS_IPV6:
        return UDP_PORTS_IPV6 if key.protocol == UDP else PORTS_IPV6, str(key.port)
    if key.address != SERVICE_ADDRESS:
        return SERVICES, f"{key.address} . {key.protocol} . {key.port}"
    return UDP_PORTS if key.protocol == UDP else PORTS, str(key.port)


def parse(family: str, listed: Iterable[dict[str, Any]]) -> Wall | None:
    """Return the wall in the objects of ``nft -j list table``; None if there is nothing.

    Raises NftError when the table has a chain or set that no wall has: another program's table.
    """
    chains: dict[str, tuple[Any, Any, Any]] = {}
    marks: dict[str, list[str]] = {}
    sets: dict[str, list[Any]] = {}
    found = False
    for item in listed:
        ((what, each),) = item.items()
        found = found or what == "table"
        if what == "chain" and each["name"] in _BASE:
            chains[each["name"]] = each.get("hook"), each.get("prio"), each.get("policy")
        elif what == "rule" and each["chain"] in _BASE:
            marks.setdefault(each["chain"], []).append(each.get("comment", ""))
        elif what == "set" and _joined(each["type"]) == _SETS.get(each["name"]):
            sets[each["name"]] = each.get("elem", [])
        elif what not in ("metainfo", "table"):
            raise NftError(f"table {family} {TABLE} in the namespace belongs to another program")
    if not found:
        return None
    parts = Parts(
        AFTER in chains, SERVICES in sets, PORTS_IPV6 in sets, DIALLED in sets, DIALLED_IPV6 in sets
    )
    wanted = [CHAIN, *([AFTER] if parts.udp else []), *([DIALS] if parts.dials else [])]
    keys, targets = _keys(sets), _targets(sets)
    right = chains == {name: _BASE[name] for name in wanted} and sets.keys() == parts.sets
    if keys is None or targets is None or not right:
        return Wall(None, frozenset())
    for kind in KINDS:
        known = {name: list(map(_mark, each)) for name, each in rules(kind, parts).items()}
        if kind.family == family and known == marks:
            return Wall(kind, keys, targets)
    return Wall(None, keys)


def _targets(sets: Mapping[str, list[Any]]) -> frozenset[Target] | None:
    """The targets of routes in the sets of a wall; None where it is not as ``load`` makes it."""
    try:
        pairs = (each["concat"] for name in (DIALLED, DIALLED_IPV6) for each in sets.get(name, ()))
        return frozenset((str(address), int(port)) for address, port in pairs)
    except (KeyError, TypeError, ValueError):
        return None


def _keys(sets: Mapping[str, list[Any]]) -> frozenset[ServiceKey] | None:
    """The keys of services in the sets of a wall; None where these are not as ``load`` makes them."""
    try:
        # An element with a comment, or a range, is listed as another object.
        keys = {ServiceKey(int(port)) for port in sets.get(PORTS, ())}
        keys |= {ServiceKey(int(port), UDP) for port in sets.get(UDP_PORTS, ())}
        for name, protocol in ((PORTS_IPV6, TCP), (UDP_PORTS_IPV6, UDP)):
            keys |= {ServiceKey(int(port), protocol, SERVICE_ADDRESS_IPV6) for port in sets.get(name, ())}
        for each in sets.get(SERVICES, ()):
            address, protocol, port = each["concat"]
            keys.add(ServiceKey(int(port), protocol_of(protocol), str(address)))
    except (KeyError, TypeError, ValueError):
        return None
    addresses = {key.address for key in keys} - {SERVICE_ADDRESS, SERVICE_ADDRESS_IPV6}
    return frozenset(keys) if addresses == set(sets.get(ADDRESSES, ())) else None


def _joined(kind: Any) -> Any:
    """A type as text."""
    return " . ".join(kind) if isinstance(kind, list) else kind


def ensure(bridge: str, keys: Collection[ServiceKey], targets: Collection[Target] = ()) -> None:
    """Have the wall in the bridge's namespace, for these services and targets of routes, and SYSCTLS set.

    Whoever made the namespace. Does nothing when all is as it should be. Raises NftError, KernelError.
    """
    wanted, dialled = frozenset(key.listener for key in keys), frozenset(targets)
    with nftables.inside(BridgeNames(bridge).namespace) as inner:
        try:
            wall = _find(inner)
            if wall is None or wall.kind is None:
                _load_best(inner, bridge, wanted, dialled)
            elif (wall.keys, wall.targets) != (wall.kind.seen(wanted), wall.kind.aimed(dialled)):
                inner.transaction([load(wall.kind, wanted, dialled)])
        finally:  # the relay needs them in any case
            found = links.sysctls(SYSCTLS)
            for path, value in SYSCTLS.items():
                if found.get(path, value) != value:
                    links.write_sysctl(path, value)


def look(bridge: str) -> Wall | None:
    """Return the wall in the bridge's namespace as it is now; None for none. Raises NftError, KernelError."""
    with nftables.inside(BridgeNames(bridge).namespace) as inner:
        return _find(inner)


def refuse(bridge: str, key: ServiceKey, seconds: float) -> None:
    """Have guests' datagrams for a UDP service refused by ICMP for so many seconds; 0: no more.

    Raises NftError, KernelError.
    """
    with nftables.inside(BridgeNames(bridge).namespace) as inner:
        wall = _find(inner)
        if wall is None or wall.kind is None or key.listener not in wall.keys:
            return
        name, each = _element(key)
        name = {SERVICES: REFUSED_SERVICES, UDP_PORTS_IPV6: REFUSED_IPV6}.get(name, REFUSED)
        place = f"element {wall.kind.family} {TABLE} {name}"
        # Added first, because deleting fails where there is none, and adding does not renew a time-out.
        commands = [f"add {place} {{ {each} }}", f"delete {place} {{ {each} }}"]
        if seconds:
            commands.append(f"add {place} {{ {each} timeout {max(round(seconds), 1)}s }}")
        inner.transaction(commands)


def remove(bridge: str) -> None:
    """Remove the wall from the bridge's namespace, if another program made that. SYSCTLS stay as they are.

    Does nothing where there is no namespace or no wall. Our own namespace keeps its wall for as long as it
    exists. Raises NftError, KernelError.
    """
    namespace = BridgeNames(bridge).namespace
    if netns.identify(namespace) is None:
        return
    with nftables.inside(namespace) as inner:
        if netns.is_marked():
            return
        for family in ("inet", "ip"):
            with suppress(NftError):  # another program's table
                if parse(family, inner.table(family)) is not None:
                    inner.transaction([f"delete table {family} {TABLE}"])


def remove_all() -> None:
    """As ``remove``, for all namespaces that are named as if a bridge were served. Raises nothing."""
    prefix = BridgeNames("x").namespace.removesuffix("x")
    for name in netns.names():
        if name.startswith(prefix):
            with suppress(TproxyError):  # it closes what nobody uses
                remove(name.removeprefix(prefix))


def _find(inner: nftables.Inner) -> Wall | None:
    """The wall in the namespace that this thread is in. The kinds tell which kernel this is."""
    for family in ("inet", "ip"):
        wall = parse(family, inner.table(family))
        if wall is not None:
            return wall
    return None


def _load_best(
    inner: nftables.Inner, bridge: str, keys: frozenset[ServiceKey], targets: frozenset[Target]
) -> None:
    """Load the first kind that this kernel accepts."""
    for kind in KINDS:
        try:
            inner.transaction([load(kind, keys, targets)])
        except (nftables.Unsupported, nftables.Absent) as error:
            refused = error
        else:
            log.debug("bridge %s: wall loaded for ports %s", bridge, [each.in_words for each in sorted(keys)])
            if kind.lacks:
                _tell(kind.lacks)
            return
    raise NftError(f"the namespace's wall cannot be loaded: {refused}")


@cache
def _tell(lacks: str) -> None:
    """Log what the kernel lacks, once in a process: it is the same in each namespace."""
    log.warning("this kernel has no %s", lacks)


def _mark(rule: str) -> str:
    return f"{_MARK}{zlib.crc32(rule.encode()):08x}"
