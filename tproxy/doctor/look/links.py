"""Reads what concerns the links of one bridge: the bridge, our veth pair and its namespace, ports."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from tproxy.addresses import SERVICE_MAC
from tproxy.bridge import obstacles, plan, plumbing, port_state
from tproxy.bridge.guards import ObservedGuard
from tproxy.bridge.obstacles import HostFirewall, Obstacle
from tproxy.bridge.plan import Observed
from tproxy.doctor.look import offload
from tproxy.errors import KernelError
from tproxy.kernel import links, netns, rtnetlink
from tproxy.names import BridgeNames

# Ports of a bridge whose settings are read: a few small files each.
_MOST_PORTS = 256


class Port(NamedTuple):
    """Settings of a port of a bridge that are on by default, except the first (bridge(8))."""

    isolated: bool = False
    learning: bool = True
    unicast: bool = True  # unicast_flood: frames for addresses that nobody has been seen with
    broadcast: bool = True


class Links(NamedTuple):
    """The links of one bridge as they were found. The defaults are those of a bridge that has nothing."""

    exists: bool = False
    is_bridge: bool = False
    real_name: str = ""  # of the link that has the bridge's name as an alternative name
    up: bool = False
    observed: Observed = Observed()
    unreadable: str = ""  # why the rest could not be read
    stranger: str = ""
    obstacles: tuple[Obstacle, ...] = ()
    ours: Port = Port()
    others: Mapping[str, Port] = MappingProxyType({})
    claimed_at: str = ""  # another port at which the bridge has our MAC
    offload_off: tuple[tuple[str, tuple[str, ...]], ...] = ()  # by link of the pair, those that lack any


def look(bridge: str, guard: ObservedGuard, firewall: HostFirewall) -> Links:
    """Look at a bridge with these guards. Of its service map nothing is known."""
    names = BridgeNames(bridge)
    try:
        exists = links.exists(bridge)
        if not exists or not links.is_bridge(bridge):
            real = links.real_name(bridge)
            return Links(
                exists=exists,
                real_name=real if real != bridge else "",
                observed=plumbing.observe_links(bridge)._replace(guard=guard),
            )
        observed = plumbing.observe_links(bridge)._replace(guard=guard)
        obstacles_found = obstacles.of(bridge, firewall)
    except (KernelError, OSError) as error:
        return Links(exists=True, is_bridge=True, unreadable=str(error))
    ports = sorted(observed.ports - {names.veth_bridge})[:_MOST_PORTS]
    return Links(
        exists=True,
        is_bridge=True,
        up=bool(int(port_state.read(f"{bridge}/flags") or "0", 16) & 1),
        observed=observed,
        stranger=plan.stranger(bridge, observed) or _alternative(names, observed),
        obstacles=tuple(obstacles_found),
        ours=_port(names.veth_bridge),
        others={port: _port(port) for port in ports},
        claimed_at=_claimed_at(names.veth_bridge),
        offload_off=_offloading(names, observed) if observed.paired else (),
    )


def _alternative(names: BridgeNames, observed: Observed) -> str:
    name = names.veth_bridge
    if observed.outer is None and (real := links.real_name(name)) != name:
        return f"{name} is an alternative name of link {real}"
    return ""


def _claimed_at(ours: str) -> str:
    """The port at which the bridge has our MAC, if that is not ``ours``; otherwise ""."""
    try:
        port = socket.if_nametoindex(ours)
        found = rtnetlink.port_of(port, SERVICE_MAC)
        return socket.if_indextoname(found) if found not in (0, port) else ""
    except OSError:
        return ""  # one of the two is gone


def _port(name: str) -> Port:
    def on(setting: str, default: str) -> bool:
        return (port_state.read(f"{name}/brport/{setting}") or default) != "0"

    return Port(
        on("isolated", "0"), on("learning", "1"), on("unicast_flood", "1"), on("broadcast_flood", "1")
    )


def _offloading(names: BridgeNames, observed: Observed) -> tuple[tuple[str, tuple[str, ...]], ...]:
    found = {names.veth_bridge: tuple(offload.switched_off(names.veth_bridge))}
    try:
        with netns.inside(names.namespace):
            found[names.veth_namespace] = tuple(offload.switched_off(names.veth_namespace))
    except KernelError:  # it went a moment ago
        pass
    return tuple((link, words) for link, words in found.items() if words)
