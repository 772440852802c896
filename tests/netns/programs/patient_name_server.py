"""A name server that answers when COUNT names were asked: ``patient_name_server.py COUNT ADDRESS PORT``.

Then each name has the address 10.11.12.13, RFC 1035. A program that asks for one name after the other gets no
answer. Prints ``ready`` when it listens.
"""

from __future__ import annotations

import socket
import sys

HEADER = 12  # bytes before the question
# Flags: an answer, without an error. Counts: one question, one answer.
ANSWERED = bytes.fromhex("8180 0001 0001 0000 0000")
# The name is the question's, type A, class IN, for 60 s, 4 bytes.
RECORD = bytes.fromhex("c00c 0001 0001 0000003c 0004") + socket.inet_aton("10.11.12.13")


# The same without an answer, for any other type.
EMPTY = bytes.fromhex("8180 0001 0000 0000 0000")
TYPE_A = b"\0\1"


def answer(query: bytes) -> bytes:
    name_end = query.index(b"\0", HEADER) + 1
    end = name_end + 4  # of the question: the name, then type and class
    if query[name_end : name_end + 2] != TYPE_A:
        return query[:2] + EMPTY + query[HEADER:end]
    return query[:2] + ANSWERED + query[HEADER:end] + RECORD


def main() -> None:
    count, address, port = sys.argv[1:]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind((address, int(port)))
        print("ready", flush=True)
        names: set[bytes] = set()
        waiting: list[tuple[bytes, tuple[str, int]]] = []
        while True:
            query, client = sock.recvfrom(512)
            names.add(query[HEADER : query.index(b"\0", HEADER)])
            waiting.append((query, client))
            if len(names) >= int(count):
                for query, client in waiting:
                    sock.sendto(answer(query), client)
                waiting.clear()


main()
