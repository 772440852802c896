"""A guest on a connection to ticking_endpoint.py: ``ticking_guest.py ADDRESS PORT``.

Prints ``ready`` and the first word that came. For each line of its input it sends the line, reads until the
connection ends, and prints how: ``end of file``, or the name of the error, such as ``ECONNRESET``.
"""

from __future__ import annotations

import errno
import socket
import sys

PATIENCE = 100.0  # seconds for connecting and for whatever comes next


def main() -> None:
    address, port = sys.argv[1:]
    with socket.create_connection((address, int(port)), PATIENCE) as sock:
        print("ready", sock.recv(4).decode(), flush=True)
        for line in sys.stdin:
            try:
                sock.sendall(line.encode())
                while sock.recv(65536):
                    pass
                print("end of file", flush=True)
            except OSError as error:
                print(errno.errorcode.get(error.errno or 0, "timeout"), flush=True)


main()
