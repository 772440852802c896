"""Counts what squid carries out for each guest: requests under way, and tunnels that are open.

A helper of squid sees each request begin. Its end is in squid's log: the line of a request is there before
squid looks at the next one of that connection. squid numbers its requests, and the number is in both.

A connection carries one request at a time, so this is the number of the guest's connections that are not
idle.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from tproxy.egress.ledger.tail import Tail

# Ends that are remembered because their beginning was not seen: a client may have gone before the helper read
# its request, of which squid keeps 2,000 at most (queue-size=).
_MOST = 10_000


class Progress:
    """What is under way, by the number of the request."""

    def __init__(self, log: Path, slot: str) -> None:
        """``slot`` is of the squid that we help: another one may write the same log."""
        self._start = f'{{"id":"{slot}-'
        self._tail = Tail(log, lambda stat: stat.st_size)
        self._guests: dict[str, str] = {}
        self._count: Counter[str] = Counter()
        self._ended: dict[str, None] = {}  # the oldest first

    def look(self) -> None:
        """Learn what has ended. What cannot be read has not."""
        try:
            while lines := self._tail.new():
                for line in lines:
                    if line.startswith(self._start):
                        self.end(line[len(self._start) :].partition('"')[0])
        except OSError:
            return

    def count(self, guest: str) -> int:
        return self._count[guest]

    def begin(self, number: str, guest: str) -> None:
        """Note that squid may carry out this request, unless its end was seen already."""
        if number in self._ended or number in self._guests:
            return
        self._guests[number] = guest
        self._count[guest] += 1

    def end(self, number: str) -> None:
        guest = self._guests.pop(number, None)
        if guest is None:
            self._ended[number] = None
            if len(self._ended) > _MOST:
                del self._ended[next(iter(self._ended))]
            return
        self._count[guest] -= 1
        if not self._count[guest]:
            del self._count[guest]
