"""The spawner: a small process that starts relays by forking itself, so that a relay costs 1.5 megabytes.

The daemon forks its spawner before it imports or opens anything large. A relay that is forked from the
spawner shares the interpreter and all modules with the other relays, except for the pages that it writes to;
and in Python, to use an object is to write to it. So the spawner loads nothing that a relay can do without
(tests/unit/test_imports.py). It ends when the daemon's end of their socket is closed. When it was killed, the
daemon starts another one as soon as a relay is wanted: ``python -m tproxy.relay.spawner FD``. That is a
stable name: a running daemon of an older version starts the installed code by it, so it must stay, with its
one argument, when modules are moved.
"""

import gc
import os
import signal
import socket
import sys
from contextlib import ExitStack, suppress

from tproxy.log.lazy import logger
from tproxy.process.title import set_title
from tproxy.relay import relay
from tproxy.relay.channel import pair
from tproxy.typed import NamedTuple

log = logger(__name__)  # the daemon's

# The process title. Not "one_tproxy...": the spawner is neither a relay nor the daemon, and status does not
# list it.
TITLE = "tproxy-spawner"


class Order(NamedTuple):
    """A relay to be started. Beside the order comes the relay's end of its channel to the daemon."""

    bridge: str
    replace: bool
    log_level: int

    def encode(self) -> bytes:
        return (
            f"{self.bridge} {self.replace:d} {self.log_level}".encode()
        )  # names of bridges have no spaces (model)

    @classmethod
    def decode(cls, data: bytes) -> "Order":
        bridge, replace, log_level = data.decode().split(" ")
        return cls(bridge, replace == "1", int(log_level))


class Spawner:
    """The daemon's handle on its spawner, which is process ``pid``."""

    def __init__(self) -> None:
        self._orders, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self.pid = os.fork()
            if self.pid == 0:
                status = 1
                try:
                    # Relays must not keep anything open that the process before had open.
                    for fd in map(int, os.listdir("/proc/self/fd")):
                        if fd > 2 and fd != theirs.fileno():
                            with suppress(OSError):  # the listing's own
                                os.close(fd)
                    _obey(theirs)
                    status = 0
                finally:
                    os._exit(status)

    def spawn(self, order: Order) -> socket.socket:
        """Start a relay; return the channel on which it says Hello, Adopted or Failed. Raises OSError."""
        ours, theirs = pair()
        with theirs, ExitStack() as owned:
            owned.enter_context(ours)
            try:
                self._send(order, theirs)
            except (BrokenPipeError, ConnectionResetError):
                log.warning("the spawner is gone; starting another")
                self._start_anew()
                self._send(order, theirs)
            ours.setblocking(False)
            owned.pop_all()
        return ours

    def _send(self, order: Order, channel: socket.socket) -> None:
        socket.send_fds(self._orders, [order.encode()], [channel.fileno()])

    def _start_anew(self) -> None:
        """Start another spawner. Not by a fork: the daemon is large by now, and has connections open."""
        import subprocess

        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._orders.close()  # only now: if the line above fails, the next attempt still finds a broken pipe
        self._orders = ours
        with suppress(ChildProcessError):  # a daemon that is a service has waited for it already
            os.waitpid(self.pid, 0)
        with theirs:
            process = subprocess.Popen(
                [sys.executable, "-m", "tproxy.relay.spawner", str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
            )
        self.pid = process.pid

    def close(self) -> None:
        """Let the spawner end; its relays stay."""
        self._orders.close()


def _obey(orders: socket.socket) -> None:
    set_title(TITLE)
    # The spawner ends with the daemon, not by Ctrl-C in a terminal.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel reaps the relays, sigaction(2)
    # The garbage collector writes to all objects that it looks at; frozen ones stay in shared pages.
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
    """Be a relay, and never return: a forked child must not go on in its parent's code."""
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


if __name__ == "__main__":  # started in place of a spawner that was killed, see Spawner._start_anew
    _obey(socket.socket(fileno=int(sys.argv[1])))
