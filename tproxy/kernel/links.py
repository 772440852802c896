"""Reads and changes links, addresses, routes and sysctls.

Reading uses /sys, /proc and ``kernel.rtnetlink``. Changing uses rtnetlink through
pyroute2, whose import takes longer than a whole hook run that finds everything in order. Nearly every VM
start is such a run.
"""

import errno
import os
import socket
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from tproxy.addresses import PORT_MAC, SERVICE_MAC
from tproxy.errors import KernelError
from tproxy.kernel import netns, rtnetlink
from tproxy.typed import Any, NamedTuple

_SYS = "/sys/class/net"
SYSCTL = "/proc/sys/net"

_NODAD = 0x02  # IFA_F_NODAD, <linux/if_addr.h>


class OuterLink(NamedTuple):
    """The bridge's side of a veth pair.

    ``peer`` is the other side's index when that side is in the bridge's namespace, otherwise 0.
    """

    veth: bool
    up: bool
    mtu: int
    master: str
    peer: int
    mac: str
    fixed: bool  # the bridge forwards frames for our MAC to this port only, in each VLAN of the port


class InnerLink(NamedTuple):
    """The namespace's side, as seen in the namespace."""

    ifindex: int
    up: bool
    mtu: int
    mac: str
    addresses: tuple[str, ...]  # with prefix lengths, sorted
    default_route: bool


# Reading


def exists(name: str) -> bool:
    """Whether this network namespace has a link of that name. An alternative name is not its name.

    Raises KernelError when /sys belongs to another network namespace.
    """
    for _ in range(3):  # a link that comes or goes is for some microseconds in only one of the two
        try:
            index = socket.if_nametoindex(name)
        except OSError:
            index = 0
        if str(index or "") == _read(f"{_SYS}/{name}/ifindex"):
            return index != 0
        if index and rtnetlink.link(name) is None:
            return False  # an alternative name of another link, or that link is gone by now
        time.sleep(0.01)
    # Everything that this module reads below /sys would be wrong.
    raise KernelError("/sys shows another network namespace than this process is in; mount it anew")


def is_bridge(name: str) -> bool:
    """Whether the link exists and is a bridge."""
    return os.path.isdir(f"{_SYS}/{name}/bridge")


def bridges() -> list[str]:
    """All bridges of this network namespace."""
    return list(filter(is_bridge, os.listdir(_SYS)))


def mtu(name: str) -> int:
    """The link's MTU in bytes; 0 when it does not exist."""
    return int(_read(f"{_SYS}/{name}/mtu") or 0)


def ports(bridge: str) -> frozenset[str]:
    """The names of a bridge's ports; none when there is no such bridge."""
    try:
        return frozenset(os.listdir(f"{_SYS}/{bridge}/brif"))
    except FileNotFoundError:
        return frozenset()


def real_name(name: str) -> str:
    """The name of the link that has ``name`` as its name or alternative name; ``name`` when there is none."""
    if os.path.exists(f"{_SYS}/{name}"):
        return name
    found = rtnetlink.by_alternative_name(name)
    return found.name if found else name


def real_names(names: Iterable[str]) -> frozenset[str]:
    """As ``real_name``, of each."""
    return frozenset(map(real_name, names))


def outer_link(name: str, namespace: str) -> OuterLink | None:
    """The state of a veth on a bridge, whose other side should be in ``namespace``; None without the link."""
    found = rtnetlink.link(name)
    if found is None:
        return None
    here = found.peer_namespace >= 0 and found.peer_namespace == _number(namespace)
    peer, master = found.peer if here else 0, _name(found.master)
    fixed = bool(master) and _is_fixed(found.ifindex, name, master)
    return OuterLink(found.kind == "veth", found.up, found.mtu, master, peer, found.mac, fixed)


def inner_link(name: str) -> InnerLink | None:
    """The state of a link in this thread's namespace, read without /sys, which is another namespace's.

    None when no such link exists.
    """
    found = rtnetlink.link(name)
    if found is None:
        return None
    addresses = rtnetlink.addresses(found.ifindex)
    return InnerLink(found.ifindex, found.up, found.mtu, found.mac, addresses, _has_default_route(name))


def filters_vlans(bridge: str) -> bool:
    return _read(f"{_SYS}/{bridge}/bridge/vlan_filtering") == "1"


def fixed_vlans(port: int, bridge: str) -> frozenset[int]:
    """The VLANs in which the bridge has a fixed entry for our MAC at the port with this index.

    VLAN 0 alone counts for a bridge that does not filter VLANs. For what such an entry is good see
    ``fix_forwarding``. Raises OSError.
    """
    if filters_vlans(bridge):
        return rtnetlink.fixed_vlans(port, SERVICE_MAC)
    return frozenset({0} if rtnetlink.is_fixed(port, SERVICE_MAC) else ())


def _is_fixed(port: int, name: str, bridge: str) -> bool:
    if not filters_vlans(bridge):
        return rtnetlink.is_fixed(port, SERVICE_MAC)
    from tproxy.kernel import vlans  # few bridges filter VLANs

    members = vlans.read([name]).get(name, vlans.PortVlans()).members
    return members <= rtnetlink.fixed_vlans(port, SERVICE_MAC)


def sysctls(paths: Iterable[str]) -> dict[str, str]:
    """The values of sysctls in this thread's namespace, by path below net. Unknown ones are left out."""
    return {path: value for path in paths if (value := _read(f"{SYSCTL}/{path}"))}


def _has_default_route(name: str) -> bool:
    # Interface, destination, gateway, flags, ..., mask: proc_net(5).
    rows = (line.split() for line in _read("/proc/thread-self/net/route").splitlines()[1:])
    return any(row[0] == name and row[1] == row[2] == row[7] == "00000000" for row in rows)


