"""Judges the links of one bridge: from the bridge itself to the entry of its forwarding table."""

from __future__ import annotations

import shlex

from tproxy.addresses import PORT_MAC, SERVICE_ADDRESS, SERVICE_MAC, with_prefix
from tproxy.bridge import plan
from tproxy.doctor.finding import Finding, bad, good, warning
from tproxy.doctor.look.links import Links
from tproxy.kernel.links import InnerLink, OuterLink
from tproxy.model import ServiceMap
from tproxy.names import BridgeNames

_NAMED = 3  # ports that a line names before it counts


def exists(bridge: str, found: Links) -> list[Finding]:
    """Whether the bridge is there, and up."""
    if found.real_name:
        text = f"{bridge} is an alternative name of {found.real_name}"
        return [bad("bridge", text, shlex.join(["tproxy", "doctor", "--bridge", found.real_name]))]
    if not found.exists:
        return [bad("bridge", f"bridge {bridge} does not exist", "ip link show type bridge")]
    if not found.is_bridge:
        return [bad("bridge", f"{bridge} is not a bridge", f"ip -d link show dev {bridge}")]
    if found.unreadable:
        return [bad("bridge", found.unreadable, f"ip -d link show dev {bridge}")]
    if not found.up:
        return [bad("bridge", f"bridge {bridge} is down", f"ip link set dev {bridge} up")]
    return [good("bridge", f"{bridge} is up, with {_count(len(found.observed.ports), 'port')}")]


def strangers(bridge: str, found: Links) -> Finding:
    """What another program has under a name that the bridge needs."""
    if not found.stranger:
        return good("strangers", "no other program has a name that the bridge needs")
    text = f"{found.stranger}; bridge {bridge} needs that name"
    return bad("strangers", text, _remove(BridgeNames(bridge), found))


def _remove(names: BridgeNames, found: Links) -> str:
    if "alternative name" in found.stranger:
        real = found.stranger.rpartition(" ")[2]
        return f"ip link property del dev {real} altname {names.veth_bridge}"
    if "in /run/netns" in found.stranger:
        return f"mv /run/netns/{names.namespace} /run"
    if "table bridge" in found.stranger:
        return "nft list table bridge one_tproxy"
    if f"link {names.veth_namespace} " in found.stranger:
        return f"ip -n {names.namespace} link delete dev {names.veth_namespace}"
    return f"ip link delete dev {names.veth_bridge}"


def chain(loaded: ServiceMap, found: Links, repair: str, *, ours: bool) -> list[Finding]:
    """The chain from the bridge's port to the address in the namespace. ``repair`` is the hook's command.

    Ends with the first link that is missing: what is behind it cannot be told. On a bridge that is not
    ``ours``, another program chose the settings.
    """
    names, observed = BridgeNames(loaded.bridge), found.observed
    if not observed.namespace:
        return [bad("namespace", f"namespace {names.namespace} does not exist", repair)]
    maker = "" if observed.name_ours else ", which another program made"
    findings = [good("namespace", f"{names.namespace} exists{maker}")]
    outer, inner = observed.outer, observed.inner
    if outer is None:
        return [*findings, bad("veth", f"link {names.veth_bridge} does not exist", repair)]
    if inner is None or not observed.paired:
        text = f"{names.veth_bridge} and {names.veth_namespace} are not the two ends of a veth pair"
        return [*findings, bad("veth", text, repair)]
    findings.append(good("veth", f"{names.veth_bridge} leads to {names.veth_namespace} in {names.namespace}"))
    findings += [
        _port(loaded.bridge, names, outer, repair, ours=ours),
        _mtu(names, observed, outer, inner, repair),
        _address(names, inner, loaded.addresses, repair, ours=ours),
        _route(names, inner, repair),
    ]
    return [*findings, _sysctls(names, observed, repair, ipv6=loaded.ipv6)] if ours else findings


def _port(bridge: str, names: BridgeNames, outer: OuterLink, repair: str, *, ours: bool) -> Finding:
    port = names.veth_bridge
    if outer.master != bridge:
        where = f"of {outer.master}, not of {bridge}" if outer.master else "of no bridge"
        return bad("port", f"link {port} is a port {where}", repair)
    if not outer.up:
        return bad("port", f"port {port} is down", repair)
    if ours and outer.mac != PORT_MAC:
        return warning("port", f"port {port} has the MAC {outer.mac}, not {PORT_MAC}", f"ip link show {port}")
    return good("port", f"{port} is a port of {bridge}, and up")


def _mtu(
    names: BridgeNames, observed: plan.Observed, outer: OuterLink, inner: InnerLink, repair: str
) -> Finding:
    mtu = observed.bridge_mtu
    if inner.mtu != mtu or outer.mtu < mtu:
        text = (
            f"the bridge has MTU {mtu}, {names.veth_bridge} {outer.mtu}, {names.veth_namespace} {inner.mtu}"
        )
        return bad("mtu", f"{text}: large packets may be lost", repair)
    return good("mtu", f"{mtu} at the bridge and at both ends of the veth pair")


def _address(
    names: BridgeNames, inner: InnerLink, further: frozenset[str], repair: str, *, ours: bool
) -> Finding:
    where = f"{names.veth_namespace} in namespace {names.namespace}"
    if not inner.up:
        return bad("address", f"{where} is down", repair)
    wanted = [with_prefix(each) for each in (SERVICE_ADDRESS, *sorted(further))]
    if missing := [each for each in wanted if each not in inner.addresses]:
        has = ", ".join(inner.addresses) or "no address"
        return bad("address", f"{where} has {has}, not {missing[0]}", repair)
    if ours and inner.mac != SERVICE_MAC:
        text = f"{where} has the MAC {inner.mac}, not {SERVICE_MAC}: guests that move here wait for ARP"
        return bad("address", text, repair)
    return good("address", f"{', '.join(wanted)}, MAC {inner.mac}")


