"""Stand-ins for workers: the test plays their part, over the channels that real ones have."""

from __future__ import annotations

import os
import signal
import socket
from contextlib import suppress

from tproxy.daemon.spawner import Order
from tproxy.datapath.counters import Counters
from tproxy.relay import wire
from tproxy.relay.channel import pair, receive, send, send_bytes
from tproxy.worker import orders


def paused_process() -> int:
    """Return the pid of a process that waits to be killed."""
    pid = os.fork()
    if pid == 0:
        try:
            os.closerange(3, 1 << 16)  # copies of channels, whose ends nobody would notice
            while True:
                signal.pause()
        finally:
            os._exit(1)
    return pid


def end(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    with suppress(ChildProcessError):
        os.waitpid(pid, 0)


class StandIn:
    """One worker, at the far end of its channel to the daemon."""

    def __init__(self, channel: socket.socket, meeting: socket.socket | None = None) -> None:
        self.channel = channel
        self.channel.setblocking(False)
        self.meeting = meeting
        self.counters = Counters()
        self.pid = 0
        self.heard: list[orders.Message] = []
        self.data: dict[str, socket.socket] = {}  # the last data channel of each bridge
        self.descriptors: list[int] = []  # how many came with each message

    def born(self) -> None:
        self.pid = paused_process()
        pidfd = os.pidfd_open(self.pid)
        send(self.channel, wire.Born(self.pid), [pidfd])
        os.close(pidfd)

    def ready(self, version: int = orders.VERSION, *, draining: bool = False) -> None:
        self.say(orders.Ready(version, draining), self.counters.fd)

    def start(self) -> None:
        self.born()
        self.ready()

    def say(self, message: orders.Message, *fds: int) -> None:
        send_bytes(self.channel, orders.encode(message), fds)

    def hear(self) -> list[orders.Message]:
        """Hear all that the daemon has said, and return what is new."""
        new: list[orders.Message] = []
        with suppress(BlockingIOError):
            while (delivery := receive(self.channel, orders.decode)) is not None:
                with delivery:
                    self.descriptors.append(len(delivery.fds))
                    if isinstance(delivery.message, orders.Bridge):
                        channel = delivery.take_socket()
                        channel.setblocking(False)
                        former = self.data.pop(delivery.message.bridge, channel)
                        if former is not channel:
                            former.close()
                        self.data[delivery.message.bridge] = channel
                    new.append(delivery.message)  # type: ignore[arg-type]
        self.heard += new
        return new

    def answer(self) -> None:
        """Hear all, and answer the last Sync."""
        numbers = [each.number for each in self.hear() if isinstance(each, orders.Sync)]
        if numbers:
            self.say(orders.Synced(numbers[-1]))

    def passed(self, bridge: str) -> list[int]:
        """Receive what relays have passed on; return the service ports."""
        ports = []
        with suppress(BlockingIOError):
            while (delivery := receive(self.data[bridge])) is not None:
                with delivery:
                    assert isinstance(delivery.message, wire.Accepted)
                    ports.append(delivery.message.key.port)
        return ports

    def die(self) -> None:
        """End, as a process does whose descriptors the kernel closes."""
        self.channel.close()
        for each in self.data.values():
            each.close()
        self.data.clear()
        if self.meeting is not None:
            self.meeting.close()
            self.meeting = None
        if self.counters.fd >= 0:
            os.close(self.counters.fd)
            self.counters.fd = -1
        if self.pid:
            end(self.pid)


class StandInSpawner:
    """Starts stand-ins in place of processes."""

    def __init__(self) -> None:
        self.workers: list[StandIn] = []
        self.failing = False

    def spawn(self, order: Order, *fds: int) -> socket.socket:
        if self.failing:
            raise OSError(11, "Resource temporarily unavailable")
        assert order.bridge == ""
        _log, meeting = fds
        near, far = pair()
        near.setblocking(False)
        self.workers.append(StandIn(far, socket.socket(fileno=os.dup(meeting))))
        return near

    def close(self) -> None:
        for each in self.workers:
            each.die()
