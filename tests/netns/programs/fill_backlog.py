"""Fills the backlog of a server that accepts nothing: ``fill_backlog.py ADDRESS PORT``.

The server is on this host, so that the kernel completes each handshake at once. Prints ``ready`` when the
server answers no more dials, and holds the connections until it is ended.
"""

from __future__ import annotations

import signal
import socket
import sys

address, port = sys.argv[1:]
held = []
while True:
    sock = socket.socket()
    sock.setblocking(False)
    sock.connect_ex((address, int(port)))
    try:
        sock.getpeername()
    except OSError:  # it would be repeated, and take the room that comes later
        sock.close()
        break
    held.append(sock)
print("ready", flush=True)
signal.pause()
