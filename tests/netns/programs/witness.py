"""Record all frames of several network namespaces: ``witness.py NAMESPACE[:LINK,...]...``.

``host`` is the namespace in which it runs. With LINKs only theirs are recorded. Prints ``ready`` when it
listens. Each line of its input is a JSON object with

- ``until``: pairs of a namespace and a part of a frame, in hexadecimal. It waits until each has come in.
- ``with``: parts of frames. It answers, in JSON, with the frames that have one of them and came since the
  last answer: namespace, link, whether it came ``in`` or went ``out``, and the frame with its tags.
"""

from __future__ import annotations

import json
import os
import select
import socket
import struct
import sys
from ctypes import CDLL, get_errno

ALL_PROTOCOLS = 3  # ETH_P_ALL, <linux/if_ether.h>
CLONE_NEWNET = 0x40000000
SOL_PACKET, PACKET_AUXDATA = 263, 8  # <linux/if_packet.h>
AUXDATA = struct.Struct("=IIIHHHH")  # struct tpacket_auxdata: status first, tag and its protocol last
STATUS_TAG, STATUS_TAG_PROTOCOL = 1 << 4, 1 << 6
SO_RCVBUFFORCE = 33
BUFFER = 16 << 20
LONGEST = 65535

libc = CDLL(None, use_errno=True)


def listen(namespace: str) -> socket.socket:
    """A socket in the namespace, which stays there when this thread has returned."""
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    target = home if namespace == "host" else os.open(f"/run/netns/{namespace}", os.O_RDONLY)
    for step in (target, home):
        if libc.setns(step, CLONE_NEWNET):
            raise OSError(get_errno(), namespace)
        if step is target:
            sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ALL_PROTOCOLS))
    sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, BUFFER)
    sock.setsockopt(SOL_PACKET, PACKET_AUXDATA, 1)
    sock.setblocking(False)
    return sock


def with_tag(frame: bytes, ancillary: list[tuple[int, int, bytes]]) -> bytes:
    """The frame with its outermost tag, which the kernel keeps beside it."""
    for level, kind, data in ancillary:
        if (level, kind) == (SOL_PACKET, PACKET_AUXDATA):
            status, *_, tag, protocol = AUXDATA.unpack_from(data)
            if status & STATUS_TAG:
                protocol = protocol if status & STATUS_TAG_PROTOCOL else 0x8100
                return frame[:12] + struct.pack("!HH", protocol, tag) + frame[12:]
    return frame


def main() -> None:
    sockets: dict[socket.socket, tuple[str, list[str]]] = {}
    for argument in sys.argv[1:]:
        namespace, _, links = argument.partition(":")
        sockets[listen(namespace)] = namespace, links.split(",") if links else []
    print("ready", flush=True)
    heard: list[tuple[str, str, str, bytes]] = []

    def drain() -> None:
        for sock, (namespace, links) in sockets.items():
            while True:
                try:
                    frame, ancillary, _, (link, _, kind, *_) = sock.recvmsg(LONGEST, 256)
                except BlockingIOError:
                    break
                if not links or link in links:
                    way = "out" if kind == socket.PACKET_OUTGOING else "in"
                    heard.append((namespace, link, way, with_tag(frame, ancillary)))

    for line in sys.stdin:
        request = json.loads(line)
        missing = {(where, bytes.fromhex(part)) for where, part in request["until"]}
        seen = 0
        while True:
            drain()
            for namespace, _, way, frame in heard[seen:]:
                came = way == "in"
                missing -= {each for each in missing if came and each[0] == namespace and each[1] in frame}
            seen = len(heard)
            if not missing:
                break
            select.select(sockets, [], [])
        drain()  # what came before that, at a socket that was read before it
        parts = [bytes.fromhex(each) for each in request["with"]]
        found = [each for each in heard if any(part in each[3] for part in parts)]
        print(json.dumps([[*where, frame.hex()] for *where, frame in found]), flush=True)
        heard.clear()


main()
