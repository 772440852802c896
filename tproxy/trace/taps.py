"""Sees the frames of one link, as the kernel's packet sockets show them (packet(7)).

A tap changes nothing, and goes with the process. The kernel shows what a link receives before a bridge looks
at it, and what it sends after the bridge has decided.
"""

from __future__ import annotations

import errno
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import NamedTuple

from tproxy.trace.filters import SNAP

_ALL = 3  # ETH_P_ALL, <linux/if_ether.h>
_SOL_PACKET, _STATISTICS, _AUXDATA = 263, 6, 8  # <linux/if_packet.h>
_OUTGOING = 4  # PACKET_OUTGOING
_SO_ATTACH_FILTER, _SO_TIMESTAMPNS = 26, 35  # <asm-generic/socket.h>
_AUXILIARY = struct.Struct("=IIIHHHH")  # struct tpacket_auxdata
_VLAN_VALID = 1 << 4  # TP_STATUS_VLAN_VALID
_TIME = struct.Struct("@ll")  # struct timespec
_COUNTS = struct.Struct("=II")  # struct tpacket_stats: shown, lost

_BUFFER = 1 << 20  # bytes, of which each frame takes about 1,000
_AT_ONCE = 256
_SPACE = 256  # for the time and the tag


class Sight(NamedTuple):
    """A frame that was seen. ``at`` is by time.monotonic(), ``leaving`` says that the link sends it."""

    at: float
    leaving: bool
    data: bytes
    vlan: int


class Tap:
    """The frames of one link that a program of ``filters`` lets pass. Raises OSError when it is gone."""

    def __init__(self, link: str, program: bytes) -> None:
        self.link = link
        # With no protocol nothing is seen before the filter is there.
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, 0)
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
            self._socket.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
            self._socket.setsockopt(_SOL_PACKET, _AUXDATA, 1)
            self.use(program)
            self._socket.bind((link, _ALL))
        except OSError:
            self._socket.close()
            raise

    def use(self, program: bytes) -> None:
        """Use another program from now on."""
        import ctypes

        code = ctypes.create_string_buffer(program, len(program))
        # struct sock_fprog: the number of instructions, padding, and a pointer to them
        header = struct.pack("@HP", len(program) // 8, ctypes.addressof(code))
        self._socket.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, header)

    def fileno(self) -> int:
        return self._socket.fileno()

    def close(self) -> None:
        self._socket.close()

    def read(self) -> Iterator[Sight]:
        """What was seen since the last time. Raises OSError when the link is gone or down."""
        shift = time.monotonic() - time.time()
        for _ in range(_AT_ONCE):
            try:
                data, ancillary, _, address = self._socket.recvmsg(SNAP, _SPACE)
            except BlockingIOError:
                return
            at, vlan = time.monotonic(), 0
            for level, kind, value in ancillary:
                if (level, kind) == (socket.SOL_SOCKET, _SO_TIMESTAMPNS):
                    seconds, nanoseconds = _TIME.unpack_from(value)
                    at = seconds + nanoseconds / 1e9 + shift
                elif (level, kind) == (_SOL_PACKET, _AUXDATA):
                    status, _, _, _, _, tag, _ = _AUXILIARY.unpack_from(value)
                    vlan = tag & 0x0FFF if status & _VLAN_VALID else 0
            yield Sight(at, address[2] == _OUTGOING, data, vlan)

    def lost(self) -> int:
        """How many frames did not fit since the last time."""
        with suppress(OSError):
            found = self._socket.getsockopt(_SOL_PACKET, _STATISTICS, _COUNTS.size)
            lost: int = _COUNTS.unpack(found)[1]
            return lost
        return 0


def is_gone(error: OSError) -> bool:
    """Whether an error says that there is no such link any more, or that it is down."""
    return error.errno in (errno.ENETDOWN, errno.ENODEV, errno.ENXIO)
