"""Makes network namespaces without a name, and veth pairs that lead into them, for a guest of some seconds.

Both vanish with the process that holds them: nothing has to be cleaned up.

``netns`` has namespaces with a name. Relays load that module, and need not carry this one.
"""

from __future__ import annotations

import ctypes
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager

from tproxy.errors import KernelError
from tproxy.kernel import links
from tproxy.kernel.netns import CLONE_NEWNET, LIBC

_OWN = "/proc/thread-self/ns/net"
_MAIN_TABLE, _PERMANENT = 254, 0x80  # RT_TABLE_MAIN, <linux/rtnetlink.h>; NUD_PERMANENT, <linux/neighbour.h>
_NODAD = 0x02  # IFA_F_NODAD, <linux/if_addr.h>


@contextmanager
def namespace() -> Iterator[int]:
    """Make a namespace and yield a descriptor of it; this thread stays where it is.

    The kernel removes the namespace, and both ends of each veth pair into it, when the body has ended and no
    socket of it is open; also when this process is killed. Raises KernelError.
    """
    home = os.open(_OWN, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if LIBC.unshare(CLONE_NEWNET) != 0:
            raise KernelError(f"cannot make a namespace: {os.strerror(ctypes.get_errno())}")
        try:
            fd = os.open(_OWN, os.O_RDONLY | os.O_CLOEXEC)
        finally:
            _enter(home)
    finally:
        os.close(home)
    try:
        yield fd
    finally:
        os.close(fd)


@contextmanager
def inside(fd: int) -> Iterator[None]:
    """Run the body in the namespace of a descriptor, on this thread, and return to the former one.

    Raises KernelError.
    """
    home = os.open(_OWN, os.O_RDONLY | os.O_CLOEXEC)
    try:
        _enter(fd)
        try:
            yield
        finally:
            _enter(home)
    finally:
        os.close(home)


def _enter(fd: int) -> None:
    if LIBC.setns(fd, CLONE_NEWNET) != 0:
        raise KernelError(f"cannot enter a namespace: {os.strerror(ctypes.get_errno())}")


def create_veth(outer: str, inner: str, fd: int, alias: str, macs: tuple[str, str], mtu: int) -> None:
    """Create a veth pair: ``outer`` here, down, and ``inner`` in the namespace of ``fd``, up.

    ``alias`` is the description of outer. ``macs`` are those of outer and inner. Neither end has IPv6.
    Raises KernelError.
    """
    with links.requests("create veth pair", outer) as rtnl:
        peer = {"ifname": inner, "net_ns_fd": fd, "address": macs[1], "mtu": mtu}
        rtnl.link("add", ifname=outer, kind="veth", address=macs[0], peer=peer, mtu=mtu)
        rtnl.link("set", index=socket.if_nametoindex(outer), ifalias=alias)
    links.write_sysctl(f"ipv6/conf/{outer}/disable_ipv6", "1")
    with inside(fd), links.requests("set up", inner) as rtnl:
        links.write_sysctl("ipv6/conf/all/disable_ipv6", "1")
        rtnl.link("set", index=socket.if_nametoindex(inner), state="up")


def join(port: str, bridge: str, vlan: int | None) -> None:
    """Make a link a port of the bridge, in this VLAN if one is given, and set it up. Raises KernelError."""
    with links.requests("attach link", port) as rtnl:
        index = socket.if_nametoindex(port)
        rtnl.link("set", index=index, master=socket.if_nametoindex(bridge))
        if vlan is not None:
            rtnl.vlan_filter("add", index=index, vlan_info={"vid": vlan, "flags": ["pvid", "untagged"]})
        rtnl.link("set", index=index, state="up")


def add_address(link: str, own: str) -> None:
    """Give a link of this thread's namespace an address that shares no subnet. Raises KernelError."""
    with links.requests("configure link", link) as rtnl:
        rtnl.addr("add", index=socket.if_nametoindex(link), address=own, prefixlen=32)


def add_link_local(link: str, own: str) -> None:
    """Give a link of this thread's namespace this IPv6 address. Raises KernelError."""
    links.write_sysctl(f"ipv6/conf/{link}/addr_gen_mode", "1")  # the kernel makes none by itself
    for name in ("accept_ra", "accept_dad", "disable_ipv6"):
        links.write_sysctl(f"ipv6/conf/{link}/{name}", "0")
    with links.requests("configure link", link) as rtnl:
        index = socket.if_nametoindex(link)
        rtnl.addr("add", index=index, family=socket.AF_INET6, address=own, prefixlen=64, flags=_NODAD)


def route(link: str, destination: str) -> None:
    """Lead one destination to a link, and nothing else. Raises KernelError."""
    with links.requests("configure link", link) as rtnl:
        index = socket.if_nametoindex(link)
        rtnl.flush_routes(oif=index, table=_MAIN_TABLE)
        rtnl.route("replace", dst=f"{destination}/32", oif=index, scope="link")


def default_route(link: str, gateway: str, mac: str) -> None:
    """Lead everything to a gateway with this MAC, and nothing anywhere else. Raises KernelError."""
    with links.requests("configure link", link) as rtnl:
        index = socket.if_nametoindex(link)
        rtnl.flush_routes(oif=index, table=_MAIN_TABLE)
        rtnl.neigh("replace", dst=gateway, lladdr=mac, ifindex=index, state=_PERMANENT)
        rtnl.route("replace", dst="default", gateway=gateway, oif=index, flags=["onlink"])
