"""What the kernel tells of frames that nftables traces (``meta nftrace``): which rule dropped one. Pure.

Sources: <linux/netfilter/nf_tables.h>, NFTA_TRACE_*. The kernel tells the headers of a frame once for each
base chain, before what the rules did; an id says which messages are about the same frame.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import NamedTuple

from tproxy.kernel.netlink import attributes, messages
from tproxy.trace.frames import Frame, decode, packet

_TRACE = 10 << 8 | 17  # subsystem and message
_NFGENMSG = 4  # bytes
# NFTA_TRACE_*
_TABLE, _CHAIN, _HANDLE, _TYPE, _VERDICT, _ID, _LINK_HEADER, _NETWORK_HEADER, _TRANSPORT_HEADER = range(1, 10)
_IIF, _OIF, _FAMILY, _POLICY = 10, 12, 15, 16
_VERDICT_CODE = 1
_OF_POLICY, _OF_RULE = 1, 3  # NFT_TRACETYPE_*
_DROP = 0  # NF_DROP

_FAMILIES = {1: "inet", 2: "ip", 3: "arp", 5: "netdev", 7: "bridge", 10: "ip6"}  # NFPROTO_*
_MOST = 256  # frames whose headers are kept


class Drop(NamedTuple):
    """A frame that was dropped, and where. ``handle`` is 0 for the policy of a chain.

    ``came`` is the index of the link where the frame came in, ``leaves`` of that where it would have left; 0
    where that was not decided yet.
    """

    frame: Frame
    family: str
    table: str
    chain: str
    handle: int
    came: int
    leaves: int


class Reader:
    """Finds drops in what the kernel tells."""

    def __init__(self) -> None:
        self._frames: OrderedDict[bytes, tuple[Frame | None, int, int]] = OrderedDict()

    def read(self, data: bytes) -> list[Drop]:
        """The drops in one message of a netlink socket."""
        found = []
        for kind, body in messages(data):
            if kind == _TRACE and (drop := self._read(attributes(body, _NFGENMSG))) is not None:
                found.append(drop)
        return found

    def _read(self, told: dict[int, bytes]) -> Drop | None:
        mark = told.get(_ID, b"")
        if _NETWORK_HEADER in told:
            self._frames[mark] = _frame(told), _number(told.get(_IIF)), _number(told.get(_OIF))
            self._frames.move_to_end(mark)
            if len(self._frames) > _MOST:
                self._frames.popitem(last=False)
        kind = _number(told.get(_TYPE))
        if kind == _OF_RULE:
            code = attributes(told.get(_VERDICT, b""), 0).get(_VERDICT_CODE)
        elif kind == _OF_POLICY:
            code = told.get(_POLICY)
        else:
            return None
        frame, came, leaves = self._frames.get(mark, (None, 0, 0))
        if code is None or _number(code) != _DROP or frame is None:
            return None
        family = _FAMILIES.get(_number(told.get(_FAMILY)), "?")
        handle = int.from_bytes(told.get(_HANDLE, b""), "big") if kind == _OF_RULE else 0
        return Drop(frame, family, _text(told.get(_TABLE)), _text(told.get(_CHAIN)), handle, came, leaves)


def _frame(told: dict[int, bytes]) -> Frame | None:
    ethernet, above = told.get(_LINK_HEADER, b""), told[_NETWORK_HEADER]
    above += told.get(_TRANSPORT_HEADER, b"")
    return decode(ethernet + above) if len(ethernet) >= 14 else packet(above)


def _number(value: bytes | None) -> int:
    return int.from_bytes(value or b"", "big")


def _text(value: bytes | None) -> str:
    return (value or b"").rstrip(b"\0").decode(errors="replace")
