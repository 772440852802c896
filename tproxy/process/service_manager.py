"""Daemon and watcher as services of a manager such as systemd, which knows them by their process ids.

Without a manager, a new process replaces the old daemon. A manager would take that for the end of the
service. So a daemon that is a service executes the installed code in the same process (execve(2)), and a
child of it finishes the open connections. On ``LEAVE_SIGNAL`` such a child is left as well, and the daemon
itself ends at once: the manager can replace the service without cutting connections, and new guests wait or
are served.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
from contextlib import suppress
from typing import NoReturn

from tproxy.log.lazy import logger
from tproxy.process import run_directory

log = logger(__name__)

# KillSignal= in etc/systemd/tproxy.service. SIGTERM ends connections too, as of any daemon.
LEAVE_SIGNAL = signal.SIGUSR1


def execute_daemon(*arguments: str, keep: int | None = None) -> NoReturn:
    """Turn this process into a daemon that stays when it has nothing to do. Keeps the descriptor ``keep``."""
    os.chdir(run_directory.prepare())
    execute_module("tproxy.daemon", "--stay", "--replace", *arguments, keep=keep)


# Who finds the process may send them. They end a process that does not handle them yet.
_LATER = (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


def execute_module(module: str, *arguments: str, keep: int | None = None) -> NoReturn:
    """Run ``python -m module`` in this process, which keeps its standard descriptors and ``keep``."""
    for fd in map(int, os.listdir("/proc/self/fd")):
        with suppress(OSError):  # the descriptor of the listing, closed by now
            os.set_inheritable(fd, fd <= 2 or fd == keep)  # libnftables' socket would be inherited otherwise
    for number in _LATER:
        signal.signal(number, signal.SIG_IGN)  # stays so until the module handles it (execve(2))
    os.execv(sys.executable, [sys.executable, "-m", module, *arguments])


def report_ready() -> None:
    """Tell the service manager that the ports listen, sd_notify(3): once, and only if it asked for that."""
    address = os.environ.pop("NOTIFY_SOCKET", "")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]  # an abstract address, unix(7)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        try:
            manager.connect(address)
            manager.sendall(b"READY=1")
        except OSError as error:
            log.error("cannot tell the service manager: %s", error.strerror)


def reap_children() -> None:
    """Wait for all children that have ended. Some are children of the code that this process ran before."""
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
