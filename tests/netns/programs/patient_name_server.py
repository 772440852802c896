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


def answer(query: bytes) -> bytes:
    end = query.index(b"\0", HEADER) + 5  # of the question: the name, then type and class
    return query[:2] + ANSWERED + query[HEADER:end] + RECORD


def main() -> None:
    count, address, port = sys.argv[1:]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind((address, int(port)))
        print("ready", flush=True)
        asked: dict[bytes, tuple[bytes, tuple[str, int]]] = {}
        while len(asked) < int(count):
            query, client = sock.recvfrom(512)
            asked[query[HEADER:]] = query, client
        for query, client in asked.values():
            sock.sendto(answer(query), client)


main()
