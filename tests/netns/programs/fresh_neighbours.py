"""Send a datagram to each of these neighbours: ``fresh_neighbours.py ADDRESS...``.

Prints, as JSON, those for which the kernel had no room in its neighbour table. A socket with IP_RECVERR gets
ENOBUFS then, at once, ip(7).
"""

from __future__ import annotations

import errno
import json
import socket
import sys

IP_RECVERR = 11
DISCARD = 9


def has_room(address: str) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setsockopt(socket.IPPROTO_IP, IP_RECVERR, 1)
        try:
            sock.sendto(b"", (address, DISCARD))
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                raise
            return False
        return True


print(json.dumps([address for address in sys.argv[1:] if not has_room(address)]))
