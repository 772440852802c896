"""Send frames as they are given, from one link: ``forger.py LINK``.

Prints ``ready``. Each line of its input is a JSON list of frames in hexadecimal, which are sent in this
order; then it prints ``sent``. All frames go out on one processor, where the kernel handles them in the same
order.
"""

from __future__ import annotations

import json
import os
import socket
import sys


def main() -> None:
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sock:
        sock.bind((sys.argv[1], 0))
        print("ready", flush=True)
        for line in sys.stdin:
            for frame in json.loads(line):
                sock.send(bytes.fromhex(frame))
            print("sent", flush=True)


main()
