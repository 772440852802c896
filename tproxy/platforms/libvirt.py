"""libvirt: ``tproxy event libvirt qemu|lxc|network NAME OPERATION SUB-OPERATION EXTRA``, and its hooks.

Guests (https://libvirt.org/hooks.html). libvirt calls `prepare` before it makes anything, and `start` when
the taps are on their bridges but QEMU does not run yet. Both bring the bridges up, so the ports listen before
the guest boots, also when the last other guest of a bridge ended between the two calls and its services were
removed. libvirt calls `release` after each `stopped`, also when a start or a migration failed. By then its
taps are gone, and the XML names neither the taps nor the bridges of networks. Only a tap that the guest's
owner made and named is still there.

Networks. `port-created` and `port-deleted` are the only calls for a NIC that is plugged into a running guest.
These two, `started` and `updated` tell the bridge of the network.
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
from tproxy.platforms.install import Piece, hook

GUEST_UP = frozenset({"prepare", "start", "started", "migrate", "restore", "attach", "reconnect"})
GUEST_DOWN = frozenset({"release"})
# In these operations the taps are on their bridges, and the XML names the bridge of each NIC.
GUEST_PLUGGED = frozenset({"start", "started", "attach", "reconnect"})
NETWORK_KNOWN = frozenset({"started", "updated", "port-created", "port-deleted"})

_OPEN_VSWITCH = "is on Open vSwitch, which is not supported: no services there"


class Nic(NamedTuple):
    """An interface of a domain. A field is empty when the XML does not say it."""

    bridge: str
    network: str
    port: str  # the tap or veth on this host
    openvswitch: bool
    macs: frozenset[str] = frozenset()  # its MAC; libvirt gives one to a NIC whose XML had none


class NetworkState(NamedTuple):
    """A network as the network hook is told it. ``bridge`` is empty when the network has none."""

    name: str
    bridge: str
    openvswitch: bool
    macs: frozenset[str] = frozenset()  # of the NIC that the call is about


def pieces(hooks: Path, *, strict: bool) -> list[Piece]:
    """Return the files to install into libvirt's folder of hooks."""
    text = hook("libvirt/hook", strict=strict)
    return [Piece(path, text) for path in places(hooks)]


def places(hooks: Path) -> list[Path]:
    """Return the paths at which any version of tproxy may have installed a file."""
    return [hooks / folder / "tproxy" for folder in ("qemu.d", "lxc.d", "network.d")]


def nics(domain: Element) -> list[Nic]:
    """Return the interfaces that are, or will be, on a bridge of this host."""
    found = []
    for interface in domain.iterfind("devices/interface"):
        source = interface.find("source")
        if interface.get("type") not in ("bridge", "network") or source is None:
            continue  # macvtap, user mode or a passed-through device: it has no port on a bridge
        target = interface.find("target")
        found.append(
            Nic(
                bridge=source.get("bridge", ""),
                network=source.get("network", ""),
                port=target.get("dev", "") if target is not None else "",
                openvswitch=_openvswitch(interface),
                macs=_macs(interface),
            )
        )
    return found


def network_state(hook_data: Element) -> NetworkState:
    """Return what the network hook's XML says of its network. Raises BadDocument."""
    network = hook_data.find("network")
    if network is None:
        raise document.BadDocument("the XML describes no network")
    name = network.findtext("name") or ""
    if not name:
        raise document.BadDocument("the XML describes a network without a name")
    port = hook_data.find("networkport")
    plug = port.find("plug") if port is not None else None
    bridge = network.find("bridge")
    return NetworkState(
        name=name,
        bridge=(bridge.get("name") if bridge is not None else None)
        or (plug.get("bridge") if plug is not None else None)
        or "",
        openvswitch=_openvswitch(network) or (port is not None and _openvswitch(port)),
        macs=_macs(port) if port is not None else frozenset(),
    )


def guest_calls(
    operation: str, found: list[Nic], bridges: Mapping[str, str], is_remnant: Callable[[str], bool]
) -> Iterator[Call]:
    """Yield the calls that an operation on a guest asks for.

    ``bridges`` maps the names of networks to their bridges, as far as they are known. ``is_remnant`` tells
    whether the other end of a port is closed.
    """
    networks_of = {bridge: network for network, bridge in bridges.items()}
    gone = frozenset(nic.port for nic in found if operation in GUEST_DOWN and is_remnant(nic.port))
    for nic in found:
        bridge = nic.bridge or networks.bridge_of(nic.network, bridges)
        if nic.openvswitch:
            if operation == "start":  # once for each start; before it, a network's NIC does not say so
                yield Refusal(f"{nic.network or bridge or 'a NIC'} {_OPEN_VSWITCH}")
        elif not bridge:
            if operation in GUEST_PLUGGED:
                yield Fault(f"network {nic.network!a}: its bridge is not known")
        elif operation in GUEST_DOWN:
            yield Down(bridge, gone, calls.nics_of(nic.macs, ()))
        else:
            ports = [nic.port] if operation in GUEST_PLUGGED else []
            network = nic.network or networks_of.get(bridge, bridge)
            yield Up(bridge, network, calls.nics_of(nic.macs, ports))


def network_calls(operation: str, state: NetworkState) -> Iterator[Call]:
    """Yield the calls that an operation on a network asks for."""
    if state.openvswitch:
        if operation in ("started", "updated"):
            yield Refusal(f"network {state.name!a} {_OPEN_VSWITCH}")
    elif not state.bridge:
        pass  # a network of macvtap or passed-through devices
    elif operation == "port-created":
        yield Up(state.bridge, state.name, calls.nics_of(state.macs, ()))
    elif operation in ("port-deleted", "stopped"):
        yield Down(state.bridge, nics=calls.nics_of(state.macs, ()))


def _macs(element: Element) -> frozenset[str]:
    """Return the MAC of an interface or of a network's port, as far as the XML tells it."""
    mac = element.find("mac")
    return calls.macs_of(mac.get("address") if mac is not None else None)


def _openvswitch(element: Element) -> bool:
    return any(each.get("type") == "openvswitch" for each in element.iterfind("virtualport"))


def _is_remnant(port: str) -> bool:
    """Return whether the other end of a port is closed. If it is open, another guest has the port by now."""
    try:
        return (Path("/sys/class/net") / port.replace("/", "") / "carrier").read_text().strip() == "0"
    except (OSError, ValueError):
        return False  # the port is gone, or down


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


def handle_event(arguments: list[str], *, debug: bool) -> int:
    """Handle one event, given as libvirt passes it to a hook; return the exit code."""

    def event() -> Iterable[Call]:
        require_root()
        match arguments:
            case ["qemu" | "lxc", _, operation, *_]:
                return _guest(operation)
            case ["network", _, operation, *_]:
                return _network(operation)
        raise TproxyError("called without the name of a guest or network and an operation")

    return calls.run(" ".join(["libvirt", *arguments[:3]]), event, debug=debug)
