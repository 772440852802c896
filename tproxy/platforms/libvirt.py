"""libvirt's hooks: ``tproxy event libvirt qemu|lxc|network NAME OPERATION SUB-OPERATION EXTRA``.

Guests (https://libvirt.org/hooks.html). `prepare` comes before anything is there, `start` when the taps are
on their bridges and QEMU is not yet; so ports listen before the guest boots, and should the last guest of the
bridge have gone between the two and taken the services along, they are back. `release` follows each
`stopped`, failed starts and migrations included. By then taps are gone, and the XML names neither them nor
the bridges of networks; only taps that the guest's owner made, and named, stay.

Networks. `port-created` and `port-deleted` are the only word of NICs that are plugged into a running
guest; they, `started` and `updated` tell the network's bridge.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple
from xml.etree.ElementTree import Element

from tproxy.console import require_root
from tproxy.errors import TproxyError
from tproxy.platforms import calls, document, networks
from tproxy.platforms.calls import Call, Down, Fault, Refusal, Up

GUEST_UP = frozenset({"prepare", "start", "started", "migrate", "restore", "attach", "reconnect"})
GUEST_DOWN = frozenset({"release"})
# Taps are on their bridges, so whoever has a bridge says which.
GUEST_PLUGGED = frozenset({"start", "started", "attach", "reconnect"})
NETWORK_KNOWN = frozenset({"started", "updated", "port-created", "port-deleted"})

_OPEN_VSWITCH = "is on Open vSwitch, which is not supported: no services there"


class Nic(NamedTuple):
    """An interface of a domain; what it does not say is empty."""

    bridge: str
    network: str
    port: str  # its tap or veth on this host
    openvswitch: bool


class NetworkState(NamedTuple):
    name: str
    bridge: str
    openvswitch: bool


def nics(domain: Element) -> list[Nic]:
    """The interfaces that are, or will be, on a bridge of this host."""
    found = []
    for interface in domain.iterfind("devices/interface"):
        source = interface.find("source")
        if interface.get("type") not in ("bridge", "network") or source is None:
            continue  # macvtap, user mode, a passed-through function: no bridge, no port
        target = interface.find("target")
        found.append(
            Nic(
                bridge=source.get("bridge", ""),
                network=source.get("network", ""),
                port=target.get("dev", "") if target is not None else "",
                openvswitch=_openvswitch(interface),
            )
        )
    return found


def network_state(hook_data: Element) -> NetworkState:
    network = hook_data.find("network")
    if network is None:
        raise document.BadDocument("the XML tells of no network")
    name = network.findtext("name") or ""
    if not name:
        raise document.BadDocument("the XML tells of a network without a name")
    port = hook_data.find("networkport")
    plug = port.find("plug") if port is not None else None
    bridge = network.find("bridge")
    return NetworkState(
        name=name,
        bridge=(bridge.get("name") if bridge is not None else None)
        or (plug.get("bridge") if plug is not None else None)
        or "",
        openvswitch=_openvswitch(network) or (port is not None and _openvswitch(port)),
    )


def guest_calls(
    operation: str, found: list[Nic], bridges: Mapping[str, str], is_remnant: Callable[[str], bool]
) -> Iterator[Call]:
    """What an operation on a guest asks for.

    ``bridges`` is what is known of networks; ``is_remnant`` tells whether nobody holds a port any more.
    """
    networks_of = {bridge: network for network, bridge in bridges.items()}
    gone = frozenset(nic.port for nic in found if operation in GUEST_DOWN and is_remnant(nic.port))
    for nic in found:
        bridge = nic.bridge or networks.bridge_of(nic.network, bridges)
        if nic.openvswitch:
            if operation == "start":  # once for each, and the first at which a network's NICs say it
                yield Refusal(f"{nic.network or bridge or 'a NIC'} {_OPEN_VSWITCH}")
        elif not bridge:
            if operation in GUEST_PLUGGED:
                yield Fault(f"network {nic.network!a}: its bridge is not known")
        elif operation in GUEST_DOWN:
            yield Down(bridge, gone)
        else:
            yield Up(bridge, nic.network or networks_of.get(bridge, bridge))


def network_calls(operation: str, state: NetworkState) -> Iterator[Call]:
    """What an operation on a network asks for."""
    if state.openvswitch:
        if operation in ("started", "updated"):
            yield Refusal(f"network {state.name!a} {_OPEN_VSWITCH}")
    elif not state.bridge:
        pass  # macvtap or passed-through functions
    elif operation == "port-created":
        yield Up(state.bridge, state.name)
    elif operation in ("port-deleted", "stopped"):
        yield Down(state.bridge)


def _openvswitch(element: Element) -> bool:
    return any(each.get("type") == "openvswitch" for each in element.iterfind("virtualport"))


def _is_remnant(port: str) -> bool:
    """Whether nobody holds the other end of a port any more: its owner may have given it to the next."""
    try:
        return (Path("/sys/class/net") / port.replace("/", "") / "carrier").read_text().strip() == "0"
    except (OSError, ValueError):
        return False  # gone altogether, or down


def _guest(operation: str) -> Iterable[Call]:
    if operation not in GUEST_UP | GUEST_DOWN:
        return ()
    found = nics(document.from_stdin("domain"))
    return list(guest_calls(operation, found, networks.known(), _is_remnant))


def _network(operation: str) -> Iterable[Call]:
    if operation not in NETWORK_KNOWN | {"stopped"}:
        return ()
    state = network_state(document.from_stdin("hookData"))
    if operation == "stopped":
        networks.forget(state.name)
    elif state.bridge and not state.openvswitch:
        networks.remember(state.name, state.bridge)
    return list(network_calls(operation, state))


def main(arguments: list[str]) -> int:
    def event() -> Iterable[Call]:
        require_root()
        match arguments:
            case ["qemu" | "lxc", _, operation, *_]:
                return _guest(operation)
            case ["network", _, operation, *_]:
                return _network(operation)
        raise TproxyError("called without the name of a guest or network and an operation")

    return calls.run(" ".join(["libvirt", *arguments[:3]]), event)
