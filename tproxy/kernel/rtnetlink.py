"""Asks the kernel about links by rtnetlink(7).

Not with pyroute2, whose import takes longer than a whole hook run that finds everything in order.

Only what decides about a link is read: its kind, its addresses, where its other end is, and whether its
bridge has fixed entries for it. Sources: <linux/netlink.h>, <linux/rtnetlink.h>, <linux/if_link.h>,
<linux/net_namespace.h>, <linux/neighbour.h>, <linux/if_addr.h>.
"""

import errno
import os
import socket
import struct
import sys
from collections.abc import Iterator

from tproxy.typed import NamedTuple

_HEADER = struct.Struct("=IHHII")  # struct nlmsghdr
_ATTRIBUTE = struct.Struct("=HH")  # struct nlattr
_IFINFOMSG = struct.Struct("=BxHiII")  # family, hardware type, index, flags, mask of flags
_IFADDRMSG = struct.Struct("=BBBBI")  # family, length of the prefix, flags, scope, index
_NDMSG = struct.Struct("=B3xiHBB")  # family, index, state, flags, type
_RTMSG = struct.Struct("=BBBB3xBI")  # family, length of the destination, of the source, TOS, type, flags
_NUMBER = struct.Struct("=I")
_TYPE_MASK = 0x3FFF  # without NLA_F_NESTED and NLA_F_NET_BYTEORDER

_REQUEST, _ACK, _DUMP = 0x1, 0x4, 0x300  # NLM_F_REQUEST, NLM_F_ACK, NLM_F_DUMP
_DUMP_INTERRUPTED = 0x10  # NLM_F_DUMP_INTR
_ERROR, _DONE = 2, 3  # NLMSG_ERROR, NLMSG_DONE
_SETLINK, _GETLINK, _GETADDR, _GETROUTE, _GETNEIGH, _GETNSID = 19, 18, 22, 26, 30, 90  # RTM_
_RTA_DST, _RTA_OIF, _RTN_LOCAL = 1, 4, 2
_FIB_MATCH = 0x2000  # RTM_F_FIB_MATCH, Linux 4.13: the route itself is wanted, and not what follows from it

_ADDRESS, _IFNAME, _MTU, _LINK, _MASTER, _LINKINFO, _IFALIAS = 1, 3, 4, 5, 10, 18, 20  # IFLA_
_EXT_MASK, _LINK_NETNSID, _ALT_IFNAME = 29, 37, 53
_INFO_KIND = 1  # IFLA_INFO_KIND, in IFLA_LINKINFO
_NSID, _NSID_FD = 1, 3  # NETNSA_NSID, NETNSA_FD
_LLADDR, _VLAN, _MASTER_OF_ENTRY = 2, 5, 9  # NDA_LLADDR, NDA_VLAN, NDA_MASTER
_IFA_ADDRESS, _IFA_LOCAL = 1, 2
_SKIP_STATS = _NUMBER.pack(1 << 3)  # RTEXT_FILTER_SKIP_STATS

_IFF_UP = 0x1
STATIC, IN_BRIDGE, STICKY = 0x40, 0x04, 0x40  # NUD_NOARP, NTF_MASTER, NTF_STICKY: as `bridge fdb` says it
PERMANENT = 0x80  # NUD_PERMANENT: an address of the port or the bridge itself
_RECEIVE = 64 * 1024  # bytes; the kernel fills at most 32 KiB at a time
_TRIES = 5


class Link(NamedTuple):
    """A link of this thread's network namespace. Numbers are 0, and texts empty, for what a link has not.

    ``kind`` is IFLA_INFO_KIND: empty for hardware, and for the links of some drivers. ``peer`` is the index
    of the other end of a veth, or of the link below, in the namespace that ``peer_namespace`` numbers: -1 is
    this namespace.
    """

    ifindex: int
    name: str
    kind: str
    up: bool
    mtu: int
    mac: str
    master: int
    peer: int
    peer_namespace: int
    alias: str


class Route(NamedTuple):
    """``length`` is that of its prefix, 0 for a default route; ``link`` is its link's index, 0 for none.

    ``local``: the address is one of this namespace's own.
    """

    length: int
    link: int
    local: bool


def links(master: int = 0) -> list[Link]:
    """All links of this namespace, or with ``master`` only the ports of that link. Raises OSError."""
    filters = {_EXT_MASK: _SKIP_STATS}
    if master:
        filters[_MASTER] = _NUMBER.pack(master)
    return list(map(_parse, _dump(_GETLINK, _IFINFOMSG.pack(0, 0, 0, 0, 0), filters)))


def link(name: str) -> Link | None:
    """The link of that name, which is not an alternative name; None when there is none. Raises OSError."""
    return _find({_IFNAME: name})


def by_alternative_name(name: str) -> Link | None:
    """The link with that name or alternative name; None when there is none. Raises OSError."""
    return _find({_IFNAME: name}) or _find({_ALT_IFNAME: name})  # altnames: Linux 5.5