def _route(names: BridgeNames, inner: InnerLink, repair: str) -> Finding:
    if not inner.default_route:
        text = (
            f"{names.veth_namespace} in namespace {names.namespace} has no default route: no answer leaves it"
        )
        return bad("route", text, repair)
    return good("route", f"default dev {names.veth_namespace}")


def _sysctls(names: BridgeNames, observed: plan.Observed, repair: str, *, ipv6: bool) -> Finding:
    wrong = plan.wrong_sysctls(names, observed, ipv6=ipv6)
    if wrong:
        text = ", ".join(
            f"{path} is {(observed.sysctls or {}).get(path)}, not {wrong[path]}" for path in wrong
        )
        return bad("sysctls", f"in namespace {names.namespace}: {text}", repair)
    return good(
        "sysctls",
        f"all {len(plan.namespace_sysctls(names, ipv6=ipv6))} of the namespace are as they should be",
    )


def forwarding(bridge: str, found: Links, repair: str, *, ours: bool) -> list[Finding]:
    """How the bridge treats frames for our port, once the port is there."""
    outer = found.observed.outer
    if outer is None or outer.master != bridge or not found.up:
        return []
    return [
        *_of_obstacles(bridge, found),
        _isolation(bridge, found),
        _flooding(bridge, found),
        *([_entry(bridge, found, outer, repair)] if ours else []),
        _offloading(bridge, found),
    ]


def _of_obstacles(bridge: str, found: Links) -> list[Finding]:
    ours = BridgeNames(bridge).veth_bridge
    by_kind = {each.kind: each.text for each in found.obstacles}
    findings = []
    if "STP" in by_kind:
        # Only a port that comes up anew forwards at once.
        again = f"ip link set dev {ours} down && ip link set dev {ours} up"
        repair = f"ip link set dev {bridge} type bridge stp_state 0 && {again}"
        findings.append(bad("stp", by_kind["STP"], repair))
    else:
        findings.append(good("stp", f"port {ours} forwards"))
    if "VLAN" in by_kind:
        text, _, more = by_kind["VLAN"].partition("; ")
        repair = f"bridge vlan add dev {ours} vid VID pvid untagged"
        findings.append(bad("vlan", f"{text}; {more}" if "`" not in more else text, repair))
    else:
        findings.append(good("vlan", f"the bridge filters no VLAN between guests and {ours}"))
    return findings


def _isolation(bridge: str, found: Links) -> Finding:
    ours = BridgeNames(bridge).veth_bridge
    isolated = [port for port, each in found.others.items() if each.isolated]
    if found.ours.isolated:
        text = f"port {ours} is isolated: guests at isolated ports do not reach it"
        repair = f"bridge link set dev {ours} isolated off"
        if isolated:
            return bad("isolation", f"{text}: {_listed(isolated)}", repair)
        return warning("isolation", text, repair)
    return good("isolation", f"port {ours} is not isolated")


def _flooding(bridge: str, found: Links) -> Finding:
    ours = BridgeNames(bridge).veth_bridge
    if not found.ours.broadcast:
        text = f"port {ours} gets no broadcasts: guests that ask for the service by ARP get no answer"
        return bad("flooding", text, f"bridge link set dev {ours} bcast_flood on")
    deaf = [port for port, each in found.others.items() if not each.learning and not each.unicast]
    if deaf:
        text = f"the bridge neither learns at {_listed(deaf)} nor floods there: guests there get no answers"
        return bad("flooding", text, f"bridge link set dev {deaf[0]} learning on")
    shared = [port for port, each in found.others.items() if not each.learning]
    if shared:
        text = f"the bridge does not learn at {_listed(shared)}: answers for guests there go to all ports"
        return warning("flooding", text, f"bridge link set dev {shared[0]} learning on")
    return good("flooding", f"port {ours} gets broadcasts, and the bridge learns where guests are")


def _entry(bridge: str, found: Links, outer: OuterLink, repair: str) -> Finding:
    if found.claimed_at:
        text = f"port {found.claimed_at} has our MAC {SERVICE_MAC}: guests lose the service"
        return bad("forwarding", text, repair)
    if not outer.fixed:
        text = f"the bridge's entry for {SERVICE_MAC} is not fixed at {BridgeNames(bridge).veth_bridge}"
        return bad("forwarding", f"{text}: a guest can draw others' packets to itself", repair)
    return good("forwarding", f"{SERVICE_MAC} is fixed at {BridgeNames(bridge).veth_bridge}")


def _offloading(bridge: str, found: Links) -> Finding:
    if not found.offload_off:
        return good("off-loading", "it is on at both ends of the veth pair")
    names = BridgeNames(bridge)
    text = ", ".join(f"{' and '.join(words)} at {link}" for link, words in found.offload_off)
    link, words = found.offload_off[0]
    inside = f"ip netns exec {names.namespace} " if link == names.veth_namespace else ""
    repair = f"{inside}ethtool -K {link} {' '.join(f'{each} on' for each in words)}"
    return warning("off-loading", f"switched off: {text}: bulk costs more of the processor", repair)


def _listed(ports: list[str]) -> str:
    more = f" and {len(ports) - _NAMED} more" if len(ports) > _NAMED else ""
    return ", ".join(ports[:_NAMED]) + more


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
