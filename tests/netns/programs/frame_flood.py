"""Send frames over and over, a thousand rounds a second, until killed: ``frame_flood.py LINK HEX...``.

Prints ``ready`` after the first hundred rounds, so that whoever waits for it is in the middle of the flood.
"""

from __future__ import annotations

import itertools
import socket
import sys
import time


def main() -> None:
    link, *frames = sys.argv[1:]
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sock:
        sock.bind((link, 0))
        for rounds in itertools.count():
            for frame in frames:
                sock.send(bytes.fromhex(frame))
            if rounds == 100:
                print("ready", flush=True)
            time.sleep(0.001)


main()
