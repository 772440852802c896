"""Hold connections to an endpoint that echoes, and do as the input says: ``visitor.py ADDRESS PORT``.

Each line of the input is a command, and is answered with a line of JSON:

- ``open COUNT``: open so many more, one after the other, and exchange a byte on each. The answer says how
  each went that was not served, ``served`` how many were.
- ``close COUNT``: close so many, the oldest first.
- ``try``: exchange a byte on each. The answer says likewise what became of them; the lost ones are closed.
- ``finish``: end the guest's direction of each (half-close), and print nothing but ``{}``.
"""

from __future__ import annotations

import errno
import json
import socket
import sys
from collections import Counter

PATIENCE = 100.0  # seconds for connecting and for each answer


def exchange(sock: socket.socket) -> str:
    """Return "served", or how the connection ended."""
    try:
        sock.sendall(b"x")
        return "served" if sock.recv(1) == b"x" else "end of file"
    except TimeoutError:
        return "no answer"
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, str(error))


def connect(address: str, port: int) -> tuple[socket.socket, str]:
    sock = socket.socket()
    sock.settimeout(PATIENCE)
    try:
        sock.connect((address, port))
    except OSError as error:
        return sock, errno.errorcode.get(error.errno or 0, str(error))
    return sock, exchange(sock)


def main() -> None:
    address, port = sys.argv[1], int(sys.argv[2])
    held: list[socket.socket] = []
    for line in sys.stdin:
        command, *words = line.split()
        count = int(words[0]) if words else 0
        ends: Counter[str] = Counter()
        match command:
            case "open":
                for _ in range(count):
                    sock, end = connect(address, port)
                    ends[end] += 1
                    if end == "served":
                        held.append(sock)
                    else:
                        sock.close()
            case "close":
                for sock in held[:count]:
                    sock.close()
                del held[:count]
            case "try":
                for sock in list(held):
                    end = exchange(sock)
                    ends[end] += 1
                    if end != "served":
                        sock.close()
                        held.remove(sock)
            case "finish":
                for sock in held:
                    sock.shutdown(socket.SHUT_WR)
        print(json.dumps(ends), flush=True)


main()
