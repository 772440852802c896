"""Switches off-loading of checksums of a link, as ethtool -K LINK tx does: ``offload.py LINK on|off``."""

from __future__ import annotations

import array
import fcntl
import os
import socket
import struct
import sys

_SIOCETHTOOL, _ETHTOOL_STXCSUM = 0x8946, 0x17  # <linux/sockios.h>, <linux/ethtool.h>

link, wanted = sys.argv[1:]
value = array.array("I", [_ETHTOOL_STXCSUM, wanted == "on"])
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
    request = struct.pack("16sP", os.fsencode(link), value.buffer_info()[0]) + bytes(16)
    fcntl.ioctl(sock.fileno(), _SIOCETHTOOL, request)
