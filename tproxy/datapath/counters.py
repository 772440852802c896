"""Counters in memory that a worker writes and the daemon reads, so that counting costs no message.

The memory is a file without a name (memfd_create(2)), sealed so that neither side can shrink it under the
other. The daemon keeps its mapping when the worker ends, and so keeps the counts; the worker keeps the
descriptor, and gives it to the next daemon.

It begins with a header:

| bytes | what |
| --- | --- |
| 8 | the number of records in use |
| 8 | turns of the worker's event loop |
| 8 | seconds that these took, as a double |
| 7 x 8 | turns that took longer than the first bound of ``loop.LAGS`` to the second, and so on |

A record belongs to one service of one bridge:

| bytes | what |
| --- | --- |
| 16 | bridge, padded with NUL |
| 2 | service port; 0 in a record that nobody uses, or whose service is gone |
| 2 | protocol, a place in PROTOCOLS |
| 4 | network |
| 16 | service address, IPv4 as IPv6 maps it |
| 4 x 8 | connections open, and in total; bytes to the endpoint, and to the guest |
| 2 x 8 | datagrams to the endpoint, and to the guest |
| 8 | when a connection failed last, in seconds since the epoch, as a double |
| 160 | why, in UTF-8, padded with NUL |
| 9 x 4, and 4 | connections that a limit or a time-out refused or ended, in the order of CAUSES |
| 11 x 8 | connections that have ended, in the order of OUTCOMES |
| 6 x 8 | dials that failed, in the order of REASONS |
| 13 x 8 | connections that the endpoint accepted, by the time that took: up to CONNECT_BOUNDS, and longer |
| 12 x 8 | connections that have ended, by their duration: as above, with DURATION_BOUNDS |
| 2 x 8 | seconds of all of the former, and of all of the latter, as doubles |

Behind the records are the states of endpoints:

| bytes | what |
| --- | --- |
| 112 | address and port, or path, as text, padded with NUL |
| 8 | 0: nobody uses this, 1: good, 2: failed |
| 8 | since when, in seconds since the epoch, as a double |
| 48 | why, in UTF-8, padded with NUL |

A reader may see a record half written: a count may then be one event behind, and a text cut off.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import struct
import time
from bisect import bisect_left
from collections.abc import Sequence

from tproxy.addresses import packed_address, unpacked_address
from tproxy.datapath.counts import (
    CAUSES,
    CONNECT_BOUNDS,
    DURATION_BOUNDS,
    NUMBERS,
    OF_CONNECTS,
    OF_DURATIONS,
    OF_OUTCOMES,
    OF_REASONS,
    OPEN,
    TALLIES,
    Counts,
    EndpointState,
    LoopTimes,
)
from tproxy.errors import ProtocolError
from tproxy.kernel.loop import LAGS
from tproxy.model import PROTOCOLS, ServiceKey
from tproxy.typed import Any

_NAME_BYTES = 16
_ERROR_BYTES = 160
_KEY = struct.Struct("=HHI16s")
_COUNTS = _NAME_BYTES + _KEY.size
_LAST_ERROR = _COUNTS + 8 * NUMBERS
_LIMITED = _LAST_ERROR + 8 + _ERROR_BYTES
_HEADER_BYTES = 128
_LOOP = struct.Struct(f"=Qd{len(LAGS)}Q")

_RECORD = struct.Struct(f"={_NAME_BYTES}sHHI16s{NUMBERS}Qd{_ERROR_BYTES}s9I4x{TALLIES}Q2d")
_TALLIES = _LIMITED + 8 * 5
_SUMS = _TALLIES + 8 * TALLIES
_CONNECT_SUM, _DURATION_SUM = range(2)

# Services that one worker can count. The memory is taken only as it is used.
MOST_RECORDS = 1 << 16
_STATES = _HEADER_BYTES + MOST_RECORDS * _RECORD.size
# Endpoints whose state one worker can tell.
MOST_STATES = 4096
_STATE = struct.Struct("=112sQd48s")
_GOOD, _FAILED = 1, 2
SIZE = _STATES + MOST_STATES * _STATE.size

_KEY_FIELDS = 5  # of a record

_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


class Record:
    """The counters of one service in this worker.

    ``counts`` is indexed by OPEN to DATAGRAMS_TO_GUEST, ``limited`` by PER_GUEST to NETWORK.

    ``shared`` says whether the memory is a part of that which the daemon reads.
    """

    __slots__ = ("_memory", "_sums", "_tallies", "counts", "limited", "shared")

    def __init__(self, memory: memoryview, *, shared: bool = True) -> None:
        self._memory = memory
        self.shared = shared
        self.counts = memory[_COUNTS : _COUNTS + 8 * NUMBERS].cast("Q")
        self.limited = memory[_LIMITED : _LIMITED + 4 * len(CAUSES)].cast("I")
        self._tallies = memory[_TALLIES:_SUMS].cast("Q")
        self._sums = memory[_SUMS:].cast("d")

    def connected(self, seconds: float) -> None:
        """Count a connection that the endpoint accepted after so many seconds."""
        self._tallies[OF_CONNECTS + bisect_left(CONNECT_BOUNDS, seconds)] += 1
        self._sums[_CONNECT_SUM] += seconds

    def ended(self, outcome: int, seconds: float) -> None:
        """Count a connection that has ended after so many seconds; ``outcome`` is a place in OUTCOMES."""
        self._tallies[OF_OUTCOMES + outcome] += 1
        self._tallies[OF_DURATIONS + bisect_left(DURATION_BOUNDS, seconds)] += 1
        self._sums[_DURATION_SUM] += seconds

    def never_began(self, outcome: int) -> None:
        """Count a connection that had ended when it came, and has no duration."""
        self._tallies[OF_OUTCOMES + outcome] += 1

    def dial_failed(self, reason: int) -> None:
        """Count a dial that failed; ``reason`` is a place in REASONS."""
        self._tallies[OF_REASONS + reason] += 1

    def failed(self, why: str) -> None:
        """Note why a connection failed."""
        text = why.encode(errors="replace")[:_ERROR_BYTES].ljust(_ERROR_BYTES, b"\0")
        struct.pack_into(f"=d{_ERROR_BYTES}s", self._memory, _LAST_ERROR, time.time(), text)

    def read(self) -> Counts:
        """Return the counts as they are now."""
        return _counts(_RECORD.unpack(self._memory)[_KEY_FIELDS:])

    def name(self, bridge: str, key: ServiceKey) -> None:
        """Begin to count for this service, from 0."""
        self._memory[:] = bytes(len(self._memory))
        struct.pack_into(f"={_NAME_BYTES}s", self._memory, 0, bridge.encode())
        known = PROTOCOLS.index(key.protocol), key.network, packed_address(key.address)
        _KEY.pack_into(self._memory, _NAME_BYTES, key.port, *known)

    def disown(self) -> None:
        """Note that the service is gone: only its open connections count from now on."""
        struct.pack_into("=H", self._memory, _NAME_BYTES, 0)


def unshared() -> Record:
    """Return a record that nobody else reads."""
    return Record(memoryview(bytearray(_RECORD.size)), shared=False)


class Counters:
    """The worker's side. ``fd`` is the descriptor of the memory. Raises OSError."""

    def __init__(self) -> None:
        self.fd = os.memfd_create("tproxy-counters", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(self.fd, SIZE)
            self._memory = memoryview(mmap.mmap(self.fd, SIZE))
        except OSError:  # RLIMIT_FSIZE: nobody else reads the counts then
            self._memory = memoryview(bytearray(SIZE))
        fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, _SEALS)
        self._used = 0
        self._free: list[Record] = []
        self._places: dict[str, int] = {}  # of the states of endpoints
        self._free_places = [*reversed(range(MOST_STATES))]
        self._gone: list[Record] = []  # their services are gone, but they may have open connections

    def record(self, bridge: str, key: ServiceKey) -> Record:
        """Return a record for a service, with all counts 0. Beyond MOST_RECORDS it is an ``unshared`` one."""
        self._sweep()
        if self._free:
            record = self._free.pop()
        elif self._used < MOST_RECORDS:
            start = _HEADER_BYTES + self._used * _RECORD.size
            record = Record(self._memory[start : start + _RECORD.size])
            self._used += 1
        else:
            return unshared()
        record.name(bridge, key)
        struct.pack_into("=Q", self._memory, 0, self._used)
        return record

    def give_back(self, record: Record) -> None:
        """Note that a record's service is gone; it is used again when its last connection has ended."""
        record.disown()
        if record.shared:
            self._gone.append(record)

    def note(self, endpoint: str, *, failed: bool, why: str) -> None:
        """Note the state of an endpoint since now. Beyond MOST_STATES nobody hears of it."""
        place = self._places.get(endpoint)
        if place is None:
            if not self._free_places:
                return
            place = self._places[endpoint] = self._free_places.pop()
        state = endpoint.encode(), _FAILED if failed else _GOOD, time.time(), why.encode(errors="replace")
        _STATE.pack_into(self._memory, _STATES + place * _STATE.size, *state)

    def forget(self, endpoint: str) -> None:
        """Forget the state of an endpoint."""
        place = self._places.pop(endpoint, None)
        if place is not None:
            _STATE.pack_into(self._memory, _STATES + place * _STATE.size, b"", 0, 0.0, b"")
            self._free_places.append(place)

    def note_loop(self, times: LoopTimes) -> None:
        """Note how long the turns of the worker's event loop took."""
        _LOOP.pack_into(self._memory, 8, times.turns, times.seconds, *times.slow)

    def _sweep(self) -> None:
        ended = [each for each in self._gone if not each.counts[OPEN]]
        if ended:
            self._gone = [each for each in self._gone if each.counts[OPEN]]
            self._free += ended


