"""Compares what a bridge should have with what it has, and returns ordered actions. Pure.

The same comparison builds a bridge, repairs it, changes it, and finds nothing to do. ``actions`` has the
actions. It is imported only once there is something to do.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from tproxy.addresses import PORT_MAC, SERVICE_ADDRESS, SERVICE_ADDRESS_IPV6, SERVICE_MAC, with_prefix
from tproxy.bridge import guards, map_commands
from tproxy.bridge.guards import Guard, ObservedGuard
from tproxy.kernel.links import InnerLink, OuterLink
from tproxy.model import ServiceMap
from tproxy.names import TABLE, BridgeNames
from tproxy.typed import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from tproxy.bridge.actions import Action


NO_IPV6 = "ipv6/conf/all/disable_ipv6"


class Observed(NamedTuple):
    """One bridge as it was found. The defaults are those of a bridge that has nothing."""

    bridge_mtu: int = 0
    ports: frozenset[str] = frozenset()
    recognised_uplinks: frozenset[str] = frozenset()  # ports of a kind that leads off the host
    probes: frozenset[str] = frozenset()  # ports that `tproxy probe` attached
    name_taken: bool = False  # /run/netns has a file of the namespace's name
    name_ours: bool = False  # that file is a namespace with our mark, or an empty file that a crash left
    namespace: bool = False  # that file is a namespace
    outer: OuterLink | None = None
    inner: InnerLink | None = None
    sysctls: Mapping[str, str] | None = None
    map: ServiceMap | None = None
    map_stays: bool = False  # there is a map of another program, which is left as it is
    guard: ObservedGuard | None = None

    @property
    def anything(self) -> bool:
        """Whether the host has any object under this bridge's names."""
        return bool(self.name_taken or self.outer or self.map or (self.guard and self.guard.anything))

    @property
    def paired(self) -> bool:
        """Whether the two links of our names are the two ends of one veth pair, whoever made it."""
        outer, inner = self.outer, self.inner
        return outer is not None and inner is not None and outer.veth and outer.peer == inner.ifindex

    @property
    def outer_ours(self) -> bool:
        """Whether we made the port: it has our MAC, or it leads into a namespace that we made."""
        if self.outer is None or not self.outer.veth:
            return False
        return self.outer.mac == PORT_MAC or (self.paired and self.name_ours)

    @property
    def inner_ours(self) -> bool:
        """Whether we made the link in the namespace: it has our MAC, or we made the namespace."""
        return self.inner is not None and (self.inner.mac == SERVICE_MAC or self.name_ours)

    def added_since(self, before: Observed) -> Observed:
        """Only what was not there ``before``. When an ``up`` fails half-way, exactly this is removed."""
        return self._replace(
            name_taken=self.namespace and not before.namespace,
            outer=None if before.outer else self.outer,
            map=None if before.map else self.map,
            guard=None if before.guard and before.guard.anything else self.guard,
        )


def namespace_sysctls(names: BridgeNames, *, ipv6: bool = False) -> dict[str, str]:
    """The sysctls that the namespace needs, by path below net; ``ipv6``: with services over IPv6.

    All are set, because a new namespace inherits the values of a hardened host.
    """
    values = {"ipv4/ip_forward": "0"}  # first, because the kernel resets others along with it
    for scope in ("all", names.veth_namespace):
        conf = f"ipv4/conf/{scope}"
        values |= {
            f"{conf}/arp_accept": "0",  # else each gratuitous ARP frame takes an entry of the neighbour table
            f"{conf}/arp_ignore": "1",  # with 2 the kernel never answers: no guest is in the subnet of a /32
            f"{conf}/arp_announce": "0",
            f"{conf}/arp_filter": "0",
            f"{conf}/proxy_arp": "0",
            f"{conf}/rp_filter": "0",
            f"{conf}/route_localnet": "0",
            f"{conf}/accept_redirects": "0",
            f"{conf}/accept_source_route": "0",
            f"{conf}/send_redirects": "0",
        }
    # Entries of the neighbour table are few, and all namespaces share them (bridge.guard_rules). One for an
    # address that nobody has is given up after 3 * 200 ms; one that nobody uses can be discarded soon.
    neigh = f"ipv4/neigh/{names.veth_namespace}"
    values |= {
        f"{neigh}/mcast_solicit": "3",
        f"{neigh}/ucast_solicit": "3",
        f"{neigh}/app_solicit": "0",
        f"{neigh}/retrans_time_ms": "200",  # whole jiffies at every HZ, so that it reads the same
        f"{neigh}/base_reachable_time_ms": "5000",
        f"{neigh}/gc_stale_time": "10",
        "ipv4/tcp_synack_retries": "2",  # after 1 and 3 s; each asks for the address again
    }
    if ipv6:
        return values | _ipv6_sysctls(names)
    values[NO_IPV6] = "1"
    values["ipv6/conf/default/disable_ipv6"] = "1"
    return values


