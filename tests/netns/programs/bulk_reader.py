"""Read many connections at once, each to the end of file: ``bulk_reader.py ADDRESS PORT COUNT``.

Prints ``ready`` when all have been read. The other direction of each stays open until the input ends.
"""

from __future__ import annotations

import socket
import sys
import threading

PATIENCE = 100.0  # seconds for connecting and for each part


def read_to_the_end(sock: socket.socket) -> None:
    while sock.recv(1 << 18):
        pass


def main() -> None:
    address, port, count = sys.argv[1:]
    socks = [socket.create_connection((address, int(port)), PATIENCE) for _ in range(int(count))]
    readers = [threading.Thread(target=read_to_the_end, args=[sock]) for sock in socks]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()
    print("ready", flush=True)
    sys.stdin.read()


main()
