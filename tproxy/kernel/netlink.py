"""What the kernel tells of links and of nftables while they change: which names, and nothing else.

Of a message only so much is read as says what to look at; what is there now is looked up by whoever
wants to know. So it does not matter when messages come late, twice or together, and when some were
lost (the kernel says so) everything is looked at. rtnetlink(7), <linux/netfilter/nf_tables.h>.

Not by pyroute2: it decodes all of a message, and two attributes are wanted of each; nor does it know
what nested attributes of nftables' messages hold, where comments are.
"""

from __future__ import annotations

import errno
import re
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import NamedTuple

from tproxy.kernel.loop import READ, Loop
from tproxy.model import TABLE

_SO_RCVBUFFORCE = 33  # <asm-generic/socket.h>
_NETLINK_NETFILTER = 12  # <linux/netlink.h>; Python does not name it
_RTMGRP_LINK = 1  # <linux/rtnetlink.h>
_NFNLGRP_NFTABLES = 1 << 6  # group 7, <linux/netfilter/nfnetlink.h>

_HEADER = struct.Struct("=IHHII")  # struct nlmsghdr
_ATTRIBUTE = struct.Struct("=HH")  # struct nlattr
_TYPE_MASK = 0x3FFF  # without NLA_F_NESTED and NLA_F_NET_BYTEORDER
_IFINFOMSG, _NFGENMSG = 16, 4  # sizes

_IFLA_IFNAME, _IFLA_MASTER = 3, 10  # <linux/if_link.h>
_NFT_DELTABLE = 10 << 8 | 2  # subsystem and message
# The table's name is attribute 1 of all messages; chains have their name in 3, all else that
# interests here in 2.
_NFT_CHAINS = (10 << 8 | 3, 10 << 8 | 5)
_NFT_SET_ELEMENTS = (10 << 8 | 12, 10 << 8 | 14)
_TABLE_NAME, _NAME, _CHAIN_NAME = 1, 2, 3

_RECEIVE = 256 * 1024  # no message is larger
# Room for what a thousand guests that start together bring about.
_BUFFER = 4 << 20


class Ruleset(NamedTuple):
    """What was changed in our tables: names of chains, maps and sets, and comments of elements."""

    names: frozenset[str]
    comments: frozenset[str]
    maps_deleted: bool  # the table of maps, as a whole


class LinkEvents:
    """Calls ``touched`` with the names of links that came, went or changed, and those of their masters."""

    def __init__(
        self, loop: Loop, touched: Callable[[set[str], set[str]], None], lost: Callable[[], None]
    ) -> None:
        self._loop = loop
        self._touched = touched
        self._lost = lost
        self._socket = _subscribe(loop, self, socket.NETLINK_ROUTE, _RTMGRP_LINK)

    def close(self) -> None:
        """Call nobody any more."""
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
    """Calls ``touched`` when somebody changed our tables in nftables."""

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


def messages(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Type and body of each message; a piece that is cut short is left out."""
    at = 0
    while at + _HEADER.size <= len(data):
        length, kind, *_ = _HEADER.unpack_from(data, at)
        if not _HEADER.size <= length <= len(data) - at:
            return
        yield kind, data[at + _HEADER.size : at + length]
        at += _aligned(length)


def attributes(body: bytes, offset: int) -> dict[int, bytes]:
    """The attributes behind a message's fixed part, by type."""
    found = {}
    while offset + _ATTRIBUTE.size <= len(body):
        length, kind = _ATTRIBUTE.unpack_from(body, offset)
        if length < _ATTRIBUTE.size:
            break
        found[kind & _TYPE_MASK] = body[offset + _ATTRIBUTE.size : offset + length]
        offset += _aligned(length)
    return found


def _subscribe(loop: Loop, handler: LinkEvents | RulesetEvents, protocol: int, groups: int) -> socket.socket:
    sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, protocol)
    with suppress(OSError):  # without CAP_NET_ADMIN of the machine, in a container: as large as may be
        sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER)
    sock.bind((0, groups))
    loop.add(sock.fileno(), READ, handler)
    return sock


def _received(sock: socket.socket) -> Iterator[bytes | None]:
    """All that is there to be read; None stands for messages that were lost."""
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
        with suppress(OSError):  # gone as well, which is told by itself
            yield socket.if_indextoname(index)


def _words(body: bytes) -> Iterator[str]:
    """The words of comments somewhere in a message: nested four levels deep, and clearly ours."""
    return (match.decode() for match in re.findall(rb"[a-z]+=[!-~]+", body))


def _text(value: bytes | None) -> str:
    return (value or b"").rstrip(b"\0").decode(errors="replace")


def _aligned(length: int) -> int:
    return (length + 3) & ~3