def _ipv6_sysctls(names: BridgeNames) -> dict[str, str]:
    """The sysctls for IPv6 at our link alone, which takes no other address, and believes no router."""
    conf, neigh = f"ipv6/conf/{names.veth_namespace}", f"ipv6/neigh/{names.veth_namespace}"
    return {
        "ipv6/conf/all/forwarding": "0",
        f"{conf}/addr_gen_mode": "1",  # no address that is made of the MAC
        f"{conf}/accept_dad": "0",
        f"{conf}/dad_transmits": "0",
        f"{conf}/accept_ra": "0",
        f"{conf}/autoconf": "0",
        f"{conf}/router_solicitations": "0",
        f"{conf}/accept_redirects": "0",
        f"{conf}/accept_source_route": "0",
        f"{conf}/proxy_ndp": "0",
        f"{conf}/forwarding": "0",
        f"{neigh}/mcast_solicit": "3",
        f"{neigh}/ucast_solicit": "3",
        f"{neigh}/app_solicit": "0",
        f"{neigh}/retrans_time_ms": "200",
        f"{neigh}/base_reachable_time_ms": "5000",
        f"{neigh}/gc_stale_time": "10",
        # The first one changes the other two, and our link.
        NO_IPV6: "0",
        "ipv6/conf/default/disable_ipv6": "1",
        "ipv6/conf/lo/disable_ipv6": "1",
    }


def wanted_guards(
    bridge: str, observed: Observed, named_uplinks: frozenset[str], addresses: frozenset[str]
) -> tuple[Guard, ...]:
    """The guards that the bridge should have, one for each kind of kernel, best first.

    ``addresses`` are its service addresses besides SERVICE_ADDRESS.
    """
    ours = BridgeNames(bridge).veth_bridge
    # An operator may name an uplink for many bridges. It is a port of at most one, and that one guards it.
    known = observed.guard.sets.get(guards.UPLINKS, {}) if observed.guard else {}
    own = observed.guard.own(guards.UPLINKS) if observed.guard else {}
    elsewhere = known.keys() - own.keys() - observed.ports
    uplinks = dict.fromkeys(observed.recognised_uplinks - {ours}, False)
    uplinks |= dict.fromkeys(named_uplinks - {ours} - elsewhere, True)
    others = observed.guard.addresses_elsewhere if observed.guard else frozenset()
    by_bridge = Guard(bridge, None, uplinks, addresses=addresses, addresses_elsewhere=others)
    by_port = by_bridge._replace(ports=observed.ports | {ours})
    return by_bridge, by_port, by_bridge._replace(limited=False), by_port._replace(limited=False)


def stranger(bridge: str, observed: Observed) -> str:
    """Return what another program has under a name that this bridge needs, and that ``up`` cannot use; or "".

    The whole pair of another program can be used: its port leads to its link in the bridge's namespace.
    """
    names = BridgeNames(bridge)
    outer = observed.outer
    if outer is not None and not outer.veth:
        return f"link {names.veth_bridge} is not a veth"
    if outer is not None and not (observed.paired or observed.outer_ours):
        return f"link {names.veth_bridge} belongs to another program"
    if observed.inner is not None and not (observed.paired or observed.inner_ours):
        return f"link {names.veth_namespace} in namespace {names.namespace} belongs to another program"
    if observed.name_taken and not (observed.namespace or observed.name_ours):
        return f"{names.namespace} in /run/netns is no namespace"
    shared = list(filter(guards.is_shared, observed.guard.foreign)) if observed.guard else ()
    if shared:
        return f"chain {min(shared)} in table bridge {TABLE} belongs to another program"
    return ""


def kept(bridge: str, observed: Observed) -> list[str]:
    """Return what ``down`` leaves, because another program made it, in words."""
    names = BridgeNames(bridge)
    words = []
    if observed.outer is not None and not observed.outer_ours:
        words.append(f"link {names.veth_bridge}")
    if observed.name_taken and not observed.name_ours:
        words.append(f"namespace {names.namespace}")
    if observed.guard is not None and names.arp_guard in observed.guard.foreign:
        words.append(f"chain {names.arp_guard}")
    return words


