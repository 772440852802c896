"""Record the frames at a link that contain given bytes: ``frame_recorder.py LINK HEX...``.

Prints ``ready`` when it listens. At the end of its input it prints each recorded frame in hexadecimal, a line
each, after ``out`` for a frame that was sent through this link, or ``in`` for one that came.
"""

from __future__ import annotations

import select
import socket
import sys

ETH_P_ALL = 3  # <linux/if_ether.h>
BUFFER = 8 << 20  # bytes; holds a flood until this program runs


def main() -> None:
    link, *patterns = sys.argv[1:]
    wanted = [bytes.fromhex(each) for each in patterns]
    recorded = []
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL)) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER)
        sock.bind((link, 0))
        print("ready", flush=True)
        while True:
            ready = select.select([sock, sys.stdin], [], [])[0]
            if sock not in ready:
                break
            frame, (_, _, kind, *_) = sock.recvfrom(65535)
            if any(each in frame for each in wanted):
                recorded.append(("out " if kind == socket.PACKET_OUTGOING else "in ") + frame.hex())
    print(*recorded, sep="\n")


main()
