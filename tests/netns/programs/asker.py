"""Connect to an endpoint that echoes, once after the other, until the input ends: ``asker.py ADDRESS PORT``.

For each line of its input, and at the end, it prints a JSON object: how many connections have been ``served``
so far, and how each of the others ``failed``.
"""

from __future__ import annotations

import json
import select
import socket
import sys

PATIENCE = 100.0  # seconds for connecting and for each answer


def ask(address: str, port: int) -> str:
    """Return how one connection failed; nothing if it was served."""
    try:
        with socket.create_connection((address, port), PATIENCE) as sock:
            sock.sendall(b"hello")
            answer = sock.recv(100)
    except OSError as error:
        return repr(error)
    return "" if answer == b"hello" else f"another answer: {answer!r}"


def main() -> None:
    address, port = sys.argv[1:]
    served = 0
    failed: list[str] = []
    line = "\n"
    while line:
        failure = ask(address, int(port))
        failed += [failure] if failure else []
        served += not failure
        if select.select([sys.stdin], [], [], 0)[0]:
            line = sys.stdin.readline()
            print(json.dumps({"served": served, "failed": failed}), flush=True)


if __name__ == "__main__":
    main()
