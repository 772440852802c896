"""A name server that answers from a file: ``name_server.py FILE ADDRESS PORT``.

FILE has a line for each name, with its addresses behind it, and is read at each question. For a name that is
not there, the answer is that it does not exist. A name without an address gets no answer: it is written to
FILE.unanswered. RFC 1035. Prints ``ready`` when it listens.
"""

from __future__ import annotations

import socket
import sys
from pathlib import Path

TYPE_A = b"\0\1"
HEADER = 12  # bytes before the question
# Name is the question's, type A, class IN, no time to live, 4 bytes.
RECORD = bytes.fromhex("c00c 0001 0001 00000000 0004")


def name_in(query: bytes) -> str:
    labels, at = [], HEADER
    while query[at]:
        labels.append(query[at + 1 : at + 1 + query[at]].decode())
        at += 1 + query[at]
    return ".".join(labels)


def answer(query: bytes, addresses: list[str] | None) -> bytes:
    question = query[HEADER : query.index(b"\0", HEADER) + 5]
    flags = "8180" if addresses else "8183"  # no error, or: no such name
    found = addresses if addresses and question[-4:-2] == TYPE_A else ()
    counts = b"\0\1" + len(found).to_bytes(2, "big") + bytes(4)
    records = (RECORD + socket.inet_aton(each) for each in found)
    return query[:2] + bytes.fromhex(flags) + counts + question + b"".join(records)


def main() -> None:
    file, address, port = sys.argv[1:]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind((address, int(port)))
        print("ready", flush=True)
        while True:
            query, client = sock.recvfrom(512)
            lines = filter(None, map(str.split, Path(file).read_text().splitlines()))
            name = name_in(query)
            addresses = {each: rest for each, *rest in lines}.get(name)
            if addresses == []:
                Path(f"{file}.unanswered").write_text(name)
            else:
                sock.sendto(answer(query, addresses), client)


main()
