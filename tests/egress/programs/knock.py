"""Connects to a port of 127.0.0.1 again and again until its input ends, and prints how often it was refused.

Argument: the port.
"""

from __future__ import annotations

import select
import socket
import sys
import time

refused = 0
print("ready", flush=True)
while not select.select([sys.stdin], [], [], 0)[0]:
    try:
        socket.create_connection(("127.0.0.1", int(sys.argv[1])), 60).close()
    except ConnectionRefusedError:
        refused += 1
    time.sleep(0.02)
print(refused)