def namespace_number(fd: int) -> int:
    """The number by which this namespace knows the namespace of ``fd``; -1 when it has none. Raises OSError.

    The kernel gives it one when it shows a link whose peer is there.
    """
    (answer,) = _ask(_GETNSID, 0, bytes(4), {_NSID_FD: _NUMBER.pack(fd)})
    return _signed(_attributes(answer, 4).get(_NSID))


def addresses(index: int) -> tuple[str, ...]:
    """The IPv4 and IPv6 addresses of a link, with the lengths of their prefixes, sorted. Raises OSError."""
    found = []
    for answer in _dump(_GETADDR, _IFADDRMSG.pack(0, 0, 0, 0, 0), {}):
        family, length, _, _, owner = _IFADDRMSG.unpack_from(answer)
        if owner == index and family in (socket.AF_INET, socket.AF_INET6):
            known = _attributes(answer, _IFADDRMSG.size)
            packed = known.get(_IFA_LOCAL) or known[_IFA_ADDRESS]  # IPv6 has no IFA_LOCAL
            found.append(f"{socket.inet_ntop(family, packed)}/{length}")
    return tuple(sorted(found))


def route(address: str) -> Route | None:
    """The route by which this namespace reaches an IPv4 address; None for none. Raises OSError."""
    wanted = {_RTA_DST: socket.inet_aton(address)}
    try:
        (answer,) = _ask(_GETROUTE, 0, _RTMSG.pack(socket.AF_INET, 32, 0, 0, 0, _FIB_MATCH), wanted)
    except OSError as error:
        if error.errno in (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EACCES, errno.EINVAL):
            return None
        raise
    _, length, _, _, kind, _ = _RTMSG.unpack_from(answer)
    return Route(length, _number(_attributes(answer, _RTMSG.size).get(_RTA_OIF)), kind == _RTN_LOCAL)


def is_fixed(port: int, mac: str) -> bool:
    """Whether the bridge has a fixed entry for the MAC at this port, in VLAN 0. Raises OSError.

    VLAN 0 is the one of a bridge that does not filter VLANs. Fixed is an entry that is static and sticky: it
    stays at its port, whatever is seen at others.
    """
    wanted = {_LLADDR: bytes.fromhex(mac.replace(":", ""))}
    try:
        (answer,) = _ask(_GETNEIGH, 0, _NDMSG.pack(socket.AF_BRIDGE, port, 0, IN_BRIDGE, 0), wanted)
    except OSError as error:
        # ENOENT: no such entry. The others: no such link, or it is no port.
        if error.errno in (errno.ENOENT, errno.ENODEV, errno.EINVAL):
            return False
        raise
    return _is_fixed(answer, port)


def port_of(port: int, mac: str) -> int:
    """The index of the port at which the bridge has an entry for the MAC, in VLAN 0; 0 for none.

    ``port`` is the index of any port of that bridge. Raises OSError.
    """
    wanted = {_LLADDR: bytes.fromhex(mac.replace(":", ""))}
    try:
        (answer,) = _ask(_GETNEIGH, 0, _NDMSG.pack(socket.AF_BRIDGE, port, 0, IN_BRIDGE, 0), wanted)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENODEV, errno.EINVAL):  # as in is_fixed
            return 0
        raise
    found: int = _NDMSG.unpack_from(answer)[1]
    return found


def fixed_vlans(port: int, mac: str) -> frozenset[int]:
    """As ``is_fixed``: all VLANs in which the entry is fixed. Reads all entries of the port."""
    address, found = bytes.fromhex(mac.replace(":", "")), []
    for answer in _ask(_GETNEIGH, _DUMP, _IFINFOMSG.pack(socket.AF_BRIDGE, 0, port, 0, 0), {}):
        entry = _attributes(answer, _NDMSG.size)
        if entry.get(_LLADDR) == address and _is_fixed(answer, port):
            found.append(int.from_bytes(entry.get(_VLAN, b""), sys.byteorder))
    return frozenset(found)


def forwarding_entries(port: int, most: int) -> Iterator[tuple[str, int]]:
    """MAC and VLAN of the entries of a bridge's forwarding table at this port, so many at most.

    Without those of the host's own addresses. Raises OSError.
    """
    found = 0
    for answer in _ask(_GETNEIGH, _DUMP, _IFINFOMSG.pack(socket.AF_BRIDGE, 0, port, 0, 0), {}):
        _, index, state, _, _ = _NDMSG.unpack_from(answer)
        entry = _attributes(answer, _NDMSG.size)
        if index != port or state & PERMANENT or _MASTER_OF_ENTRY not in entry:
            continue
        if found == most:
            return
        found += 1
        yield entry.get(_LLADDR, b"").hex(":"), int.from_bytes(entry.get(_VLAN, b""), sys.byteorder)


