"""Compares what a bridge should have with what it has, and returns ordered actions. Pure.

The same comparison builds a bridge, repairs it, changes it, and finds nothing to do. An action is a value:
``str()`` gives the words for ``--dry-run`` and the log, and ``plumbing.carry_out`` carries it out.
"""

from collections.abc import Mapping

from tproxy.bridge import guards, service_map
from tproxy.bridge.guards import Guard, ObservedGuard
from tproxy.kernel.links import InnerLink, OuterLink
from tproxy.model import PORT_MAC, SERVICE_ADDRESS, SERVICE_MAC, TABLE, BridgeNames, ServiceMap
from tproxy.typed import NamedTuple


class Observed(NamedTuple):
    """One bridge as it was found. The defaults are those of a bridge that has nothing."""

    bridge_mtu: int = 0
    ports: frozenset[str] = frozenset()
    recognised_uplinks: frozenset[str] = frozenset()  # ports of a kind that leads off the host
    name_taken: bool = False  # /run/netns has a file of the namespace's name
    name_ours: bool = False  # that file is a namespace with our mark, or an empty file that a crash left
    namespace: bool = False  # that file is a namespace
    outer: OuterLink | None = None
    inner: InnerLink | None = None
    sysctls: Mapping[str, str] | None = None
    map: ServiceMap | None = None
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

    def added_since(self, before: "Observed") -> "Observed":
        """Only what was not there ``before``. When an ``up`` fails half-way, exactly this is removed."""
        return self._replace(
            name_taken=self.namespace and not before.namespace,
            outer=None if before.outer else self.outer,
            map=None if before.map else self.map,
            guard=None if before.guard and before.guard.anything else self.guard,
        )


class RemoveName(NamedTuple):
    """Remove the file of a namespace's name, whether or not a namespace is mounted on it."""

    namespace: str

    def __str__(self) -> str:
        return f"remove namespace {self.namespace}"


class CreateNamespace(NamedTuple):
    namespace: str

    def __str__(self) -> str:
        return f"create namespace {self.namespace}"


class DeleteLink(NamedTuple):
    link: str

    def __str__(self) -> str:
        return f"delete link {self.link}"


class DeleteInner(NamedTuple):
    """Delete the namespace's end of a veth pair."""

    names: BridgeNames

    def __str__(self) -> str:
        return f"delete link {self.names.veth_namespace} in namespace {self.names.namespace}"


class CreateVeth(NamedTuple):
    names: BridgeNames
    mtu: int

    def __str__(self) -> str:
        return (
            f"create veth {self.names.veth_bridge} with peer {self.names.veth_namespace} "
            f"in namespace {self.names.namespace}"
        )


class SetSysctls(NamedTuple):
    """Set sysctls in the namespace. ``values`` are by path below net."""

    namespace: str
    values: Mapping[str, str]

    def __str__(self) -> str:
        if len(self.values) > 3:  # usually all, in a new namespace
            return f"set {len(self.values)} sysctls in namespace {self.namespace}"
        values = ", ".join(f"{path}={value}" for path, value in self.values.items())
        return f"set sysctls in namespace {self.namespace}: {values}"


class ConfigureInner(NamedTuple):
    """Give the namespace's end of the veth pair its addresses and route, and set it up."""

    names: BridgeNames
    mtu: int
    mac: str = SERVICE_MAC

    def __str__(self) -> str:
        return (
            f"configure {self.names.veth_namespace}: address {SERVICE_ADDRESS}/32, MAC {self.mac}, "
            f"MTU {self.mtu}, default route, up"
        )


class AttachOuter(NamedTuple):
    """Attach the bridge's end of the veth pair to the bridge, and set it up."""

    names: BridgeNames
    mtu: int

    def __str__(self) -> str:
        return f"make {self.names.veth_bridge} a port of {self.names.bridge}: MTU {self.mtu}, up"


class LoadServiceMap(NamedTuple):
    """Create or change the service map, in one nftables transaction."""

    bridge: str
    commands: tuple[str, ...]

    def __str__(self) -> str:
        return f"load service map of {self.bridge}"


