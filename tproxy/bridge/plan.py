"""What a bridge should have against what it has, as ordered actions. Pure.

The same comparison builds, repairs, changes, and finds nothing to do. An action is a value that says
what would be done; ``plumbing`` does it.
"""

from collections.abc import Mapping

from tproxy.bridge import guards, service_map
from tproxy.bridge.guards import Guard, ObservedGuard
from tproxy.kernel.links import InnerLink, OuterLink
from tproxy.model import SERVICE_ADDRESS, SERVICE_MAC, BridgeNames, ServiceMap
from tproxy.typed import NamedTuple


class Observed(NamedTuple):
    """One bridge as it was found."""

    bridge_mtu: int = 0
    ports: frozenset[str] = frozenset()
    recognised_uplinks: frozenset[str] = frozenset()
    name_taken: bool = False  # a file in /run/netns
    namespace: bool = False  # ... that is a namespace
    outer: OuterLink | None = None
    inner: InnerLink | None = None
    sysctls: Mapping[str, str] | None = None
    map: ServiceMap | None = None
    guard: ObservedGuard | None = None

    @property
    def anything(self) -> bool:
        return bool(self.name_taken or self.outer or self.map or (self.guard and self.guard.anything))

    def added_since(self, before: "Observed") -> "Observed":
        """Only what was not there before: what is to be taken away when the rest cannot be built."""
        return self._replace(
            name_taken=self.namespace and not before.namespace,
            outer=None if before.outer else self.outer,
            map=None if before.map else self.map,
            guard=None if before.guard and before.guard.anything else self.guard,
        )


class RemoveName(NamedTuple):
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
    names: BridgeNames

    def __str__(self) -> str:
        return f"delete link {self.names.veth_namespace} in {self.names.namespace}"


class CreateVeth(NamedTuple):
    names: BridgeNames
    mtu: int

    def __str__(self) -> str:
        return f"create veth {self.names.veth_bridge} with {self.names.veth_namespace} in its namespace"


class SetSysctls(NamedTuple):
    """Values by path below net, in the namespace."""

    namespace: str
    values: Mapping[str, str]

    def __str__(self) -> str:
        if len(self.values) > 3:  # a new namespace: all of them
            return f"set {len(self.values)} sysctls in {self.namespace}"
        return f"set in {self.namespace}: " + ", ".join(f"{k}={v}" for k, v in self.values.items())


class ConfigureInner(NamedTuple):
    names: BridgeNames
    mtu: int
    mac: str = SERVICE_MAC

    def __str__(self) -> str:
        return (
            f"give {self.names.veth_namespace} {SERVICE_ADDRESS}/32, {self.mac}, "
            f"MTU {self.mtu}, a default route, and set it up"
        )


class AttachOuter(NamedTuple):
    names: BridgeNames
    mtu: int

    def __str__(self) -> str:
        return f"make {self.names.veth_bridge} a port of {self.names.bridge}, MTU {self.mtu}, up"


class Load(NamedTuple):
    """One nftables transaction."""

    what: str
    commands: tuple[str, ...]

    def __str__(self) -> str:
        return self.what


class LoadGuard(NamedTuple):
    """Load guards that match by ``meta ibrname``, or, where the kernel cannot, by port names."""

    bridge: str
    preferred: tuple[str, ...]
    fallback: tuple[str, ...]

    def __str__(self) -> str:
        return f"load guards of {self.bridge}"


Action = (
    RemoveName
    | CreateNamespace
    | DeleteLink
    | DeleteInner
    | CreateVeth
    | SetSysctls
    | ConfigureInner
    | AttachOuter
    | Load
    | LoadGuard
)


def namespace_sysctls(names: BridgeNames) -> dict[str, str]:
    """What the namespace needs, by path below net; a new one inherits what a hardened host has."""
    values = {"ipv4/ip_forward": "0"}  # first: the kernel resets others along with it
    for scope in ("all", names.veth_namespace):
        conf = f"ipv4/conf/{scope}"
        values |= {
            f"{conf}/arp_ignore": "1",  # 2 never answers: no guest is in the subnet of a /32
            f"{conf}/arp_announce": "0",
            f"{conf}/arp_filter": "0",
            f"{conf}/proxy_arp": "0",
            f"{conf}/rp_filter": "0",
            f"{conf}/route_localnet": "0",
            f"{conf}/accept_redirects": "0",
            f"{conf}/accept_source_route": "0",
            f"{conf}/send_redirects": "0",
        }
    values["ipv6/conf/all/disable_ipv6"] = "1"
    values["ipv6/conf/default/disable_ipv6"] = "1"
    return values


