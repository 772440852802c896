"""Daemon and watcher as services of a manager such as systemd, which knows them by their process ids.

A daemon that commands start is replaced by a new process. Here that would be the end of the service,
so it is the other way round: the process goes on with the installed code (execve(2)), and a child of it
finishes what is open. The same child lets the manager itself replace the service, by ``LEAVE_SIGNAL``:
the process ends at once, connections do not, and guests that come meanwhile wait or are served.
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

# KillSignal= in etc/systemd/tproxy.service. SIGTERM is the end of everything, as for any daemon.
LEAVE_SIGNAL = signal.SIGUSR1


def execute(*arguments: str, keep: int | None = None) -> NoReturn:
    """Turn this process into a daemon that stays."""
    os.chdir(run_directory.prepare())
    replace("tproxy.daemon", "--stay", "--replace", *arguments, keep=keep)


def replace(module: str, *arguments: str, keep: int | None = None) -> NoReturn:
    """Turn this process into a new one of the installed code, which has no descriptor but ``keep``."""
    for fd in map(int, os.listdir("/proc/self/fd")):
        with suppress(OSError):  # the listing's own
            os.set_inheritable(fd, fd <= 2 or fd == keep)  # not by itself: libnftables' socket
    os.execv(sys.executable, [sys.executable, "-m", module, *arguments])


def ready() -> None:
    """Tell the manager, once and if it asked for that, that ports listen: sd_notify(3)."""
    address = os.environ.pop("NOTIFY_SOCKET", "")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]  # abstract, unix(7)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        try:
            manager.connect(address)
            manager.sendall(b"READY=1")
        except OSError as error:
            log.error("cannot tell the service manager: %s", error.strerror)


def reap() -> None:
    """Bury children that have ended: some are of the code that this process ran before."""
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
