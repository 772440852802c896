"""Sends bytes to a port and prints what comes back, as an attacker would.

Arguments: port, or address:port, and the bytes in hexadecimal.

With a third argument, a host name, it does TLS for that name behind a CONNECT (the bytes), without looking at
certificates, and sends the fourth argument.
"""

from __future__ import annotations

import socket
import ssl
import sys


def read_all(peer: socket.socket) -> bytes:
    found = b""
    try:
        while data := peer.recv(65536):
            found += data
    except OSError:
        pass
    return found


def main() -> None:
    address, _, port = sys.argv[1].rpartition(":")
    with socket.create_connection((address or "127.0.0.1", int(port)), 5) as peer:
        peer.settimeout(5)
        peer.sendall(bytes.fromhex(sys.argv[2]))
        if len(sys.argv) < 4:
            # Not shut down: squid drops requests of a client that has ended its side.
            sys.stdout.buffer.write(read_all(peer))
            return
        head = b""
        while b"\r\n\r\n" not in head and (data := peer.recv(1)):
            head += data
        if b" 200 " not in head.partition(b"\r\n")[0]:
            sys.stdout.buffer.write(head + read_all(peer))
            return
        context = ssl._create_unverified_context()
        with context.wrap_socket(peer, server_hostname=sys.argv[3]) as secure:
            secure.sendall(bytes.fromhex(sys.argv[4]))
            sys.stdout.buffer.write(read_all(secure))


try:
    main()
except OSError as error:
    print("ended:", error)
