"""Hold many TCP connections open until the input ends: ``holder.py ADDRESS PORT COUNT``.

Prints ``ready`` when all have been started; some may still wait in a backlog.
"""

from __future__ import annotations

import resource
import socket
import sys
import time

# The listener's backlog has an end, so there is a pause after so many connections.
AT_ONCE, PAUSE = 50, 0.05  # connections, seconds


def main() -> None:
    address, port, count = sys.argv[1:]
    descriptors = int(count) + 100
    resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors, descriptors))
    held = []
    for number in range(1, int(count) + 1):
        sock = socket.socket()
        sock.setblocking(False)
        sock.connect_ex((address, int(port)))
        held.append(sock)
        if number % AT_ONCE == 0:
            time.sleep(PAUSE)
    print("ready", flush=True)
    sys.stdin.read()


main()
