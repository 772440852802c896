"""Ask the service from many source addresses.

``source_flood.py LINK KIND COUNT [TAGS] [--again] [--from=ADDRESS]``

KIND is ``syn``, ``ack`` (of no connection), ``ping``, ``udp`` or ``arp``, or several of them with commas.
Each frame has the link's MAC, which is genuine, and another address of 10.100.0.0/16. Prints ``ready`` after
COUNT frames of each kind. TAGS is the number of tags with VLAN 0 in each frame. With ``--again`` sends them
over and over until killed. With ``--from`` all frames have that address.
"""

from __future__ import annotations

import itertools
import socket
import struct
import sys
import time
from collections.abc import Iterator

SERVICE = bytes([169, 254, 16, 9])
SERVICE_MAC = bytes.fromhex("0600a9fe1009")
PORT = 5030
SYN, ACK = 0x02, 0x10
TCP, UDP, ICMP = 6, 17, 1
PRIORITY_TAG = bytes.fromhex("81000000")


def checksum(data: bytes) -> bytes:
    """The checksum of the Internet protocols, RFC 1071."""
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total > 0xFFFF:
        total = (total >> 16) + (total & 0xFFFF)
    return struct.pack("!H", 0xFFFF - total)


def ipv4(source: bytes, protocol: int, payload: bytes) -> bytes:
    header = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(payload), 1, 0, 64, protocol, 0) + source + SERVICE
    return header[:10] + checksum(header) + header[12:] + payload


def tcp(source: bytes, flags: int) -> bytes:
    segment = struct.pack("!HHIIBBHHH", 40000, PORT, 1, 1, 5 << 4, flags, 64000, 0, 0)
    pseudo = source + SERVICE + struct.pack("!BBH", 0, TCP, len(segment))
    return ipv4(source, TCP, segment[:16] + checksum(pseudo + segment) + segment[18:])


def frame(kind: str, mac: bytes, source: bytes) -> bytes:
    if kind == "arp":
        request = bytes.fromhex("0001080006040001") + mac + source + bytes(6) + SERVICE
        return b"\xff" * 6 + mac + b"\x08\x06" + request
    packet = {
        "syn": lambda: tcp(source, SYN),
        "ack": lambda: tcp(source, ACK),
        "ping": lambda: ipv4(source, ICMP, b"\x08\x00\xf7\xff" + bytes(4)),
        "udp": lambda: ipv4(source, UDP, struct.pack("!HHHH", 40000, 9, 8, 0)),
    }[kind]()
    return SERVICE_MAC + mac + b"\x08\x00" + packet


def frames(kinds: list[str], mac: bytes, count: int, tags: int, source: bytes | None) -> Iterator[bytes]:
    addresses = 12  # bytes of the Ethernet header before the first tag
    for number in range(1, count + 1):
        for each, kind in enumerate(kinds):
            host = number + each * count  # kinds do not share sources
            plain = frame(kind, mac, source or bytes([10, 100, host >> 8, host & 0xFF]))
            yield plain[:addresses] + PRIORITY_TAG * tags + plain[addresses:]


def main() -> None:
    link, kinds, count, *rest = sys.argv[1:]
    tags = sum(map(int, filter(str.isdigit, rest)))
    own = [socket.inet_aton(each.removeprefix("--from=")) for each in rest if each.startswith("--from=")]
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sock:
        sock.bind((link, 0))
        ready = list(
            frames(kinds.split(","), sock.getsockname()[4], int(count), tags, own[0] if own else None)
        )
        for rounds in itertools.count():
            for number, each in enumerate(ready):
                sock.send(each)
                if number % 50 == 0:
                    time.sleep(0.001)  # this is to fill tables, and not the processor
            if rounds == 0:
                print("ready", flush=True)
            if "--again" not in rest:
                return


main()
