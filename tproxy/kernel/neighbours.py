"""Asks a namespace which MAC address a neighbour has: the ARP table for IPv4, that of neighbours for IPv6.

For IPv4 there is an ioctl(2) (arp(7)), which works at any socket of the namespace. For IPv6 the question goes
through a netlink socket that was made in the namespace; the kernel answers from Linux 5.0 on. A process needs
no rights for either. Sources: rtnetlink(7), <linux/neighbour.h>.
"""

from __future__ import annotations

import fcntl
import socket
import struct

_SIOCGARP, _COMPLETE = 0x8954, 0x02  # arp(7); ATF_COM
# struct arpreq: the protocol's address, the hardware's, flags, a mask, and the device
_ARP = struct.Struct("=HH4s8x2x6s8xi16x16s")

_HEADER = struct.Struct("=IHHII")  # struct nlmsghdr
_NDMSG = struct.Struct("=B3xiHBB")  # family, index, state, flags, type
_ATTRIBUTE = struct.Struct("=HH")  # struct nlattr
_NEWNEIGH, _GETNEIGH, _REQUEST = 28, 30, 1  # RTM_, RTM_, NLM_F_REQUEST
_DST, _LLADDR = 1, 2  # NDA_
_VALID = 0xDE  # NUD_VALID: a MAC address is known, whether or not it was confirmed lately
_RECEIVE = 4096  # bytes; an answer has some 100

_DONT_WAIT = int(socket.MSG_DONTWAIT)


def of_ipv4(sock: socket.SocketType, address: str, device: str) -> str:
    """Return the MAC that an IPv4 address has in the ARP table of a socket's namespace; "" without one."""
    family, ip, name = socket.AF_INET, socket.inet_aton(address), device.encode()
    try:
        found = fcntl.ioctl(sock.fileno(), _SIOCGARP, _ARP.pack(family, 0, ip, bytes(6), 0, name))
    except OSError:
        return ""
    *_, mac, flags, _ = _ARP.unpack(found)
    return mac.hex(":") if flags & _COMPLETE else ""


def open_table() -> socket.socket:
    """Return a socket with which ``of_ipv6`` can ask this thread's namespace. Raises OSError."""
    return socket.socket(
        socket.AF_NETLINK,
        socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC,
        socket.NETLINK_ROUTE,
    )


def of_ipv6(table: socket.SocketType, address: str, index: int) -> str:
    """Return the MAC that an IPv6 address has at the link with this index; "" without one.

    ``table`` is a socket that ``open_table`` returned, and that nobody else uses.
    """
    wanted = socket.inet_pton(socket.AF_INET6, address)
    body = _NDMSG.pack(socket.AF_INET6, index, 0, 0, 0) + _ATTRIBUTE.pack(_ATTRIBUTE.size + 16, _DST) + wanted
    try:
        table.send(_HEADER.pack(_HEADER.size + len(body), _GETNEIGH, _REQUEST, 0, 0) + body, _DONT_WAIT)
        answer = table.recv(_RECEIVE, _DONT_WAIT)  # the kernel has answered before send(2) returned
    except OSError:
        return ""
    return _mac(answer)


def _mac(answer: bytes) -> str:
    """Return the MAC in an answer; "" for an error, or for a neighbour whose MAC is not known."""
    at = _HEADER.size + _NDMSG.size
    if len(answer) < at or _HEADER.unpack_from(answer)[1] != _NEWNEIGH:
        return ""
    if not _NDMSG.unpack_from(answer, _HEADER.size)[2] & _VALID:
        return ""
    while at + _ATTRIBUTE.size <= len(answer):
        length, kind = _ATTRIBUTE.unpack_from(answer, at)
        if length < _ATTRIBUTE.size:
            break
        if kind == _LLADDR and length == _ATTRIBUTE.size + 6:
            return answer[at + _ATTRIBUTE.size : at + length].hex(":")
        at += (length + 3) & ~3
    return ""
