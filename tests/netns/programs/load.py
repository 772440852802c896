"""The load of one guest on an endpoint that echoes: ``load.py ADDRESS PORT CALLERS STREAMS``.

CALLERS make one connection after the other, and STREAMS hold a connection each, on which they send blocks
that differ from each other, and compare what comes back. Prints a JSON object for each line of its input, and
the last one when the input has ended and all have finished:

| key | value |
| --- | --- |
| ``served`` | connections of callers that were served |
| ``failed`` | how each of the others failed |
| ``least`` | connections of the caller that has the fewest, or blocks of the stream that has the fewest |
| ``streams`` | how each stream that has ended did: ``whole``, or the name of the error |
"""

from __future__ import annotations

import errno
import json
import os
import random
import socket
import sys
import threading
import time
from pathlib import Path

PATIENCE = 100.0  # seconds for connecting and for each answer
BLOCK = 1 << 16
# Seconds between two connections or blocks. An ended connection keeps its local port for a minute: with eight
# callers those of the host towards one endpoint last for any time.
PAUSE = 0.02
PORTS = Path("/proc/sys/net/ipv4/ip_local_port_range")


def name(error: OSError) -> str:
    return errno.errorcode.get(error.errno or 0, repr(error))


def end(sock: socket.socket) -> None:
    """End one direction. Raises the error of a connection that has ended before."""
    try:
        sock.shutdown(socket.SHUT_WR)
    except OSError as error:
        # ENOTCONN, whatever ended it; the socket holds the reason.
        number = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        raise OSError(number or error.errno, os.strerror(number or error.errno or 0)) from None


class Load:
    def __init__(self, target: tuple[str, int], callers: int, streams: int) -> None:
        self.target = target
        self.ending = threading.Event()
        self.failed: list[str] = []
        self.streams: list[str] = []
        self.calls = [0] * callers  # served
        self.blocks = [0] * streams
        self.threads = [threading.Thread(target=self.call, args=[each]) for each in range(callers)]
        self.threads += [threading.Thread(target=self.stream, args=[each]) for each in range(streams)]
        for thread in self.threads:
            thread.start()

    def call(self, number: int) -> None:
        line = f"caller {number}".encode()
        while not self.ending.wait(PAUSE):
            try:
                with socket.create_connection(self.target, PATIENCE) as sock:
                    sock.sendall(line)
                    answer = sock.recv(100)
            except OSError as error:
                self.failed.append(name(error))
                continue
            if answer == line:
                self.calls[number] += 1
            else:
                self.failed.append(f"another answer: {answer!r}")

    def stream(self, number: int) -> None:
        try:
            with socket.create_connection(self.target, PATIENCE) as sock:
                self.streams.append(self.talk(sock, number))
        except OSError as error:
            self.streams.append(name(error))

    def talk(self, sock: socket.socket, number: int) -> str:
        random_bytes = random.Random(number).randbytes
        while not self.ending.wait(PAUSE):
            block = random_bytes(BLOCK)
            sock.sendall(block)
            echoed = b""
            while len(echoed) < BLOCK and (part := sock.recv(BLOCK)):
                echoed += part
            if echoed != block:
                return f"another block, of {len(echoed)} bytes"
            self.blocks[number] += 1
        end(sock)
        return "more than was sent" if sock.recv(1) else "whole"

    def report(self) -> None:
        report = {
            "served": sum(self.calls),
            "failed": list(self.failed),
            "least": min([*self.calls, *self.blocks]),
            "streams": list(self.streams),
        }
        print(json.dumps(report), flush=True)


def main() -> None:
    address, port, callers, streams = sys.argv[1:]
    PORTS.write_text("1024 65535")  # of this network namespace: the guest's
    load = Load((address, int(port)), int(callers), int(streams))
    for _ in sys.stdin:
        load.report()
        time.sleep(0)
    load.ending.set()
    for thread in load.threads:
        thread.join()
    load.report()


main()
