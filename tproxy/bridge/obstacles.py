"""Names what is known to keep the guests of a bridge from their services, although the ports listen.

``up`` asks when ``port_state`` finds that something may be in the way, and `tproxy status` for each bridge.
Observing is thin, ``judge`` is pure.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping

from tproxy.addresses import SERVICE_ADDRESS
from tproxy.bridge import port_state
from tproxy.bridge.port_state import FORWARDING
from tproxy.errors import KernelError
from tproxy.kernel import links, netns
from tproxy.names import BridgeNames
from tproxy.typed import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from tproxy.bridge.host_firewall import Firewall

_IFF_UP = 0x1  # <linux/if.h>
# States of a bridge's port, <linux/if_bridge.h>
_DISABLED, _LISTENING, _LEARNING, _BLOCKING = 0, 1, 2, 4
# Seconds in which the kernel hears that both ends of a new veth pair are up.
_CARRIER_TIME = 1.0
_NAMED_PORTS = 3  # that a line names before it counts


class Obstacle(NamedTuple):
    """What keeps guests out. ``kind`` is a word for programs, ``text`` a line that names what to do."""

    kind: str
    text: str


class Facts(NamedTuple):
    """One bridge as it was found. The defaults are those of a bridge that serves its guests."""

    namespace: bool = True
    port: bool = True  # the link exists
    master: str | None = None  # the bridge that has our port, "" for none; None for the right one
    bridge_up: bool = True
    port_up: bool = True
    state: int = FORWARDING
    forwards_in: float = 0.0  # seconds until a port that is listening or learning forwards
    inner: str = ""  # what is wrong with the namespace's end of the pair
    vlans: Mapping[str, Any] | None = None  # of our port and the others; None without VLAN filtering
    droppers: tuple[str, ...] = ()  # what could drop bridged packets, in words


class HostFirewall:
    """The host's firewall, which is read when the first bridge needs it, and once for all bridges."""

    def __init__(self) -> None:
        self._read: Firewall | None = None

    def droppers(self, bridge: str) -> tuple[str, ...]:
        """What could drop packets from the bridge to the bridge; nothing when they are not shown to it."""
        if not port_state.shown_to_iptables(bridge):
            return ()
        if self._read is None:
            from tproxy.bridge import host_firewall

            self._read = host_firewall.read()
        return tuple(self._read.droppers(bridge))


def after_up(bridge: str) -> list[Obstacle]:
    """The obstacles of a bridge whose links ``up`` has just found, or put, in order."""
    facts = _observe_port(bridge)
    deadline = time.monotonic() + _CARRIER_TIME
    while facts.state == _DISABLED and facts.bridge_up and time.monotonic() < deadline:
        time.sleep(0.01)
        facts = _observe_port(bridge)
    return judge(bridge, facts._replace(droppers=HostFirewall().droppers(bridge)))


def of(bridge: str, firewall: HostFirewall) -> list[Obstacle]:
    """The obstacles of a bridge in any state."""
    names = BridgeNames(bridge)
    facts = _observe_port(bridge)
    namespace = netns.identify(names.namespace) is not None
    inner = _inner_fault(names) if namespace else ""
    return judge(bridge, facts._replace(namespace=namespace, inner=inner, droppers=firewall.droppers(bridge)))


def judge(bridge: str, facts: Facts) -> list[Obstacle]:
    """Name the obstacles, the one to remove first at the beginning. Pure."""
    return [*_of_links(bridge, facts), *_of_vlans(bridge, facts), *_of_firewall(bridge, facts)]


def _of_links(bridge: str, facts: Facts) -> list[Obstacle]:
    names = BridgeNames(bridge)
    ours, repair = names.veth_bridge, f"`tproxy hook up --bridge {bridge}` repairs it"
    if not facts.namespace:
        return [Obstacle("namespace missing", f"namespace {names.namespace} does not exist; {repair}")]
    if not facts.port:
        return [Obstacle("port missing", f"link {ours} does not exist; {repair}")]
    if facts.master is not None:
        where = f"of {facts.master}, not of {bridge}" if facts.master else "of no bridge"
        return [Obstacle("port detached", f"link {ours} is a port {where}; {repair}")]
    found = []
    if not facts.bridge_up:
        found.append(Obstacle("bridge down", f"the bridge is down; `ip link set {bridge} up`"))
    if not facts.port_up:
        found.append(Obstacle("port down", f"port {ours} is down; {repair}"))
    if facts.inner:
        found.append(Obstacle("namespace link", f"{facts.inner}; {repair}"))
    if not found and facts.state != FORWARDING:
        found.append(_of_state(ours, facts))
    return found