def neighbours(index: int) -> list[tuple[str, str]]:
    """IPv4 address and MAC of each neighbour of a link of this thread's namespace. Raises OSError."""
    found = []
    for answer in _dump(_GETNEIGH, _NDMSG.pack(socket.AF_INET, index, 0, 0, 0), {}):
        _, at, _, _, _ = _NDMSG.unpack_from(answer)
        entry = _attributes(answer, _NDMSG.size)
        mac, address = entry.get(_LLADDR, b""), entry.get(_ADDRESS, b"")
        if at == index and len(mac) == 6 and len(address) == 4:
            found.append((socket.inet_ntoa(address), mac.hex(":")))
    return found


def name(index: int) -> str:
    """The name of the link with this index; "" when there is none."""
    try:
        return socket.if_indextoname(index)
    except OSError:
        return ""


def _is_fixed(entry: bytes, port: int) -> bool:
    _, index, state, flags, _ = _NDMSG.unpack_from(entry)
    return index == port and state == STATIC and bool(flags & STICKY)


def set_alias(index: int, alias: str) -> None:
    """Set the description of a link (``ip link set alias``). Raises OSError."""
    list(_ask(_SETLINK, _ACK, _IFINFOMSG.pack(0, 0, index, 0, 0), {_IFALIAS: alias.encode()}))


def _dump(request: int, fixed: bytes, given: dict[int, bytes]) -> list[bytes]:
    """All messages of an answer. Raises OSError."""
    for _ in range(_TRIES):
        try:
            return list(_ask(request, _DUMP, fixed, given))
        except InterruptedError:  # something came or went meanwhile
            continue
    raise OSError(errno.EAGAIN, "links change too fast to be listed")


def _find(names: dict[int, str]) -> Link | None:
    encoded = {kind: os.fsencode(name) + b"\0" for kind, name in names.items()}
    try:
        (answer,) = _ask(_GETLINK, 0, _IFINFOMSG.pack(0, 0, 0, 0, 0), {_EXT_MASK: _SKIP_STATS, **encoded})
    except OSError as error:
        # ENODEV: no such link. The others: no link can have such a name, or this kernel has no altnames.
        if error.errno in (errno.ENODEV, errno.EINVAL, errno.ERANGE, errno.EOPNOTSUPP):
            return None
        raise
    found = _parse(answer)
    # The kernel finds a link by IFLA_IFNAME under its alternative names too.
    return found if found.name == names.get(_IFNAME, found.name) else None


def _parse(body: bytes) -> Link:
    _, _, index, flags, _ = _IFINFOMSG.unpack_from(body)
    found = _attributes(body, _IFINFOMSG.size)
    info = found.get(_LINKINFO)
    return Link(
        index,
        _text(found.get(_IFNAME)),
        _text(_attributes(info, 0).get(_INFO_KIND)) if info else "",
        bool(flags & _IFF_UP),
        _number(found.get(_MTU)),
        found.get(_ADDRESS, b"").hex(":"),
        _number(found.get(_MASTER)),
        _number(found.get(_LINK)),
        _signed(found.get(_LINK_NETNSID)),
        _text(found.get(_IFALIAS)),
    )


def _ask(request: int, flags: int, fixed: bytes, given: dict[int, bytes]) -> Iterator[bytes]:
    """Send a request; yield the body of each message of the answer. Raises OSError: the kernel's reason."""
    body = fixed + b"".join(
        _padded(_ATTRIBUTE.pack(_ATTRIBUTE.size + len(value), kind) + value) for kind, value in given.items()
    )
    message = _HEADER.pack(_HEADER.size + len(body), request, _REQUEST | flags, 1, 0) + body
    with socket.socket(
        socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE
    ) as sock:
        sock.send(message)
        many = bool(flags & _DUMP)
        while True:
            data = sock.recv(_RECEIVE)
            at = 0
            while at + _HEADER.size <= len(data):
                length, kind, said, _, _ = _HEADER.unpack_from(data, at)
                if said & _DUMP_INTERRUPTED and many:
                    raise InterruptedError(errno.EINTR, os.strerror(errno.EINTR))
                content = data[at + _HEADER.size : at + length]
                at += (length + 3) & ~3
                if kind == _DONE:
                    return
                if kind == _ERROR:
                    number = -struct.unpack_from("=i", content)[0]
                    if number:
                        raise OSError(number, os.strerror(number))
                    return  # an acknowledgement
                yield content
                if not many:
                    return


def _attributes(body: bytes, offset: int) -> dict[int, bytes]:
    """The attributes of a message, by type. ``offset`` is the size of the fixed part before them."""
    found = {}
    while offset + 4 <= len(body):
        length, kind = _ATTRIBUTE.unpack_from(body, offset)
        if length < 4:
            break
        found[kind & _TYPE_MASK] = body[offset + 4 : offset + length]
        offset += (length + 3) & ~3
    return found


def _padded(attribute: bytes) -> bytes:
    return attribute + bytes(-len(attribute) % 4)


def _text(value: bytes | None) -> str:
    return os.fsdecode((value or b"").rstrip(b"\0"))


def _number(value: bytes | None) -> int:
    found: int = _NUMBER.unpack(value)[0] if value else 0
    return found


def _signed(value: bytes | None) -> int:
    found: int = struct.unpack("=i", value)[0] if value else -1
    return found
