"""The spawner: a small process that starts relays and workers by forking itself, so that they cost little
memory.

The daemon forks its spawner before it imports or opens anything large. A process that is forked from the
spawner shares the interpreter and all modules with the others, except for the pages that it writes to; and in
Python, to use an object is to write to it. So the spawner loads nothing that a relay can do without
(tests/unit/test_imports.py). When it was killed, the daemon starts another one at once: ``python -m
tproxy.daemon.spawner FD``.

It ends when the daemon says so. When their socket is closed without a word, the daemon has crashed or was
killed, and the spawner is what is left to start another one (``revival``): at once, and later and later where
daemons keep dying young. It has nothing to ``keep`` where a service manager restarts the daemon.

A new process tells the daemon its pidfd (``wire.Born``) before it does anything else. It is our own code
until then, and has not heard of anybody. So the daemon needs to believe no process that speaks to it later.
"""

import gc
import os
import signal
import socket
import sys
import time
from contextlib import ExitStack, suppress

from tproxy.daemon import revival
from tproxy.kernel import privileges
from tproxy.kernel.loop import Loop
from tproxy.log import journal
from tproxy.log.lazy import logger
from tproxy.process import run_directory
from tproxy.process.title import set_title
from tproxy.relay import relay, wire
from tproxy.relay.channel import pair, send
from tproxy.typed import NamedTuple

log = logger(__name__)  # the daemon's

# The process title. Not "one_tproxy...": the spawner is neither a relay nor the daemon, and status does not
# list it.
TITLE = "tproxy-spawner"

# How a message begins that is no order; what follows is for ``revival``. Names of bridges have no such byte.
KEEP = b"\0"

# Bytes. A message of the daemon is shorter: an order, or settings with the path of a file.
MOST = 16 * 1024

# Seconds until another spawner is started in the place of one that died as young as this.
RETRY = 1.0


class Order(NamedTuple):
    """A process to be started: the relay of a bridge, or a worker if ``bridge`` is empty.

    Beside the order come its end of a channel to the daemon, the file to log to, and, for a worker, the
    socket at which a later daemon finds it.
    """

    bridge: str
    replace: bool
    log_level: int

    def encode(self) -> bytes:
        # Names of bridges have no spaces (model).
        return f"{self.bridge} {self.replace:d} {self.log_level}".encode()

    @classmethod
    def decode(cls, data: bytes) -> "Order":
        bridge, replace, log_level = data.decode().split(" ")
        return cls(bridge, replace == "1", int(log_level))


