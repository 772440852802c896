"""A UDP endpoint that says what it got: ``python datagram_endpoint.py BEHAVIOUR ADDRESS PORT``.

``echo`` sends each datagram back. ``who`` answers with the source, the count of datagrams from there, and the
datagram's size and SHA-256. ``header`` answers with the PROXY header before the datagram, as JSON.
It prints ``ready`` when it is bound.
"""

from __future__ import annotations

import hashlib
import json
import socket
import sys

from tproxy import proxy_protocol


def main(behaviour: str, address: str, port: int) -> None:
    family, *_, place = socket.getaddrinfo(address, port, type=socket.SOCK_DGRAM)[0]
    sock = socket.socket(family, socket.SOCK_DGRAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
    sock.bind(place)
    print("ready", flush=True)
    counts: dict[object, int] = {}
    while True:
        data, source = sock.recvfrom(1 << 16)
        if not data:  # a check
            continue
        counts[source] = counts.get(source, 0) + 1
        if behaviour == "echo":
            sock.sendto(data, source)
        elif behaviour == "who":
            digest = hashlib.sha256(data).hexdigest()
            sock.sendto(f"{address} {source[1]} {counts[source]} {len(data)} {digest}".encode(), source)
        else:
            size = proxy_protocol.START + proxy_protocol.length(data[: proxy_protocol.START])
            found = proxy_protocol.decode(data[:size])
            said = {
                "transport": data[13] & 0xF,
                "source": found.source,
                "destination": found.destination,
                "values": {f"{kind:02x}": text for kind, text in found.values.items()},
                "data": data[size:].decode(),
            }
            sock.sendto(json.dumps(said).encode(), source)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
