"""A mirror that runs in a thread of the test, with ports of its own, and a stand-in for the daemon."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable, Collection, Coroutine, Iterator
from contextlib import contextmanager
from ipaddress import ip_network
from typing import Any, TypeVar

from tproxy import proxy_protocol
from tproxy.egress.ledger.entries import Event
from tproxy.egress.mirror.server import Listeners, Mirror
from tproxy.egress.mirror.settings import Settings
from tproxy.egress.model import Artifact, Caller, Verdict
from tproxy.egress.policy.rules import Limits
from tproxy.egress.store.store import Store
from tproxy.lab.hypervisor import PATIENCE

LOOPBACK = (ip_network("127.0.0.0/8"),)
GUEST = Caller("hv1", "vnet1", "7", "br0", "vnet1-0", "02:00:0a:00:00:01", "10.0.0.1")

T = TypeVar("T")


class Running:
    """The mirror with what it did. ``deny`` decides what is denied; everything else is allowed."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.events: list[Event] = []
        self.deny: Callable[[Caller, Artifact], bool] = lambda caller, artifact: False
        self.ledger_error: Exception | None = None
        self.limits = Limits()
        self.loop = asyncio.new_event_loop()
        self.port = self.guests = 0
        self.mirror: Mirror

    @property
    def url(self) -> str:
        """The address for hosts that need no PROXY header."""
        return f"http://127.0.0.1:{self.port}/"

    @property
    def store(self) -> Store:
        return self.mirror.store

    def judge(self, caller: Caller, artifact: Artifact, suites: Collection[str] | None) -> Verdict:
        if self.deny(caller, artifact):
            return Verdict(False, "egress.yaml:7", f"no rule for {caller.network} allows it")
        return Verdict(True, "egress.yaml:3")

    async def record(self, event: Event) -> None:
        if self.ledger_error is not None:
            raise self.ledger_error
        self.events.append(event)

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run this in the mirror's thread, and return its result."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(PATIENCE)

    async def start(self) -> None:
        self.mirror = Mirror(
            self.settings, Store(self.settings.root, self.settings.quota), self.judge, self.record
        )
        self.listeners = Listeners(self.mirror, lambda caller: self.limits)
        self.port = await self.listeners.for_clients("127.0.0.1", 0, lambda address: "hosts")
        self.guests = await self.listeners.for_guests("127.0.0.1", 0)

    async def stop(self) -> None:
        await self.listeners.close()
        await self.mirror.close()
        self.mirror.store.close()


@contextmanager
def running(settings: Settings) -> Iterator[Running]:
    found = Running(settings)
    thread = threading.Thread(target=found.loop.run_forever)
    thread.start()
    try:
        found.run(found.start())
        yield found
        found.run(found.stop())
    finally:
        found.loop.call_soon_threadsafe(found.loop.stop)
        thread.join()
        found.loop.close()


@contextmanager
def relay(port: int, caller: Caller) -> Iterator[int]:
    """Take connections, put a PROXY header before each, and pass them on to ``port``, as the daemon does."""
    header = proxy_protocol.encode((caller.address, 40000), ("169.254.16.9", 80), caller.values)
    listener = socket.create_server(("127.0.0.1", 0))
    threads: list[threading.Thread] = []
    sockets: list[socket.socket] = []

    def copy(source: socket.socket, target: socket.socket) -> None:
        try:
            while data := source.recv(1 << 16):
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)
        except OSError:
            pass

    def accept() -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            server = socket.create_connection(("127.0.0.1", port))
            server.sendall(header)
            sockets.extend((client, server))
            for ends in ((client, server), (server, client)):
                thread = threading.Thread(target=copy, args=ends, daemon=True)
                thread.start()
                threads.append(thread)

    acceptor = threading.Thread(target=accept, daemon=True)
    acceptor.start()
    try:
        yield int(listener.getsockname()[1])
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        acceptor.join()
        for each in sockets:
            each.close()
