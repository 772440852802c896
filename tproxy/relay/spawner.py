"""Makes relays by forking a small, warm process, so that a relay costs a megabyte and a half.

The daemon forks its spawner before it imports or opens anything large. A relay forked from here
shares the interpreter and all modules with its siblings, but for the pages that it writes to; and in
Python using an object writes to it. So what is loaded before counts twice: nothing that a relay can do
without (``tests/unit/test_imports.py``). The spawner ends when the daemon's end of the socket closes;
when it is killed, the next relay that is wanted brings another one.
"""

import gc
import os
import signal
import socket
import sys
from contextlib import suppress

from tproxy.log.lazy import logger
from tproxy.process.title import set_title
from tproxy.relay import relay
from tproxy.relay.channel import pair
from tproxy.typed import NamedTuple

log = logger(__name__)  # the daemon's

# Not "one_tproxy...": it is neither a relay nor the daemon, and status does not list it.
TITLE = "tproxy-spawner"


class Order(NamedTuple):
    """A relay to be made; beside it travels the relay's end of its channel to the daemon."""

    bridge: str
    replace: bool
    log_level: int

    def encode(self) -> bytes:
        return f"{self.bridge} {self.replace:d} {self.log_level}".encode()  # no name has a space

    @classmethod
    def decode(cls, data: bytes) -> "Order":
        bridge, replace, log_level = data.decode().split(" ")
        return cls(bridge, replace == "1", int(log_level))


class Spawner:
    """The daemon's handle on its spawner."""

    def __init__(self) -> None:
        self._orders, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._pid = os.fork()
            if self._pid == 0:
                status = 1
                try:
                    # Nothing of the launching process is carried into relays.
                    for fd in map(int, os.listdir("/proc/self/fd")):
                        if fd > 2 and fd != theirs.fileno():
                            with suppress(OSError):  # the listing's own
                                os.close(fd)
                    _obey(theirs)
                    status = 0
                finally:
                    os._exit(status)

    def spawn(self, order: Order) -> socket.socket:
        """Start a relay; returns the channel on which it says Hello, Adopted or Failed."""
        ours, theirs = pair()
        with theirs:
            try:
                self._send(order, theirs)
            except (BrokenPipeError, ConnectionResetError):
                log.warning("the spawner is gone; starting another")
                self._start_anew()
                self._send(order, theirs)
        ours.setblocking(False)
        return ours

    def _send(self, order: Order, channel: socket.socket) -> None:
        socket.send_fds(self._orders, [order.encode()], [channel.fileno()])

    def _start_anew(self) -> None:
        """Have another spawner. Not by a fork: the daemon is large by now, and full of connections."""
        import subprocess

        self._orders.close()
        with suppress(ChildProcessError):  # a service's are waited for already
            os.waitpid(self._pid, 0)
        self._orders, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            process = subprocess.Popen(
                [sys.executable, "-m", "tproxy.relay.spawner", str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
            )
        self._pid = process.pid

    def close(self) -> None:
        """Let the spawner end; its relays live on."""
        self._orders.close()


def _obey(orders: socket.socket) -> None:
    set_title(TITLE)
    # Its end is the end of the daemon; a terminal's Ctrl-C or a stop of the service is not.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel reaps the relays, sigaction(2)
    # Collected objects would be written to by the next collection, and their pages copied.
    gc.collect()
    gc.freeze()
    while True:
        payload, fds, _, _ = socket.recv_fds(orders, 4096, 1)
        if not payload:
            return
        order = Order.decode(payload)
        if os.fork() == 0:
            orders.close()
            _become_relay(order, socket.socket(fileno=fds[0]))
        os.close(fds[0])


def _become_relay(order: Order, channel: socket.socket) -> None:
    """Never returns: the child of a fork must not unwind into its parent's code."""
    status = 1
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        relay.run(order.bridge, channel, replace=order.replace, log_level=order.log_level)
        status = 0
    except Exception:
        import traceback

        relay.log.error("relay ends on an unexpected error\n%s", traceback.format_exc().rstrip())
    finally:
        with suppress(OSError):
            channel.close()
        os._exit(status)


if __name__ == "__main__":  # one that takes the place of another, see Spawner
    _obey(socket.socket(fileno=int(sys.argv[1])))
