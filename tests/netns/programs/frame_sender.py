"""Send a frame three times from eth0, or another link: ``frame_sender.py HEX [LINK]``.

The frame is sent as it is given, because no tool forges frames as freely as a guest can.
"""

from __future__ import annotations

import socket
import sys


def send(frame: bytes, link: str) -> None:
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
    sock.bind((link, 0))
    for _ in range(3):
        sock.send(frame)


if __name__ == "__main__":
    send(bytes.fromhex(sys.argv[1]), *(sys.argv[2:] or ["eth0"]))