class LoadGuards(NamedTuple):
    """Create or change the guards, in one nftables transaction.

    ``fallbacks`` are for a kernel that refuses ``commands``, best first: what it lacks then, in words, and
    the transaction. There are none when the rules that are loaded already show which kind of kernel this is.
    """

    bridge: str
    commands: tuple[str, ...]
    fallbacks: tuple[tuple[str, tuple[str, ...]], ...] = ()

    def __str__(self) -> str:
        return f"load guards of {self.bridge}"


class DeleteMapAndGuards(NamedTuple):
    """Delete the service map and the guards, whichever of them exist, in one nftables transaction."""

    bridge: str
    commands: tuple[str, ...]

    def __str__(self) -> str:
        return f"delete map and guards of {self.bridge}"


Action = (
    RemoveName
    | CreateNamespace
    | DeleteLink
    | DeleteInner
    | CreateVeth
    | SetSysctls
    | ConfigureInner
    | AttachOuter
    | LoadServiceMap
    | LoadGuards
    | DeleteMapAndGuards
)


def namespace_sysctls(names: BridgeNames) -> dict[str, str]:
    """The sysctls that the namespace needs, by path below net.

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
    values["ipv6/conf/all/disable_ipv6"] = "1"
    values["ipv6/conf/default/disable_ipv6"] = "1"
    return values


def wanted_guards(bridge: str, observed: Observed, named_uplinks: frozenset[str]) -> tuple[Guard, ...]:
    """The guards that the bridge should have, one for each kind of kernel, best first."""
    ours = BridgeNames(bridge).veth_bridge
    # An operator may name an uplink for many bridges. It is a port of at most one, and that one guards it.
    known = observed.guard.sets.get(guards.UPLINKS, {}) if observed.guard else {}
    own = observed.guard.own(guards.UPLINKS) if observed.guard else {}
    elsewhere = known.keys() - own.keys() - observed.ports
    uplinks = dict.fromkeys(observed.recognised_uplinks - {ours}, False)
    uplinks |= dict.fromkeys(named_uplinks - {ours} - elsewhere, True)
    by_bridge, by_port = Guard(bridge, None, uplinks), Guard(bridge, observed.ports | {ours}, uplinks)
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
    shared = observed.guard.foreign.intersection(guards.SHARED_CHAINS) if observed.guard else ()
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
        *guard_actions(wanted.bridge, observed, named_uplinks),
        *_link_actions(BridgeNames(wanted.bridge), observed),
        *_map_actions(wanted, observed),
    ]


def up_foreign(bridge: str, observed: Observed, mac: str) -> list[Action]:
    """Return the actions that repair a bridge which another program built.

    Such a bridge has no guards of ours, and its link settings are the other program's choice. So only a
    missing namespace or veth pair is made again, with ``mac``, the address that guests have learnt.
    """
    if not links_broken(bridge, observed, foreign=True):
        return []
    actions = _link_actions(BridgeNames(bridge), observed)
    return [each._replace(mac=mac) if isinstance(each, ConfigureInner) else each for each in actions]


def links_broken(bridge: str, observed: Observed, *, foreign: bool) -> bool:
    """Whether namespace, veth pair or sysctls need repair; of a ``foreign`` bridge only the first two."""
    actions = _link_actions(BridgeNames(bridge), observed)
    return any(isinstance(each, CreateVeth) for each in actions) if foreign else bool(actions)


def guards_broken(bridge: str, observed: Observed, named_uplinks: frozenset[str]) -> bool:
    """Whether the guards do not match the ports that the bridge has."""
    return bool(guard_actions(bridge, observed, named_uplinks))


def down(bridge: str, observed: Observed) -> list[Action]:
    """Return the actions after which nothing of ours is left for the bridge, except its processes."""
    return [*unload(bridge, observed), *dismantle(bridge, observed)]


def unload(bridge: str, observed: Observed) -> list[Action]:
    """The first part of ``down``: deletes what is in nftables, from where the processes learn of it."""
    commands = []
    if observed.map is not None:
        commands += service_map.delete_map(bridge)
    elif observed.guard is not None and observed.guard.own(guards.VETHS):
        commands += service_map.delete_set(bridge)  # it outlives a map that another program deleted
    if observed.guard is not None and observed.guard.anything:
        commands += guards.unload(observed.guard)
    return [DeleteMapAndGuards(bridge, tuple(commands))] if commands else []


def dismantle(bridge: str, observed: Observed) -> list[Action]:
    """The second part of ``down``, for when the relay has ended: removes our veth pair and namespace."""
    names = BridgeNames(bridge)
    actions: list[Action] = []
    if observed.outer_ours:
        actions.append(DeleteLink(names.veth_bridge))
    if observed.name_taken and observed.name_ours:
        actions.append(RemoveName(names.namespace))
    return actions


def guests(bridge: str, observed: Observed, uplinks: frozenset[str]) -> frozenset[str]:
    """The bridge's ports without ours and the uplinks: those that may belong to a running guest."""
    theirs = observed.outer is not None and not (observed.paired or observed.outer_ours)
    return observed.ports - uplinks - (frozenset() if theirs else {BridgeNames(bridge).veth_bridge})


