"""Reads which off-loading a link has, by ethtool's ioctl (<linux/ethtool.h>).

On a veth pair no packet leaves the kernel. With off-loading a segment of 64 KiB passes as one packet and
without a checksum; without, the kernel cuts it and computes a checksum of each piece.
"""

from __future__ import annotations

import array
import fcntl
import os
import socket
import struct

_SIOCETHTOOL = 0x8946  # <linux/sockios.h>
# ETHTOOL_GRXCSUM, ETHTOOL_GTXCSUM, ETHTOOL_GTSO, ETHTOOL_GGSO, by the words of ethtool(8)
_COMMANDS = {"rx": 0x14, "tx": 0x16, "tso": 0x1E, "gso": 0x23}


def switched_off(link: str) -> list[str]:
    """The kinds of off-loading that the link of this thread's namespace does without, in ethtool's words."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        return [word for word, command in _COMMANDS.items() if _get(sock, link, command) == 0]


def _get(sock: socket.SocketType, link: str, command: int) -> int:
    """The value of a setting; -1 when the link has none."""
    value = array.array("I", [command, 0])  # struct ethtool_value
    address, _ = value.buffer_info()
    try:
        fcntl.ioctl(sock.fileno(), _SIOCETHTOOL, struct.pack("16sP", os.fsencode(link), address) + bytes(16))
    except OSError:
        return -1
    return value[1]
