"""Judges what nftables has for one bridge, and who else claims the service there."""

from __future__ import annotations

from tproxy.addresses import SERVICE_ADDRESS
from tproxy.bridge import plan, reached
from tproxy.bridge.guard_rules import BURST, KNOWN_SECONDS
from tproxy.bridge.obstacles import Obstacle
from tproxy.bridge.wall import Wall
from tproxy.doctor.finding import Finding, bad, good, warning
from tproxy.doctor.look.links import Links
from tproxy.doctor.look.processes import Agent
from tproxy.doctor.look.rules import Rules
from tproxy.model import ServiceKey, ServiceMap
from tproxy.names import TABLE, BridgeNames

# A chain of another program that drops can still accept what guests send, which only a guest can tell.
_TRY = "tproxy probe {}"


def of_map(bridge: str, found: Rules, repair: str) -> Finding:
    """Whether the bridge has services."""
    names = BridgeNames(bridge)
    if found.map_problem:
        named = next((each for each in (names.members, names.cards) if each in found.map_problem), None)
        what = f"set ip one_tproxy {named}" if named else f"map ip one_tproxy {names.map}"
        return bad("map", found.map_problem, f"nft delete {what}")
    if found.map is None:
        text = f"there is no map {names.map}: no hook brought the bridge up, or somebody took it down"
        return bad("map", text, repair)
    if not found.map.services:
        text = f"map {names.map} is empty: no entry of the file applies to the bridge's networks"
        return warning("map", text, "tproxy check")
    if found.map_warnings:
        return bad("map", found.map_warnings[0], f"nft list map ip one_tproxy {names.map}")
    count = len(found.map.services)
    return good("map", f"{names.map} has {count} {'service' if count == 1 else 'services'}")


def of_uplinks(found: Links) -> Finding:
    """Whether named uplinks are ports of the bridge."""
    observed = found.observed
    named = observed.guard.named_uplinks if observed.guard else frozenset()
    if missing := sorted(named - observed.ports):
        text = f"the uplink {missing[0]} is not a port of the bridge: what is behind it counts as a guest"
        return warning("uplinks", text, f"ip link show dev {missing[0]}")
    uplinks = sorted(named | observed.recognised_uplinks)
    return good(
        "uplinks", f"kept from the service: {', '.join(uplinks)}" if uplinks else "the bridge has none"
    )


def of_sources(bridge: str, found: Rules) -> list[Finding]:
    """Whether a port has as many sources as one may bring in; only where they were counted."""
    crowded = sorted((count, port) for port, count in found.crowded.items() if count >= BURST)
    if not crowded:
        return []
    count, port = crowded[-1]
    text = f"{count} addresses asked for the service at port {port} in {KNOWN_SECONDS} s: more have to wait"
    return [warning("guards", text, f"nft list set bridge {TABLE} known")]


def of_guards(loaded: ServiceMap, found: Links, repair: str, *, ours: bool) -> Finding:
    """Whether the guards are as ``up`` would load them, on a bridge that is ``ours``."""
    guard = found.observed.guard
    if not ours:
        return warning("guards", "there are none: another program built the bridge", repair)
    uplinks = guard.named_uplinks if guard else frozenset()
    claimed = ", ".join((SERVICE_ADDRESS, *sorted(loaded.addresses)))
    if plan.guards_broken(loaded, found.observed, uplinks):
        missing = "there are none" if not (guard and guard.anything) else "they were changed"
        return bad("guards", f"{missing}: others on the bridge can claim {claimed}", repair)
    return good("guards", f"only {BridgeNames(loaded.bridge).veth_bridge} can claim {claimed}")


def of_firewall(bridge: str, obstacles: tuple[Obstacle, ...], dropping: tuple[str, ...]) -> Finding:
    """Whether the host's own firewall could drop what guests send."""
    for each in obstacles:
        if each.kind == "host firewall":
            text = each.text.partition(". Accept ")[0]
            repair = f"iptables -I FORWARD -i {bridge} -o {bridge} -j ACCEPT"
            return bad("host-firewall", text, repair)
    if dropping:
        text = f"{dropping[0]}: policy drop, for what all bridges forward"
        return warning("host-firewall", text, _TRY.format(bridge))
    return good("host-firewall", "it drops nothing that stays on the bridge")


def of_agents(bridge: str, agents: tuple[Agent, ...], own: tuple[str, ...], *, host_has: bool) -> Finding:
    """Whether anybody else acts for the service addresses. ``own`` is as in ``Rules``."""
    for each in agents:
        if each.bridge == bridge:
            text = f"process {each.pid}, {each.title}, serves the bridge and is not of this tproxy"
            return bad("agents", text, f"ps -fp {each.pid}")
    if host_has:
        text = f"this host has {SERVICE_ADDRESS} itself: what it sends there stays on the host"
        return bad("agents", text, f"ip address show to {SERVICE_ADDRESS}")
    if own:
        return warning("agents", own[0], f"ip address show dev {bridge}; ip route show dev {bridge}")
    return good("agents", f"nobody else acts for {SERVICE_ADDRESS}")


def of_wall(bridge: str, found: Rules) -> Finding:
    """Whether the namespace has the second wall, for all that guests reach by the map."""
    where = f"in namespace {BridgeNames(bridge).namespace}"
    if found.wall_problem:
        text = f"the bridge is served without the wall {where}: {found.wall_problem}"
        return bad("wall", text, "tproxy reload")
    if found.wall is None or found.wall.kind is None:
        text = f"there is none {where}" if found.wall is None else f"the one {where} was changed"
        return bad("wall", text, "tproxy reload")
    if missing := _closed(found.wall, found.map):
        text = f"the one {where} does not let port {missing.in_words} pass"
        return bad("wall", text, "tproxy reload")
    return good("wall", f"only what is for the services passes {where}")


def _closed(wall: Wall, found: ServiceMap | None) -> ServiceKey | None:
    wanted = reached.keys(found) if found is not None else ()
    return min((wall.kind.seen(wanted) if wall.kind else frozenset(wanted)) - wall.keys, default=None)