def up(wanted: ServiceMap, observed: Observed, named_uplinks: frozenset[str]) -> list[Action]:
    """Return the actions after which the bridge has everything it should have; none for one in order."""
    return [
        *guard_actions(wanted.bridge, observed, named_uplinks, wanted.addresses),
        *_link_actions(BridgeNames(wanted.bridge), observed, _with_prefixes(wanted.addresses)),
        *_map_actions(wanted, observed),
    ]


def up_foreign(found: ServiceMap, observed: Observed, mac: str) -> list[Action]:
    """Return the actions that repair a bridge with this map which another program built.

    Such a bridge has no guards of ours, and its link settings are the other program's choice. So only a
    missing namespace or veth pair is made again, with ``mac``, the address that guests have learnt.
    """
    if not links_broken(found, observed, foreign=True):
        return []
    return _link_actions(BridgeNames(found.bridge), observed, _with_prefixes(found.addresses), mac)


def links_broken(found: ServiceMap, observed: Observed, *, foreign: bool) -> bool:
    """Whether namespace, veth pair or sysctls need repair; of a ``foreign`` bridge only the first two."""
    if foreign:
        return not observed.paired
    return not _links_right(BridgeNames(found.bridge), observed, _with_prefixes(found.addresses))


def guards_broken(found: ServiceMap, observed: Observed, named_uplinks: frozenset[str]) -> bool:
    """Whether the guards do not match the ports and the service addresses that the bridge has."""
    return bool(guard_actions(found.bridge, observed, named_uplinks, found.addresses))


def down(bridge: str, observed: Observed) -> list[Action]:
    """Return the actions after which nothing of ours is left for the bridge, except its processes."""
    return [*unload(bridge, observed), *dismantle(bridge, observed)]


def unload(bridge: str, observed: Observed) -> list[Action]:
    """The first part of ``down``: deletes what is in nftables, from where the processes learn of it."""
    commands = []
    if observed.map is not None:
        commands += map_commands.delete_map(bridge)
    elif observed.guard is not None and observed.guard.own(guards.VETHS):
        # They outlive a map that another program deleted.
        commands += map_commands.delete_sets(bridge, all_of_them=not observed.map_stays)
    if observed.guard is not None and observed.guard.anything:
        commands += guards.unload(observed.guard)
    if not commands:
        return []
    from tproxy.bridge.actions import DeleteMapAndGuards

    return [DeleteMapAndGuards(bridge, tuple(commands))]


def dismantle(bridge: str, observed: Observed) -> list[Action]:
    """The second part of ``down``, for when the relay has ended: removes our veth pair and namespace."""
    from tproxy.bridge.actions import DeleteLink, RemoveName

    names = BridgeNames(bridge)
    actions: list[Action] = []
    if observed.outer_ours:
        actions.append(DeleteLink(names.veth_bridge))
    if observed.name_taken and observed.name_ours:
        actions.append(RemoveName(names.namespace))
    return actions


def guests(bridge: str, observed: Observed, uplinks: frozenset[str]) -> frozenset[str]:
    """The bridge's ports without ours, probes and uplinks: those that may belong to a running guest."""
    theirs = observed.outer is not None and not (observed.paired or observed.outer_ours)
    ours = frozenset() if theirs else {BridgeNames(bridge).veth_bridge}
    return observed.ports - uplinks - observed.probes - ours


def guard_actions(
    bridge: str, observed: Observed, named_uplinks: frozenset[str], addresses: frozenset[str]
) -> list[Action]:
    """The part of ``up`` for the guards."""
    found = observed.guard or ObservedGuard(bridge)
    preferred, *others = wanted = wanted_guards(bridge, observed, named_uplinks, addresses)
    known = next((each for each in wanted if each.rules_are_in(found)), None)
    if known is None and found.shared:  # the rules may be for other service addresses
        known = next((each for each in wanted if each.kind == found.kind), None)
    commands = guards.load(known or preferred, found)
    if not commands:
        return []
    from tproxy.bridge.actions import LoadGuards

    if known is not None:  # the rules that are loaded show which kind of kernel this is
        return [LoadGuards(bridge, tuple(commands))]
    fallbacks = tuple((guard.lacks, tuple(guards.load(guard, found))) for guard in others)
    return [LoadGuards(bridge, tuple(commands), fallbacks)]


def _with_prefixes(addresses: Collection[str]) -> tuple[str, ...]:
    """All service addresses of a bridge as its namespace should have them, sorted."""
    return tuple(sorted(map(with_prefix, (SERVICE_ADDRESS, *addresses))))