def read_only(fd: int) -> int:
    """Return a new descriptor of the same memory, with which nobody can change it. Raises OSError."""
    return os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)


class View:
    """The daemon's side: reads what a worker counts. The descriptor stays the caller's.

    Raises ProtocolError if the memory is not what a worker makes: its other owner could take it away.
    """

    def __init__(self, fd: int) -> None:
        try:
            size = os.fstat(fd).st_size
            if fcntl.fcntl(fd, fcntl.F_GET_SEALS) & _SEALS != _SEALS or size not in (0, SIZE):
                raise ProtocolError("its counters are not sealed")
            self._memory = mmap.mmap(fd, SIZE, prot=mmap.PROT_READ) if size else bytes(_HEADER_BYTES)
        except OSError as error:
            raise ProtocolError(f"its counters cannot be read: {error.strerror}") from None

    def close(self) -> None:
        """Unmap the memory; nothing can be read any more."""
        if isinstance(self._memory, mmap.mmap):
            self._memory.close()

    def read(self) -> tuple[int, dict[tuple[str, ServiceKey], Counts]]:
        """Return the number of open connections, and the counts by bridge and key."""
        (used,) = struct.unpack_from("=Q", self._memory, 0)
        open_ = 0
        found: dict[tuple[str, ServiceKey], Counts] = {}
        end = _HEADER_BYTES + min(used, MOST_RECORDS) * _RECORD.size
        for start in range(_HEADER_BYTES, end, _RECORD.size):
            fields = _RECORD.unpack_from(self._memory, start)
            bridge, port, protocol, network, address, *counts = fields
            open_ += counts[OPEN]
            if port and protocol < len(PROTOCOLS):
                service = ServiceKey(port, PROTOCOLS[protocol], unpacked_address(address), network)
                key = (_text(bridge), service)
                found[key] = found.get(key, Counts()).plus(_counts(counts))
        return open_, found

    def loop(self) -> LoopTimes:
        """Return how long the turns of the worker's event loop took, until the daemon asked last."""
        turns, seconds, *slow = _LOOP.unpack_from(self._memory, 8)
        return LoopTimes(turns, seconds, tuple(slow))

    def states(self) -> dict[str, EndpointState]:
        """Return the states of endpoints that are known, by address and port."""
        if len(self._memory) < SIZE:
            return {}
        found = {}
        for start in range(_STATES, SIZE, _STATE.size):
            if not self._memory[start]:
                continue
            endpoint, state, since, why = _STATE.unpack_from(self._memory, start)
            if state in (_GOOD, _FAILED) and 0 < since < 1 << 40:  # as a worker writes it
                found[_text(endpoint)] = EndpointState(state == _FAILED, since, _text(why))
        return found


def _counts(fields: Sequence[Any]) -> Counts:
    """Return the counts in the fields of a record, without those of the key."""
    when, why, *rest, connecting, lasting = fields[NUMBERS:]
    limited, tallies = tuple(rest[: len(CAUSES)]), tuple(rest[len(CAUSES) :])
    open_, total, to_endpoint, to_guest, *datagrams = fields[:NUMBERS]
    counted = Counts(
        open_, total, to_endpoint, to_guest, _text(why), when, limited, tallies, connecting, lasting
    )
    to_endpoint, to_guest = datagrams
    return counted._replace(datagrams_to_endpoint=to_endpoint, datagrams_to_guest=to_guest)


def _text(padded: bytes) -> str:
    return padded.rstrip(b"\0").decode(errors="replace")
