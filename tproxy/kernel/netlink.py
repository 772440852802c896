"""Reports the names of links and of nftables objects that change, from the kernel's netlink messages.

Only the names are read from a message. The receiver looks up the current state itself. So it does no harm
when messages come late, twice or together. When messages were lost, which the kernel reports, the receiver
has to look at everything. Sources: rtnetlink(7), <linux/netfilter/nf_tables.h>.

pyroute2 is not used: it decodes whole messages, of which only two attributes are needed, and it cannot decode
the nested attributes of nftables messages that hold comments.
"""

from __future__ import annotations

import errno
import itertools
import re
import socket
import struct
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import NamedTuple

from tproxy.kernel.loop import READ, Loop, Timer
from tproxy.names import TABLE

_SO_RCVBUFFORCE = 33  # <asm-generic/socket.h>
_NETLINK_NETFILTER = 12  # <linux/netlink.h>; Python does not name it
_RTMGRP_LINK, _RTMGRP_NEIGH = 1, 4  # <linux/rtnetlink.h>
_NEWLINK, _DELLINK, _NEWNEIGH, _DELNEIGH = 16, 17, 28, 29  # RTM_
_NFNLGRP_NFTABLES = 1 << 6  # group 7, <linux/netfilter/nfnetlink.h>

_HEADER = struct.Struct("=IHHII")  # struct nlmsghdr
_ATTRIBUTE = struct.Struct("=HH")  # struct nlattr
_TYPE_MASK = 0x3FFF  # without NLA_F_NESTED and NLA_F_NET_BYTEORDER
_IFINFOMSG, _NDMSG, _NFGENMSG = 16, 12, 4  # sizes
_LINK_INDEX = struct.Struct("=B3xi")  # family and index of an ifinfomsg or an ndmsg
_STATE = 8  # the offset in an ndmsg

_IFLA_IFNAME, _IFLA_MASTER = 3, 10  # <linux/if_link.h>
_NDA_LLADDR, _NDA_VLAN, _NDA_MASTER = 2, 5, 9  # <linux/neighbour.h>
_NUD_PERMANENT = 0x80
_NFT_DELTABLE = 10 << 8 | 2  # subsystem and message
# The table's name is attribute 1 of every message. A chain or rule has the chain's name in attribute 3; maps
# and sets have their name in attribute 2.
_NFT_CHAINS = (10 << 8 | 3, 10 << 8 | 5)
_NFT_SET_ELEMENTS = (10 << 8 | 12, 10 << 8 | 14)
_TABLE_NAME, _NAME, _CHAIN_NAME = 1, 2, 3

_RECEIVE = 256 * 1024  # bytes; no message is larger
# Bytes: enough for the messages that a thousand guests cause when they start together.
_BUFFER = 4 << 20


# Messages about forwarding tables that are read in one go, and in one second: each takes some 10
# microseconds, and a guest can cause any number of them, by frames from many addresses.
_AT_ONCE = 256
_MOST_A_SECOND = 4000


class Ruleset(NamedTuple):
    """The objects that were changed in our tables."""

    names: frozenset[str]  # of chains, maps and sets; "" for a table
    comments: frozenset[str]  # words of the comments of set elements
    maps_deleted: bool  # the table of the maps was deleted as a whole


class LinkEvents:
    """Calls ``touched`` with the names of links that were added, deleted or changed, and of their masters.

    Calls ``lost`` when the kernel has dropped messages.
    """

    def __init__(
        self, loop: Loop, touched: Callable[[set[str], set[str]], None], lost: Callable[[], None]
    ) -> None:
        self._loop = loop
        self._touched = touched
        self._lost = lost
        self._socket = _subscribe(loop, self, socket.NETLINK_ROUTE, _RTMGRP_LINK)

    def close(self) -> None:
        """End the subscription: no more calls."""
        self._loop.close_later(self._socket)

    def on_event(self, fd: int, mask: int) -> None:
        names: set[str] = set()
        masters: set[int] = set()
        complete = True
        for data in _received(self._socket):
            complete = complete and data is not None
            for _, body in messages(data or b""):
                found = attributes(body, _IFINFOMSG)
                names.add(_text(found.get(_IFLA_IFNAME)))
                if _IFLA_MASTER in found:
                    masters.update(struct.unpack("=I", found[_IFLA_MASTER]))
        self._touched(names - {""}, set(_link_names(masters)))
        if not complete:
            self._lost()


class RulesetEvents:
    """Calls ``touched`` with what was changed in our nftables tables; ``lost`` when messages were dropped."""

    def __init__(self, loop: Loop, touched: Callable[[Ruleset], None], lost: Callable[[], None]) -> None:
        self._touched = touched
        self._lost = lost
        self._socket = _subscribe(loop, self, _NETLINK_NETFILTER, _NFNLGRP_NFTABLES)

    def on_event(self, fd: int, mask: int) -> None:
        names: set[str] = set()
        comments: set[str] = set()
        maps_deleted, complete = False, True
        for data in _received(self._socket):
            complete = complete and data is not None
            for kind, body in messages(data or b""):
                found = attributes(body, _NFGENMSG)
                if _text(found.get(_TABLE_NAME)) != TABLE:
                    continue
                maps_deleted |= kind == _NFT_DELTABLE and body[0] == socket.AF_INET
                names.add(_text(found.get(_CHAIN_NAME if kind in _NFT_CHAINS else _NAME)))
                if kind in _NFT_SET_ELEMENTS:
                    comments |= set(_words(body))
        if names:
            self._touched(Ruleset(frozenset(names), frozenset(comments), maps_deleted))
        if not complete:
            self._lost()


