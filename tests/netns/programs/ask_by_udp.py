"""Send one UDP datagram and wait half a second for an answer: ``ask_by_udp.py ADDRESS PORT``.

Prints the answer, or the name of the error that came instead.
"""

from __future__ import annotations

import socket
import sys


def main() -> None:
    address, port = sys.argv[1:]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(0.5)
        sock.connect((address, int(port)))
        try:
            sock.send(b"anybody?")
            print(sock.recv(100))
        except OSError as error:
            print(type(error).__name__)


main()
