"""A client that tells how connections end: ``python -m bench.client ADDRESS PORT IDLE BUSY NEW``.

Holds IDLE connections after one request each, makes requests without a pause on BUSY connections, and opens
connections for one request each, NEW at a time. Prints ``ready`` when each has had an answer, and runs until
its standard input ends. Then tries once more to connect and to use what is open, and prints counts as JSON.
"""

from __future__ import annotations

import errno
import json
import selectors
import socket
import sys
import time
from collections import Counter
from dataclasses import dataclass

# A request that takes longer counts as lost.
TIMEOUT = 10.0  # seconds

# Seconds after which connections that wait too long are looked for.
_LOOK = 1.0

_KEEP = b"GET /1 HTTP/1.1\r\nHost: x\r\n\r\n"
_CLOSE = b"GET /1 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"


@dataclass
class Connection:
    """One connection: ``kind`` is idle, busy or new; ``since`` is when it waits for an answer, else None."""

    kind: str
    socket: socket.socket
    since: float | None


class Client:
    """Connections of three kinds, and what became of them in ``counted``."""

    def __init__(self, address: tuple[str, int]) -> None:
        self._address = address
        self._selector = selectors.DefaultSelector()
        self.counted: Counter[str] = Counter(answers=0, connections=0, refused=0, lost=0)
        self.longest = 0.0  # seconds that a request waited for its answer
        self._there: Counter[str] = Counter()  # open connections of each kind
        self._looked = time.monotonic()
        self._draining = False

    def open(self, kind: str) -> None:
        """Connect, and send the first request; a refusal is counted."""
        try:
            connected = socket.create_connection(self._address, TIMEOUT)
        except OSError:
            self.counted["refused"] += 1
            return
        self.counted["connections"] += 1
        self._there[kind] += 1
        connection = Connection(kind, connected, None)
        self._selector.register(connected, selectors.EVENT_READ, connection)
        self.ask(connection)

    def ask(self, connection: Connection) -> None:
        connection.since = time.monotonic()
        try:
            connection.socket.sendall(_CLOSE if connection.kind == "new" else _KEEP)
        except OSError as error:
            self.lose(connection, error)

    def lose(self, connection: Connection, error: OSError | None = None) -> None:
        """Count a connection that ended before its answer, by the reason, and open another instead."""
        reason = errno.errorcode.get(error.errno or 0, "time-out") if error else "end of file"
        self.counted["lost"] += 1
        self.counted[f"lost: {reason}"] += 1
        self._close(connection)

    def step(self) -> None:
        """Take what has arrived; busy and new connections go on with the next request."""
        for key, _ in self._selector.select(0.1):
            connection: Connection = key.data
            try:
                said = connection.socket.recv(4096)
            except OSError as error:
                self.lose(connection, error)
                continue
            if not said.startswith(b"HTTP/1.1 200"):
                self.lose(connection)
                continue
            self.counted["answers"] += 1
            assert connection.since is not None
            self.longest = max(self.longest, time.monotonic() - connection.since)
            connection.since = None
            if connection.kind == "busy" and not self._draining:
                self.ask(connection)
            elif connection.kind == "new":
                self._close(connection)
        now = time.monotonic()
        if now - self._looked < _LOOK:
            return
        self._looked = now
        for connection in self.all():
            if connection.since is not None and now - connection.since > TIMEOUT:
                self.lose(connection, TimeoutError())

    def fill(self, wanted: dict[str, int]) -> None:
        """Open connections until there are so many of each kind."""
        for kind, count in wanted.items():
            for _ in range(count - self._there[kind]):
                self.open(kind)

    def all(self) -> list[Connection]:
        return [key.data for key in list(self._selector.get_map().values())]

    def drain(self) -> None:
        """Wait for all answers that are due, without another request."""
        self._draining = True
        while any(connection.since is not None for connection in self.all()):
            self.step()

    def _close(self, connection: Connection) -> None:
        self._there[connection.kind] -= 1
        self._selector.unregister(connection.socket)
        connection.socket.close()


def main() -> None:
    address = sys.argv[1], int(sys.argv[2])
    wanted = dict(zip(("idle", "busy", "new"), map(int, sys.argv[3:6]), strict=True))
    client = Client(address)
    client.fill(wanted)
    while client.counted["answers"] < sum(wanted.values()) and not client.counted["lost"]:
        client.step()
    print("ready", flush=True)
    with selectors.DefaultSelector() as stdin:
        stdin.register(sys.stdin, selectors.EVENT_READ)
        while not stdin.select(0):
            client.step()
            client.fill(wanted)
    client.drain()
    client.fill(wanted)
    client.drain()
    for connection in client.all():
        client.ask(connection)
    client.drain()
    print(json.dumps({**client.counted, "longest": client.longest}), flush=True)


if __name__ == "__main__":
    main()
