"""A client of the egress benchmark: ``python -m bench.downloads PORT PATH NETWORK SECONDS``.

Downloads one file again and again as a guest of a network, each time on a new connection, with the daemon's
PROXY header. Prints bytes, and the seconds that they took.
"""

from __future__ import annotations

import socket
import sys
import time

from tproxy import proxy_protocol
from tproxy.addresses import SERVICE_ADDRESS

_GUEST = ("10.0.0.5", 40000)
_CHUNK = 1 << 20


def download(port: int, path: str, network: str, buffer: memoryview) -> int:
    """Return the bytes of one answer, with its head. Raises OSError, or ValueError when it is no file."""
    with socket.create_connection(("127.0.0.1", port)) as connection:
        header = proxy_protocol.encode(_GUEST, (SERVICE_ADDRESS, port), {proxy_protocol.OF_NETWORK: network})
        request = f"GET {path} HTTP/1.1\r\nHost: host.example\r\nConnection: close\r\n\r\n"
        connection.sendall(header + request.encode())
        count = connection.recv_into(buffer)
        if b" 200 " not in bytes(buffer[:count]).partition(b"\r\n")[0]:
            raise ValueError(bytes(buffer[:count]).decode(errors="replace"))
        total = count
        while count:
            count = connection.recv_into(buffer)
            total += count
    return total


def main() -> None:
    port, path, network, seconds = int(sys.argv[1]), sys.argv[2], sys.argv[3], float(sys.argv[4])
    buffer = memoryview(bytearray(_CHUNK))
    began, total = time.monotonic(), 0
    while (taken := time.monotonic() - began) < seconds:
        total += download(port, path, network, buffer)
    print(total, taken)


if __name__ == "__main__":
    main()