def wanted_guards(bridge: str, observed: Observed, named_uplinks: frozenset[str]) -> tuple[Guard, Guard]:
    """The guards as they should be: where the kernel has ``meta ibrname``, and where not."""
    ours = BridgeNames(bridge).veth_bridge
    # An uplink can be named for many bridges, but is a port of one at most, to which its guard belongs.
    known = observed.guard.sets.get(guards.UPLINKS, {}) if observed.guard else {}
    own = observed.guard.own(guards.UPLINKS) if observed.guard else {}
    elsewhere = known.keys() - own.keys() - observed.ports
    uplinks = dict.fromkeys(observed.recognised_uplinks - {ours}, False)
    uplinks |= dict.fromkeys(named_uplinks - {ours} - elsewhere, True)
    return Guard(bridge, None, uplinks), Guard(bridge, observed.ports | {ours}, uplinks)


def up(wanted: ServiceMap, observed: Observed, named_uplinks: frozenset[str]) -> list[Action]:
    """Actions after which the bridge has all it should have."""
    return [
        *_guard_actions(wanted.bridge, observed, named_uplinks),
        *_link_actions(BridgeNames(wanted.bridge), observed),
        *_map_actions(wanted, observed),
    ]


def up_foreign(bridge: str, observed: Observed, mac: str) -> list[Action]:
    """What ``up`` does, on a bridge that another program built in its own way, without guards of ours.

    Of that way only so much is known that there are a namespace and a veth pair, and the MAC that guests
    have learnt.
    """
    if not links_broken(bridge, observed, foreign=True):
        return []
    actions = _link_actions(BridgeNames(bridge), observed)
    return [each._replace(mac=mac) if isinstance(each, ConfigureInner) else each for each in actions]


def links_broken(bridge: str, observed: Observed, *, foreign: bool) -> bool:
    """Whether namespace, veth pair or sysctls are not as they should be."""
    actions = _link_actions(BridgeNames(bridge), observed)
    return any(isinstance(each, CreateVeth) for each in actions) if foreign else bool(actions)


def guards_broken(bridge: str, observed: Observed, named_uplinks: frozenset[str]) -> bool:
    """Whether the guards are not as they should be for the ports that are there."""
    return bool(_guard_actions(bridge, observed, named_uplinks))


def down(bridge: str, observed: Observed) -> list[Action]:
    """Actions after which nothing of ours is left for the bridge, save its processes."""
    return [*unload(bridge, observed), *dismantle(bridge, observed)]


def unload(bridge: str, observed: Observed) -> list[Action]:
    """The part of ``down`` by which the processes learn of it."""
    commands = []
    if observed.map is not None:
        commands += service_map.delete_map(bridge)
    if observed.guard is not None and observed.guard.anything:
        commands += guards.unload(observed.guard)
    return [Load(f"delete map and guards of {bridge}", tuple(commands))] if commands else []


def dismantle(bridge: str, observed: Observed) -> list[Action]:
    """The part of ``down`` that comes when the relay has ended."""
    names = BridgeNames(bridge)
    actions: list[Action] = []
    if observed.outer is not None and observed.outer.veth:
        actions.append(DeleteLink(names.veth_bridge))
    if observed.name_taken:
        actions.append(RemoveName(names.namespace))
    return actions


def guests(bridge: str, observed: Observed, uplinks: frozenset[str]) -> frozenset[str]:
    """Ports at which somebody may still need the service."""
    return observed.ports - uplinks - {BridgeNames(bridge).veth_bridge}


def _guard_actions(bridge: str, observed: Observed, named_uplinks: frozenset[str]) -> list[Action]:
    found = observed.guard or ObservedGuard(bridge)
    preferred, fallback = wanted_guards(bridge, observed, named_uplinks)
    for guard in (preferred, fallback):
        if guard.rules_are_in(found):
            commands = guards.load(guard, found)
            return [Load(f"load guards of {bridge}", tuple(commands))] if commands else []
    return [LoadGuard(bridge, tuple(guards.load(preferred, found)), tuple(guards.load(fallback, found)))]


def _link_actions(names: BridgeNames, observed: Observed) -> list[Action]:
    outer, inner, mtu = observed.outer, observed.inner, observed.bridge_mtu
    namespace, wanted_sysctls = names.namespace, namespace_sysctls(names)
    actions: list[Action] = []
    if not observed.namespace:
        if observed.name_taken:
            actions.append(RemoveName(namespace))
        actions.append(CreateNamespace(namespace))
    paired = outer is not None and inner is not None and outer.peer == inner.ifindex
    if not paired:
        # One end without the other, or with that of a former namespace, is of no use.
        if outer is not None:
            actions.append(DeleteLink(names.veth_bridge))
        if inner is not None:
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
    # More does no harm, less does: a bridge takes the least MTU of its ports. If ours went down with it
    # for a guest's, that would keep it there when the guest has gone.
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
    return [Load(f"load service map of {wanted.bridge}", tuple(commands))] if commands else []
