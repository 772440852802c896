"""Traffic of a guest for the picture: ``python -m bench.traffic SECONDS PORT:RATE:BYTES...``.

For each service it opens RATE connections a second, which swings by a half, sends a line that says how many
bytes it wants, and reads to the end.
"""

from __future__ import annotations

import math
import socket
import sys
import threading
import time
from contextlib import suppress

from tproxy.addresses import SERVICE_ADDRESS

SWING = 20.0  # seconds


def main() -> None:
    end = time.monotonic() + float(sys.argv[1])
    services = [[int(word) for word in each.split(":")] for each in sys.argv[2:]]
    running = [threading.Thread(target=use, args=(end, *each)) for each in services]
    for each in running:
        each.start()
    for each in running:
        each.join()


def use(end: float, port: int, rate: int, count: int) -> None:
    while (now := time.monotonic()) < end:
        threading.Thread(target=once, args=(port, count), daemon=True).start()
        time.sleep(1 / (rate * (1 + math.sin((now + port) * 2 * math.pi / SWING) / 2)))


def once(port: int, count: int) -> None:
    with suppress(OSError), socket.create_connection((SERVICE_ADDRESS, port), 10) as sock:
        sock.sendall(f"{count}\n".encode())
        while sock.recv(1 << 16):
            pass


if __name__ == "__main__":
    main()
