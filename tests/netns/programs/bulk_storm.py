"""Send on many connections at once, each other bytes: ``bulk_storm.py ADDRESS PORT STREAMS BLOCKS``.

The endpoint tells how many bytes came, and their SHA-256 (endpoints.py, ``digest``). The program prints
``ready`` when all connections are there, and sends when a line of input has come. Then it prints as JSON what
was wrong with each stream that did not arrive whole.
"""

from __future__ import annotations

import hashlib
import json
import random
import socket
import sys
import threading

PATIENCE = 120.0  # seconds for connecting, for each block, and for the answer
BLOCK = 1 << 16


def stream(sock: socket.socket, number: int, blocks: int, wrong: list[str]) -> None:
    block = random.Random(number).randbytes(BLOCK)
    digest = hashlib.sha256()
    try:
        for _ in range(blocks):
            sock.sendall(block)
            digest.update(block)
        sock.shutdown(socket.SHUT_WR)
        answer = b"".join(iter(lambda: sock.recv(1000), b"")).decode()
    except OSError as error:
        answer = repr(error)
    if answer != f"{blocks * BLOCK} {digest.hexdigest()}":
        wrong.append(f"stream {number}: {answer}")


def main() -> None:
    address, port, streams, blocks = sys.argv[1:]
    socks = [socket.create_connection((address, int(port)), PATIENCE) for _ in range(int(streams))]
    print("ready", flush=True)
    sys.stdin.readline()
    wrong: list[str] = []
    threads = [
        threading.Thread(target=stream, args=[sock, number, int(blocks), wrong])
        for number, sock in enumerate(socks)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(json.dumps(wrong))


main()
