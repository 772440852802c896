"""Has the kernel tell which rules of nftables drop a guest's frames, on the bridge and in its namespace.

``marking`` has the rules. The table is gone as soon as this object, or the process, is. Kernels before 5.12
do not know such tables; there nothing is traced, and ``missing`` says why.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Collection, Iterator
from contextlib import suppress

from tproxy.bridge import nftables
from tproxy.errors import KernelError, NftError
from tproxy.kernel import netns
from tproxy.names import TABLE
from tproxy.trace import marking
from tproxy.trace.marking import Followed
from tproxy.trace.reasons import Rule
from tproxy.trace.rule_events import Drop, Reader

_NETLINK_NETFILTER = 12  # <linux/netlink.h>; Python does not name it
_SOL_NETLINK, _ADD_MEMBERSHIP, _TRACES = 270, 1, 9  # NFNLGRP_NFTRACE, <linux/netfilter/nfnetlink.h>
_BUFFER = 1 << 20
_RECEIVE = 1 << 16
_AT_ONCE = 256


class RuleTracing:
    """The tracing in one namespace: the host's, or with ``namespace`` that of a bridge."""

    def __init__(self, namespace: str = "") -> None:
        self._namespace = namespace
        self._table = f"{TABLE}_trace_{os.getpid()}"
        self._library: nftables.Inner | None = None
        self._socket: socket.socket | None = None
        self._reader = Reader()
        self._families: tuple[str, ...] = ("inet", "ip") if namespace else ("bridge",)
        self._rules: dict[tuple[str, str, str], list[Rule]] = {}
        self.missing = ""

    def follow(self, ours: Collection[str], followed: Followed) -> None:
        """Trace these guests from now on, in place of those before; ``missing`` says why that cannot be."""
        try:
            if self._socket is None:
                self._open()
            self._load(ours, followed)
        except (NftError, KernelError, OSError) as error:
            self.close()
            self.missing = str(error)

    def fileno(self) -> int:
        """The descriptor to poll; -1 where nothing is traced."""
        return self._socket.fileno() if self._socket is not None else -1

    def read(self) -> Iterator[Drop]:
        """The frames that were dropped since the last time."""
        for _ in range(_AT_ONCE):
            if self._socket is None:
                return
            try:
                yield from self._reader.read(self._socket.recv(_RECEIVE))
            except BlockingIOError:
                return
            except OSError:  # ENOBUFS: the kernel had more to tell than fits
                continue

    def rules(self, drop: Drop) -> list[Rule]:
        """The rules of the chain that dropped a frame, as they are now."""
        place = drop.family, drop.table, drop.chain
        found = self._rules.get(place)
        if found is None or not any(each.handle == drop.handle for each in found):
            found = self._rules[place] = []
            with suppress(NftError):
                if self._library is not None:
                    listed = self._library.rules(*place)
                    found += [Rule(each["handle"], each.get("comment", "")) for each in listed]
        return found

    def close(self) -> None:
        """Trace nothing any more; the kernel deletes the table."""
        self._library = None
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _open(self) -> None:
        if not self._namespace:
            self._library, self._socket = nftables.Inner(), _listen()
            return
        with netns.inside(self._namespace):
            self._library, self._socket = nftables.Inner(), _listen()

    def _load(self, ours: Collection[str], followed: Followed) -> None:
        assert self._library is not None
        for family in self._families:
            if family == "bridge":
                text = marking.on_bridge(self._table, ours, followed)
            else:
                text = marking.in_namespace(family, self._table, followed)
            try:
                self._library.transaction([text])
            except nftables.Unsupported:
                if family == self._families[-1]:
                    raise
            else:
                self._families = (family,)
                return


def _listen() -> socket.socket:
    sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, _NETLINK_NETFILTER)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
        sock.bind((0, 0))  # what has no address of its own is told nothing
        sock.setsockopt(_SOL_NETLINK, _ADD_MEMBERSHIP, _TRACES)
    except OSError:
        sock.close()
        raise
    return sock