class Entry(NamedTuple):
    """An entry of a bridge's forwarding table: behind which port a MAC address was seen, or not any more."""

    bridge: int  # these are the indexes of links
    port: int
    mac: str
    vlan: int
    present: bool


class Name(NamedTuple):
    """A link that came, changed, or went; ``link`` is its index. Without name and master when it went."""

    link: int
    name: str
    master: int


class ForwardingEvents:
    """Calls ``heard`` with entries of forwarding tables, and with links, in the order of their changes.

    Entries of the host's own addresses are left out. Calls ``lost`` when messages were lost: by the kernel,
    or because there are more than a process should read.
    """

    def __init__(
        self, loop: Loop, heard: Callable[[list[Entry | Name]], None], lost: Callable[[], None]
    ) -> None:
        self._loop = loop
        self._heard = heard
        self._lost = lost
        self._second, self._count = 0, 0
        self._pause: Timer | None = None
        self._socket = _subscribe(loop, self, socket.NETLINK_ROUTE, _RTMGRP_LINK | _RTMGRP_NEIGH)

    def close(self) -> None:
        """End the subscription: no more calls."""
        if self._pause is not None:
            self._pause.cancel()
        self._loop.close_later(self._socket)

    def on_event(self, fd: int, mask: int) -> None:
        events: list[Entry | Name] = []
        complete = True
        for data in itertools.islice(_received(self._socket), _AT_ONCE):
            complete = complete and data is not None
            self._count += 1
            for kind, body in messages(data or b""):
                if (event := _event(kind, body)) is not None:
                    events.append(event)
        if events:
            self._heard(events)
        if not complete:
            self._lost()
        second = int(time.monotonic())
        if second != self._second:
            self._second, self._count = second, 0
        elif self._count > _MOST_A_SECOND:
            self._loop.remove(self._socket.fileno())
            self._pause = self._loop.call_later(1.0, self._go_on)

    def _go_on(self) -> None:
        self._pause = None
        self._loop.add(self._socket.fileno(), READ, self)


def _event(kind: int, body: bytes) -> Entry | Name | None:
    family, index = _LINK_INDEX.unpack_from(body)
    if kind in (_NEWNEIGH, _DELNEIGH) and family == socket.AF_BRIDGE:
        found = attributes(body, _NDMSG)
        if body[_STATE] & _NUD_PERMANENT or not {_NDA_MASTER, _NDA_LLADDR} <= found.keys():
            return None
        bridge, mac = _whole(found[_NDA_MASTER]), found[_NDA_LLADDR].hex(":")
        return Entry(bridge, index, mac, _whole(found.get(_NDA_VLAN, b"")), kind == _NEWNEIGH)
    if kind in (_NEWLINK, _DELLINK) and family == socket.AF_UNSPEC:
        found = attributes(body, _IFINFOMSG)
        gone = kind == _DELLINK
        name, master = _text(found.get(_IFLA_IFNAME)), _whole(found.get(_IFLA_MASTER, b""))
        return Name(index, "", 0) if gone else Name(index, name, master)
    return None


def messages(data: bytes) -> Iterator[tuple[int, bytes]]:
    """The type and the body of each message in ``data``. One that is cut short is left out."""
    at = 0
    while at + _HEADER.size <= len(data):
        length, kind, *_ = _HEADER.unpack_from(data, at)
        if not _HEADER.size <= length <= len(data) - at:
            return
        yield kind, data[at + _HEADER.size : at + length]
        at += _aligned(length)


def attributes(body: bytes, offset: int) -> dict[int, bytes]:
    """The attributes of a message, by type. ``offset`` is the size of the fixed part before them."""
    found = {}
    while offset + _ATTRIBUTE.size <= len(body):
        length, kind = _ATTRIBUTE.unpack_from(body, offset)
        if length < _ATTRIBUTE.size:
            break
        found[kind & _TYPE_MASK] = body[offset + _ATTRIBUTE.size : offset + length]
        offset += _aligned(length)
    return found


def _subscribe(
    loop: Loop, handler: LinkEvents | RulesetEvents | ForwardingEvents, protocol: int, groups: int
) -> socket.socket:
    sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, protocol)
    with suppress(OSError):  # in a container without the machine's CAP_NET_ADMIN the buffer stays smaller
        sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER)
    sock.bind((0, groups))
    loop.add(sock.fileno(), READ, handler)
    return sock


def _received(sock: socket.socket) -> Iterator[bytes | None]:
    """Everything that can be read now. None stands for messages that were lost."""
    while True:
        try:
            yield sock.recv(_RECEIVE)
        except BlockingIOError:
            return
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                raise
            yield None


def _link_names(indexes: set[int]) -> Iterator[str]:
    for index in indexes:
        with suppress(OSError):  # it is gone too, and another message reports that
            yield socket.if_indextoname(index)


def _words(body: bytes) -> Iterator[str]:
    """The ``key=value`` words anywhere in a message: they are in comments, nested four levels deep."""
    return (match.decode() for match in re.findall(rb"[a-z]+=[!-~]+", body))


def _whole(value: bytes) -> int:
    return int.from_bytes(value, sys.byteorder)


def _text(value: bytes | None) -> str:
    return (value or b"").rstrip(b"\0").decode(errors="replace")


def _aligned(length: int) -> int:
    return (length + 3) & ~3