def _link_actions(
    names: BridgeNames, observed: Observed, addresses: tuple[str, ...], mac: str = SERVICE_MAC
) -> list[Action]:
    if _links_right(names, observed, addresses):
        return []
    from tproxy.bridge import actions

    outer, inner, mtu, paired = observed.outer, observed.inner, observed.bridge_mtu, observed.paired
    planned: list[Action] = []
    if not observed.namespace:
        if observed.name_taken:
            planned.append(actions.RemoveName(names.namespace))
        planned.append(actions.CreateNamespace(names.namespace))
    if not paired:
        # One end alone is useless, and so is one whose other end is in a former namespace.
        if observed.outer_ours:
            planned.append(actions.DeleteLink(names.veth_bridge))
        if observed.inner_ours:
            planned.append(actions.DeleteInner(names))
        planned.append(actions.CreateVeth(names, mtu))
    ours = with_prefix(SERVICE_ADDRESS_IPV6)
    ipv6 = ours in addresses
    sysctls = wrong_sysctls(names, observed, ipv6=ipv6) if paired else namespace_sysctls(names, ipv6=ipv6)
    # Those that are no service's, such as the one that the kernel makes of a MAC, go with the sysctls.
    gone = tuple(
        each
        for each in (inner.addresses if paired and inner else ())
        if each not in addresses and (each == ours or ":" not in each)
    )
    # Without these sysctls the address would be gone at once.
    later = {path: value for path, value in sysctls.items() if ours in gone and path.startswith("ipv6/")}
    if sysctls := {path: value for path, value in sysctls.items() if path not in later}:
        planned.append(actions.SetSysctls(names.namespace, sysctls))
    present = tuple(sorted({*addresses, *gone}))
    if not (paired and _inner_right(inner, mtu, present)):
        planned.append(actions.ConfigureInner(names, mtu, mac, present))
    if not (paired and _outer_right(outer, names.bridge, mtu)):
        planned.append(actions.AttachOuter(names, max(mtu, outer.mtu) if paired and outer else mtu, mac))
    elif outer and not outer.fixed:
        planned.append(actions.FixForwarding(names))
    if gone:
        planned.append(actions.RemoveAddresses(names, gone, later))
    return planned


def _links_right(names: BridgeNames, observed: Observed, addresses: tuple[str, ...]) -> bool:
    """Whether namespace, veth pair, sysctls and the bridge's entry for our MAC are as they should be."""
    outer = observed.outer
    return (
        observed.paired
        and not wrong_sysctls(names, observed, ipv6=with_prefix(SERVICE_ADDRESS_IPV6) in addresses)
        and _inner_right(observed.inner, observed.bridge_mtu, addresses)
        and _outer_right(outer, names.bridge, observed.bridge_mtu)
        and outer is not None
        and outer.fixed
    )


def wrong_sysctls(names: BridgeNames, observed: Observed, *, ipv6: bool = False) -> dict[str, str]:
    """The sysctls to set. One that was not found is missing in this kernel."""
    found = observed.sysctls or {}
    wanted = namespace_sysctls(names, ipv6=ipv6)
    wrong = {path: value for path, value in wanted.items() if found.get(path, value) != value}
    if ipv6 and NO_IPV6 in wrong:  # those of IPv6 were not looked at; they are set in their order
        others = _ipv6_sysctls(names)
        return {path: value for path, value in wrong.items() if path not in others} | others
    return wrong


def _inner_right(inner: InnerLink | None, mtu: int, addresses: tuple[str, ...]) -> bool:
    return (
        inner is not None
        and inner.up
        and inner.default_route
        and (inner.mac, inner.mtu, inner.addresses) == (SERVICE_MAC, mtu, addresses)
    )


def _outer_right(outer: OuterLink | None, bridge: str, mtu: int) -> bool:
    # A bridge takes the smallest MTU of its ports. If a guest's port made it smaller and ours followed, ours
    # would keep it small after the guest has gone. So our MTU may be larger than the bridge's, never smaller.
    return outer is not None and (outer.master, outer.up) == (bridge, True) and outer.mtu >= mtu


def _map_actions(wanted: ServiceMap, observed: Observed) -> list[Action]:
    found = observed.map
    commands = map_commands.add_map(wanted) if found is None else map_commands.change_map(found, wanted)
    if not commands:
        return []
    from tproxy.bridge.actions import LoadServiceMap

    return [LoadServiceMap(wanted.bridge, tuple(commands))]
