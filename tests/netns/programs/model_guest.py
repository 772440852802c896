"""A guest that does what it is told: ``model_guest.py ADDRESS``, with a JSON list on each line of its input.

| words | answer, a line of JSON |
| --- | --- |
| ``["ask", {PORT: SECONDS}]`` | by port, what the endpoint answers, or an error. All at once |
| ``["open", NUMBER, PORT]`` | the local port of a connection that stays open, once a block came back |
| ``["use", [NUMBER, ...]]`` | by number, ``alive`` when a block came back as it was, or how that ended |
| ``["close", [NUMBER, ...]]`` | nothing of interest |

``SECONDS`` is how long a connection may take, and each answer.
"""

from __future__ import annotations

import errno
import json
import random
import socket
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

PATIENCE = 100.0  # seconds
BLOCK = 20_000
REQUEST = b"GET / HTTP/1.1\r\n\r\n"

ADDRESS = sys.argv[1]
streams: dict[int, socket.socket] = {}


def reason(error: OSError) -> str:
    return "timeout" if isinstance(error, TimeoutError) else errno.errorcode.get(error.errno or 0, str(error))


def ask(port: int, seconds: float) -> str:
    try:
        with socket.create_connection((ADDRESS, port), seconds) as sock:
            sock.sendall(REQUEST)
            sock.shutdown(socket.SHUT_WR)
            answer = b"".join(iter(lambda: sock.recv(BLOCK), b""))
    except OSError as error:
        return reason(error)
    if answer == REQUEST:
        return "echo"
    return answer.decode().rpartition("\r\n\r\n")[2].strip() or f"no answer: {answer!r}"


def ask_all(ports: dict[str, float]) -> dict[str, str]:
    with ThreadPoolExecutor(len(ports)) as pool:
        answers = pool.map(ask, map(int, ports), ports.values())
        return dict(zip(ports, answers, strict=True))


def open_stream(number: int, port: int) -> int:
    sock = streams[number] = socket.create_connection((ADDRESS, port), PATIENCE)
    if use(number) != "alive":
        sys.exit(f"stream {number} was not served")
    local: int = sock.getsockname()[1]
    return local


def use(number: int) -> str:
    block = random.randbytes(BLOCK)
    echoed = b""
    try:
        streams[number].sendall(block)
        while len(echoed) < BLOCK and (part := streams[number].recv(BLOCK)):
            echoed += part
    except OSError as error:
        return reason(error)
    return "alive" if echoed == block else f"another block, of {len(echoed)} bytes"


def do(words: list[Any]) -> object:
    match words:
        case ["ask", ports]:
            return ask_all(ports)
        case ["open", number, port]:
            return open_stream(number, port)
        case ["use", numbers]:
            return {number: use(number) for number in numbers}
        case ["close", numbers]:
            for number in numbers:
                streams.pop(number).close()
    return None


for line in sys.stdin:
    print(json.dumps(do(json.loads(line))), flush=True)