def guard_actions(bridge: str, observed: Observed, named_uplinks: frozenset[str]) -> list[Action]:
    """The part of ``up`` for the guards."""
    found = observed.guard or ObservedGuard(bridge)
    preferred, *others = wanted_guards(bridge, observed, named_uplinks)
    for guard in (preferred, *others):
        if guard.rules_are_in(found):
            commands = guards.load(guard, found)
            return [LoadGuards(bridge, tuple(commands))] if commands else []
    fallbacks = tuple((guard.lacks, tuple(guards.load(guard, found))) for guard in others)
    return [LoadGuards(bridge, tuple(guards.load(preferred, found)), fallbacks)]


def _link_actions(names: BridgeNames, observed: Observed) -> list[Action]:
    outer, inner, mtu = observed.outer, observed.inner, observed.bridge_mtu
    namespace, wanted_sysctls = names.namespace, namespace_sysctls(names)
    actions: list[Action] = []
    if not observed.namespace:
        if observed.name_taken:
            actions.append(RemoveName(namespace))
        actions.append(CreateNamespace(namespace))
    paired = observed.paired
    if not paired:
        # One end alone is useless, and so is one whose other end is in a former namespace.
        if observed.outer_ours:
            actions.append(DeleteLink(names.veth_bridge))
        if observed.inner_ours:
            actions.append(DeleteInner(names))
        actions.append(CreateVeth(names, mtu))
    found = observed.sysctls or {}
    differing = {path: value for path, value in wanted_sysctls.items() if found.get(path) != value}
    if not paired:
        actions.append(SetSysctls(namespace, wanted_sysctls))
    elif any(path in found for path in differing):
        actions.append(SetSysctls(namespace, {path: differing[path] for path in differing if path in found}))
    if not paired or inner is None or not _inner_right(inner, mtu):
        actions.append(ConfigureInner(names, mtu))
    # A bridge takes the smallest MTU of its ports. If a guest's port made it smaller and ours followed, ours
    # would keep it small after the guest has gone. So our MTU may be larger than the bridge's, never smaller.
    if not paired or outer is None or (outer.master, outer.up) != (names.bridge, True) or outer.mtu < mtu:
        actions.append(AttachOuter(names, max(mtu, outer.mtu) if paired and outer else mtu))
    return actions


def _inner_right(inner: InnerLink, mtu: int) -> bool:
    return (
        inner.up
        and inner.default_route
        and (inner.mac, inner.mtu, inner.address) == (SERVICE_MAC, mtu, f"{SERVICE_ADDRESS}/32")
    )


def _map_actions(wanted: ServiceMap, observed: Observed) -> list[Action]:
    found = observed.map
    commands = service_map.add_map(wanted) if found is None else service_map.change_map(found, wanted)
    return [LoadServiceMap(wanted.bridge, tuple(commands))] if commands else []