def _of_state(ours: str, facts: Facts) -> Obstacle:
    if facts.state in (_LISTENING, _LEARNING):
        state = "listening" if facts.state == _LISTENING else "learning"
        return Obstacle(
            "STP",
            f"port {ours} does not forward yet (STP state {state}): guests reach the service in about "
            f"{facts.forwards_in:.0f} s, the bridge's forward delay",
        )
    if facts.state == _BLOCKING:
        return Obstacle("STP", f"STP blocks port {ours}; see `bridge -d link show dev {ours}`")
    return Obstacle("port down", f"port {ours} is disabled; see `bridge -d link show dev {ours}`")


def _of_vlans(bridge: str, facts: Facts) -> list[Obstacle]:
    ours = BridgeNames(bridge).veth_bridge
    vlans = facts.vlans or {}
    if ours not in vlans:
        return []
    pvid = vlans[ours].pvid
    if not pvid:
        return [
            Obstacle(
                "VLAN",
                f"the bridge filters VLANs, and port {ours} has no PVID: it takes no frames; "
                f"`bridge vlan add dev {ours} vid VID pvid untagged` with the guests' VLAN, "
                "or a bridge for each VLAN",
            )
        ]
    others = sorted(port for port, found in vlans.items() if pvid not in found.members)
    if not others:
        return []
    more = f" and {len(others) - _NAMED_PORTS} more" if len(others) > _NAMED_PORTS else ""
    return [
        Obstacle(
            "VLAN",
            f"the bridge filters VLANs, and port {ours} is in VLAN {pvid}: no service for guests at "
            f"{', '.join(others[:_NAMED_PORTS])}{more}, which are not; use a bridge for each VLAN",
        )
    ]


def _of_firewall(bridge: str, facts: Facts) -> list[Obstacle]:
    if not facts.droppers:
        return []
    return [
        Obstacle(
            "host firewall",
            "bridge-nf-call-iptables is 1, and the host's firewall could drop what guests send to "
            f"{SERVICE_ADDRESS}: {'; '.join(facts.droppers)}. Accept what comes from {bridge} and goes to "
            f"{bridge} in a rule before, or set net.bridge.bridge-nf-call-iptables to 0",
        )
    ]


def _observe_port(bridge: str) -> Facts:
    """What sysfs says of our port, and of the bridge's VLANs."""
    ours = BridgeNames(bridge).veth_bridge
    master = port_state.master(ours)
    facts = Facts(master=None if master == bridge else master)
    if master == bridge:
        facts = facts._replace(state=port_state.state(ours), vlans=_vlans(bridge))
    if master != bridge or facts.state != FORWARDING:  # a port that forwards is up, and so is its bridge
        facts = facts._replace(
            port=bool(port_state.read(f"{ours}/ifindex")),
            bridge_up=_is_up(bridge),
            port_up=_is_up(ours),
            forwards_in=_forwards_in(bridge, ours, facts.state),
        )
    return facts


def _forwards_in(bridge: str, ours: str, state: int) -> float:
    """Seconds until the port forwards. The kernel has hundredths: USER_HZ, time(7)."""
    left = int(port_state.read(f"{ours}/brport/forward_delay_timer") or 0)
    if state == _LISTENING:  # it is learning for as long again
        left += int(port_state.read(f"{bridge}/bridge/forward_delay") or 0)
    return left / os.sysconf("SC_CLK_TCK")


def _vlans(bridge: str) -> Mapping[str, Any] | None:
    if not links.filters_vlans(bridge):
        return None
    from tproxy.kernel import kinds, vlans

    ports = links.ports(bridge)
    return vlans.read(ports - kinds.uplinks(bridge, ports))


def _inner_fault(names: BridgeNames) -> str:
    try:
        with netns.inside(names.namespace):
            inner = links.inner_link(names.veth_namespace)
    except KernelError as error:  # it went a moment ago
        return str(error)
    where = f"{names.veth_namespace} in namespace {names.namespace}"
    if inner is None:
        return f"{where} does not exist"
    if not inner.up:
        return f"{where} is down"
    if f"{SERVICE_ADDRESS}/32" not in inner.addresses:
        return f"{where} does not have the address {SERVICE_ADDRESS}/32"
    return "" if inner.default_route else f"{where} has no default route"


def _is_up(link: str) -> bool:
    return bool(int(port_state.read(f"{link}/flags") or "0", 16) & _IFF_UP)
