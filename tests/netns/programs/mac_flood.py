"""Send frames from many MAC addresses: ``mac_flood.py LINK COUNT``. Prints ``ready`` after the last one."""

from __future__ import annotations

import socket
import sys

EXPERIMENT = bytes.fromhex("88b5")  # IEEE 802 local experimental


def main() -> None:
    link, count = sys.argv[1:]
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sock:
        sock.bind((link, 0))
        for number in range(int(count)):
            source = b"\x02\x99" + number.to_bytes(4, "big")
            sock.send(b"\x02\x98\x00\x00\x00\x01" + source + EXPERIMENT + bytes(46))
    print("ready", flush=True)


if __name__ == "__main__":
    main()