def _number(namespace: str) -> int:
    """The number by which this namespace knows another one; -1 when there is none of that name."""
    try:
        fd = os.open(netns.path(namespace), os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE):
            raise
        return -1
    try:
        return rtnetlink.namespace_number(fd)
    except OSError:
        return -1  # EINVAL: an ordinary file
    finally:
        os.close(fd)


def _name(index: int) -> str:
    try:
        return socket.if_indextoname(index) if index else ""
    except OSError:
        return ""


def _read(path: str) -> str:
    try:
        with open(path) as file:
            return file.read().strip()
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE):
            raise  # this process has no descriptor left, which says nothing about the file
        return ""


# Changing


def create_veth(outer: str, inner: str, namespace: str, mac: str, mtu: int) -> None:
    """Create a veth pair, both ends down: ``outer`` here, ``inner`` in the namespace. Raises KernelError."""
    with requests("create veth pair", outer) as rtnl:
        fd = os.open(netns.path(namespace), os.O_RDONLY | os.O_CLOEXEC)
        try:
            peer = {"ifname": inner, "net_ns_fd": fd, "address": mac, "mtu": mtu}
            rtnl.link("add", ifname=outer, kind="veth", address=PORT_MAC, peer=peer, mtu=mtu)
        finally:
            os.close(fd)


def delete(name: str) -> None:
    """Delete a link. Raises KernelError, but not when the link is gone."""
    try:
        with requests("delete link", name) as rtnl:
            rtnl.link("del", index=socket.if_nametoindex(name))
    except KernelError:
        # The kernel deletes a veth with its peer's namespace, some time after that namespace was removed.
        if exists(name):
            raise


def attach(name: str, bridge: str, mtu: int, mac: str) -> None:
    """Make a link a port of the bridge, set it up, and lead frames for the MAC to it. Raises KernelError."""
    # A port needs no IPv6 address, and must not announce one to the guests.
    write_sysctl(f"ipv6/conf/{name}/disable_ipv6", "1")
    with requests("attach link", name) as rtnl:
        index, master = socket.if_nametoindex(name), socket.if_nametoindex(bridge)
        rtnl.link("set", index=index, mtu=mtu)
        rtnl.link("set", index=index, master=master)
        rtnl.link("set", index=index, state="up")
    fix_forwarding(name, mac)


def fix_forwarding(port: str, mac: str = SERVICE_MAC) -> None:
    """Make entries in the forwarding table of the port's bridge, so that it learns the MAC at no other port.

    Guards cannot keep it from that: before nftables sees them, the sources of frames are learnt that no
    bridge forwards, such as LLDP. There is an entry for each VLAN that the port has now, which the kernel
    adds by itself when none is named. They go with the port. Raises KernelError.
    """
    with requests("fix the forwarding entry of", port) as rtnl:
        flags = rtnetlink.IN_BRIDGE | rtnetlink.STICKY
        rtnl.fdb(
            "replace", ifindex=socket.if_nametoindex(port), lladdr=mac, flags=flags, state=rtnetlink.STATIC
        )


def configure(name: str, mac: str, mtu: int, addresses: Iterable[str]) -> None:
    """Give a link in this thread's namespace its MAC, addresses and the default route; set it up.

    It has these addresses alone then, which are with the lengths of their prefixes. Those that it has already
    stay untouched. Raises KernelError.
    """
    with requests("configure link", name) as rtnl:
        index = socket.if_nametoindex(name)
        rtnl.link("set", index=index, address=mac, mtu=mtu)
        before, wanted = set(rtnetlink.addresses(index)), set(addresses)
        # Added first: with its last address a link loses its routes. A link that is down gets none for IPv6.
        later = {each for each in wanted if ":" in each}
        for verb, some in (("add", wanted - before - later), ("del", before - wanted)):
            for each in sorted(some):
                _change_address(rtnl, verb, index, each)
        rtnl.link("set", index=index, state="up")
        for each in later - before:
            _change_address(rtnl, "add", index, each, flags=_NODAD)
        rtnl.route("replace", family=socket.AF_INET, dst="default", oif=index, scope="link", proto="boot")


def remove_addresses(name: str, addresses: Iterable[str]) -> None:
    """Take addresses, with the lengths of their prefixes, from a link in this thread's namespace.

    Those that it has not are left out. Raises KernelError.
    """
    with requests("remove addresses of", name) as rtnl:
        index = socket.if_nametoindex(name)
        for each in sorted(set(addresses) & set(rtnetlink.addresses(index))):
            _change_address(rtnl, "del", index, each)


def _change_address(rtnl: Any, verb: str, index: int, address: str, **more: int) -> None:
    bare, _, length = address.partition("/")
    family = socket.AF_INET6 if ":" in bare else socket.AF_INET
    rtnl.addr(verb, index=index, family=family, address=bare, prefixlen=int(length), **more)


def write_sysctl(path: str, value: str) -> None:
    """Set a sysctl below net in this thread's namespace, if the kernel has it. Raises KernelError."""
    try:
        with open(f"{SYSCTL}/{path}", "w") as file:
            file.write(value)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise KernelError(f"cannot set sysctl net/{path}: {error.strerror}") from None


@contextmanager
def requests(doing: str, name: str) -> Iterator[Any]:
    """Yield pyroute2's socket, in this thread's namespace; for what is ``doing`` what to ``name``.

    Raises KernelError.
    """
    from pyroute2 import IPRoute
    from pyroute2.netlink.exceptions import NetlinkError

    try:
        with IPRoute() as rtnl:
            yield rtnl
    except NetlinkError as error:
        raise KernelError(f"cannot {doing} {name}: {os.strerror(error.code)}") from None
    except OSError as error:
        raise KernelError(f"cannot {doing} {name}: {error.strerror or error}") from None