class Spawner:
    """The daemon's handle on its spawner, which is process ``pid``."""

    def __init__(self) -> None:
        self._loop: Loop | None = None
        self._since = time.monotonic()
        self._kept = b""
        self._orders, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self.pid = os.fork()
            if self.pid == 0:
                status = 1
                try:
                    # Its processes must not keep anything open that the process before had open.
                    for fd in map(int, os.listdir("/proc/self/fd")):
                        if fd > 2 and fd != theirs.fileno():
                            with suppress(OSError):  # the listing's own
                                os.close(fd)
                    # Not a terminal, into whose input they could write.
                    null = os.open(os.devnull, os.O_RDWR)
                    for fd in (0, 1, 2):
                        os.dup2(null, fd)
                    if null > 2:
                        os.close(null)
                    _obey(theirs)
                    status = 0
                finally:
                    os._exit(status)

    def spawn(self, order: Order, *fds: int) -> socket.socket:
        """Start a process; return the channel on which it says Born, and then what it has to say.

        ``fds``, which stay the caller's, are what the order names besides the channel. Raises OSError.
        """
        ours, theirs = pair()
        with theirs, ExitStack() as owned:
            owned.enter_context(ours)
            try:
                self._send(order, theirs.fileno(), *fds)
            except (BrokenPipeError, ConnectionResetError):
                self._start_anew()
                self._send(order, theirs.fileno(), *fds)
            ours.setblocking(False)
            owned.pop_all()
        return ours

    def attend(self, loop: Loop) -> None:
        """Start another spawner as soon as this one has ended."""
        self._loop = loop
        loop.add(self._orders.fileno(), 0, self)  # epoll tells a hangup in any case

    def keep(self, settings: bytes) -> None:
        """Have the spawner start a daemon with these settings when this process ends without ``close``."""
        if settings != self._kept:
            self._kept = settings
            self._tell_kept()

    def _tell_kept(self) -> None:
        with suppress(OSError):  # it is gone, and the next one is told
            self._orders.send(KEEP + self._kept)

    def on_event(self, fd: int, mask: int) -> None:
        assert self._loop is not None
        self._loop.remove(fd)
        # At once, unless it died young: one that cannot start must not be started without end.
        delay = 0.0 if time.monotonic() - self._since >= RETRY else RETRY
        self._loop.call_later(delay, lambda: self._replace(fd))

    def _replace(self, fd: int) -> None:
        """Start another spawner, unless that has been done, or this process ends."""
        if self._orders.fileno() != fd:
            return
        try:
            self._start_anew()
        except OSError as error:
            log.error("no spawner can be started: %s", error.strerror)

    def _send(self, order: Order, *fds: int) -> None:
        socket.send_fds(self._orders, [order.encode()], fds)

    def _start_anew(self) -> None:
        """Start another spawner. Not by a fork: the daemon is large by now."""
        import subprocess

        log.warning("the spawner is gone; starting another")
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        # Only now: if the line above fails, the next attempt still finds a broken pipe.
        if self._loop is not None:
            self._loop.close_later(self._orders)
            self._loop.add(ours.fileno(), 0, self)
        else:
            self._orders.close()
        self._orders = ours
        self._since = time.monotonic()
        with suppress(ChildProcessError):  # a daemon that is a service has waited for it already
            os.waitpid(self.pid, 0)
        with theirs:
            process = subprocess.Popen(
                [sys.executable, "-m", "tproxy.daemon.spawner", str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
            )
        self.pid = process.pid
        self._tell_kept()

    def close(self, *, ended: bool) -> None:
        """Let the spawner end; its relays and workers stay.

        ``ended``: no daemon is to be started. Otherwise the spawner starts one as after a crash, unless
        another one runs by the time that it can take the host's lock.
        """
        if ended:
            self.keep(b"")
        if self._loop is not None and self._orders.fileno() >= 0:
            self._loop.close_later(self._orders)
        self._orders.close()


def _obey(orders: socket.socket) -> None:
    set_title(TITLE)
    # The spawner ends with the daemon, not by Ctrl-C in a terminal.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # logs are reopened by the daemon
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel reaps its processes, sigaction(2)
    time.localtime()  # reads the time zone, whose file its processes could not open
    relay.log.journal = journal.connect()
    # The garbage collector writes to all objects that it looks at; frozen ones stay in shared pages.
    gc.collect()
    gc.freeze()
    kept, born = b"", time.monotonic()
    while True:
        payload, fds, _, _ = socket.recv_fds(orders, MOST, 3)
        if not payload:
            break
        if payload[:1] == KEEP:
            kept = payload[1:]
            continue
        try:
            _start(Order.decode(payload), fds)
        finally:
            for fd in fds:
                os.close(fd)

    orders.close()
    if kept:
        revival.revive(kept.decode(), time.monotonic() - born)


def _start(order: Order, fds: list[int]) -> None:
    """Start the process that was ordered.

    What is done before the fork is not done by each process again, in memory of its own.
    """
    relay.log.use(os.dup(fds[1]))
    relay.log.use_style(order.log_level)
    try:
        empty = _empty_directory()
        channel, *meeting = (socket.socket(fileno=os.dup(fd)) for fd in (fds[0], *fds[2:]))
        with channel, ExitStack() as owned:
            for each in meeting:
                owned.enter_context(each)
            if os.fork() == 0:
                _become(order, channel, meeting, empty)
    except Exception as error:
        _note(error)  # the daemon sees that the channel has ended, and tries again later
    finally:
        relay.log.close()


def _become(order: Order, channel: socket.socket, meeting: list[socket.socket], empty: str) -> None:
    """Be the process that was ordered, and never return: a child must not go on in its parent's code."""
    status = 1
    try:
        # A channel that is closed later must not stay open, and polled, in a copy.
        own = [each.fileno() for each in (channel, *meeting)]
        if relay.log.journal is not None:
            own.append(relay.log.journal.fileno())
        privileges.keep_only(0, 1, 2, *own, relay.log.fileno())
        pidfd = os.pidfd_open(os.getpid())
        try:
            send(channel, wire.Born(os.getpid()), [pidfd])
        except (BrokenPipeError, ConnectionResetError):
            # The daemon has ended. Guests may wait in the channels that a worker was told of before.
            if order.bridge:
                raise
        os.close(pidfd)
        if order.bridge:
            relay.run(order.bridge, channel, empty, replace=order.replace)
        else:
            from tproxy.worker import worker

            worker.run(channel, meeting[0], empty, relay.log)
        status = 0
    except Exception as error:
        _note(error)
    finally:
        os._exit(status)


def _note(error: Exception) -> None:
    relay.log.error("unexpected %s: %s\n%s", type(error).__name__, error, _places(error))


def _empty_directory() -> str:
    """Return the path of the empty directory, which is made if need be, with the run directory above it."""
    path = f"{run_directory.prepare()}/{run_directory.EMPTY}"
    with suppress(FileExistsError):
        os.mkdir(path, 0o555)
    return path


def _places(error: BaseException) -> str:
    """Return where the error came from. ``traceback`` is large, and cannot be imported any more."""
    lines = []
    trace = error.__traceback__
    while trace is not None:
        lines.append(f"  {trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}")
        trace = trace.tb_next
    return "\n".join(lines)


if __name__ == "__main__":  # started in place of a spawner that was killed, see Spawner._start_anew
    _obey(socket.socket(fileno=int(sys.argv[1])))
