"""A guest that sends datagrams: ``python datagram_caller.py ADDRESS PORT LINES``.

``LINES`` is JSON: a list of ``[socket, size or text, seconds]``. Sockets are numbers; each is bound to a port
of its own, and connected. A size means so many bytes. For each line it prints the answer, ``silent`` when
none came within the seconds, or the name of the error, as ``ECONNREFUSED``.
"""

from __future__ import annotations

import errno
import json
import socket
import sys


def main(address: str, port: int, lines: list[tuple[int, int | str, float]]) -> None:
    sockets: dict[int, socket.socket] = {}
    for number, what, seconds in lines:
        sock = sockets.get(number)
        if sock is None:
            family, *_, place = socket.getaddrinfo(address, port, type=socket.SOCK_DGRAM)[0]
            sock = sockets[number] = socket.socket(family, socket.SOCK_DGRAM)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
            sock.connect(place)
        sock.settimeout(seconds)
        data = what.encode() if isinstance(what, str) else bytes(each % 251 for each in range(what))
        try:
            sock.send(data)
            answer = sock.recv(1 << 16)
        except TimeoutError:
            print("silent", flush=True)
        except OSError as error:
            print(errno.errorcode[error.errno or 0], flush=True)
        else:
            same = answer == data and not isinstance(what, str)
            print(f"echo {len(answer)}" if same else answer.decode(), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3]))
