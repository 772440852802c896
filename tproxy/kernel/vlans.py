"""Reads the VLANs of bridge ports by rtnetlink: sysfs does not have them.

Only a bridge that filters VLANs needs this, so a hook imports it only there. RTM_GETVLAN (Linux 5.6,
<linux/if_bridge.h>) answers for one port; the older RTM_GETLINK always lists the ports of all bridges.
"""

import socket
import struct
import sys
from collections.abc import Iterable

from tproxy.typed import NamedTuple

_RTM_NEWVLAN, _RTM_GETVLAN = 112, 114  # <linux/rtnetlink.h>
_NLM_F_REQUEST, _NLM_F_DUMP = 0x1, 0x300  # <linux/netlink.h>
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_TYPE_MASK = 0x3FFF

_HEADER = struct.Struct("=IHHII")  # struct nlmsghdr
_MESSAGE = struct.Struct("=BBHI")  # struct br_vlan_msg: family, reserved, reserved, ifindex
_ATTRIBUTE = struct.Struct("=HH")  # struct nlattr
_INFO = struct.Struct("=HH")  # struct bridge_vlan_info: flags, VLAN id
# In each attribute BRIDGE_VLANDB_ENTRY: the first VLAN of a row, and the last one where there are several.
_ENTRY_INFO, _ENTRY_RANGE = 1, 2
_FLAG_PVID = 1 << 1  # BRIDGE_VLAN_INFO_PVID
_RECEIVE = 64 * 1024  # bytes; the kernel's parts of a dump are smaller


class PortVlans(NamedTuple):
    """The VLANs of a port. ``pvid`` is that of untagged frames, 0 for none."""

    pvid: int = 0
    members: frozenset[int] = frozenset()


def read(ports: Iterable[str]) -> dict[str, PortVlans]:
    """The VLANs of these ports, by port. A port that is gone is left out; without kernel support all are."""
    found = {}
    with socket.socket(
        socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE
    ) as sock:
        sock.bind((0, 0))
        for port in ports:
            try:
                found[port] = _parse(_dump(sock, socket.if_nametoindex(port)))
            except OSError:
                continue
    return found


def _dump(sock: socket.socket, index: int) -> list[bytes]:
    """The messages about one port. Raises OSError."""
    flags = _NLM_F_REQUEST | _NLM_F_DUMP
    body = _MESSAGE.pack(socket.AF_BRIDGE, 0, 0, index)
    sock.send(_HEADER.pack(_HEADER.size + len(body), _RTM_GETVLAN, flags, index, 0) + body)
    bodies: list[bytes] = []
    while True:
        data = sock.recv(_RECEIVE)
        at = 0
        while at + _HEADER.size <= len(data):
            length, kind, _, sequence, _ = _HEADER.unpack_from(data, at)
            start, end = at + _HEADER.size, at + length
            at += max(_aligned(length), _HEADER.size)
            if sequence != index:
                continue  # what is left of the answer about another port
            if kind in (_NLMSG_DONE, _NLMSG_ERROR):
                (error,) = struct.unpack_from("=i", data, start)
                if error:
                    raise OSError(-error, "RTM_GETVLAN")
                return bodies
            if kind == _RTM_NEWVLAN:
                bodies.append(data[start:end])


def _parse(bodies: Iterable[bytes]) -> PortVlans:
    pvid = 0
    members: set[int] = set()
    for body in bodies:
        for _, entry in _attributes(body[_MESSAGE.size :]):
            parts = dict(_attributes(entry))
            if _ENTRY_INFO in parts:
                flags, first = _INFO.unpack_from(parts[_ENTRY_INFO])
                last = int.from_bytes(parts.get(_ENTRY_RANGE, b""), sys.byteorder) or first
                members.update(range(first, last + 1))
                if flags & _FLAG_PVID:
                    pvid = first
    return PortVlans(pvid, frozenset(members))


def _attributes(data: bytes) -> list[tuple[int, bytes]]:
    found = []
    at = 0
    while at + _ATTRIBUTE.size <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, at)
        if length < _ATTRIBUTE.size:
            break
        found.append((kind & _TYPE_MASK, data[at + _ATTRIBUTE.size : at + length]))
        at += _aligned(length)
    return found


def _aligned(length: int) -> int:
    return (length + 3) & ~3
