"""Print the frames at a link that concern the service: ``frame_sniffer.py ADDRESS MAC LINK``.

A frame concerns the service when it contains ADDRESS or MAC. Prints ``ready``, then the first 60 bytes of
each such frame in hexadecimal, a line each. Ends when its standard input ends.
"""

from __future__ import annotations

import select
import socket
import sys

ALL_PROTOCOLS = 3  # ETH_P_ALL, <linux/if_ether.h>


def sniff(address: bytes, mac: bytes, link: str) -> None:
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ALL_PROTOCOLS))
    sock.bind((link, 0))
    print("ready", flush=True)
    while sock in select.select([sock, sys.stdin], [], [])[0]:
        frame, (_, _, kind, *_) = sock.recvfrom(65535)
        if kind != socket.PACKET_OUTGOING and (address in frame or mac in frame):
            print(frame[:60].hex(), flush=True)


if __name__ == "__main__":
    family = socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET
    sniff(socket.inet_pton(family, sys.argv[1]), bytes.fromhex(sys.argv[2].replace(":", "")), sys.argv[3])
