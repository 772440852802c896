"""Makes all processes continue in new log files, after a rotation has moved the old ones away.

Nothing else is done: no configuration file and no map is read, and no process is started or ended. So a
rotation can run at any time.
"""

from __future__ import annotations

import os
import signal
import time
from typing import TYPE_CHECKING

from tproxy.names import DAEMON_TITLE
from tproxy.process import run_directory
from tproxy.process.table import find, send_signal

if TYPE_CHECKING:
    from psutil import Process

# Seconds. A process that is not stopped takes some milliseconds.
REOPEN_TIMEOUT = 5.0
_POLL_INTERVAL = 0.01


def reopen_logs() -> list[str]:
    """Make all processes reopen their logs; return a line for each that still has an old one open.

    Raises KernelError when the host's lock cannot be taken.
    """
    # Under the lock no process starts: one that has opened its log, but has no title yet, would be missed.
    with run_directory.lock():
        writers = order()
    deadline = time.monotonic() + REOPEN_TIMEOUT
    while (late := list(filter(_holds_old_log, writers))) and time.monotonic() < deadline:
        time.sleep(_POLL_INTERVAL)
    return [f"process {each.pid} still writes to the log file that was moved away" for each in late]


def order() -> list[Process]:
    """Tell all processes to reopen their logs, without waiting for it; return them."""
    running = find()
    # The daemon gives relays and workers, which cannot open files, descriptors of the new ones.
    send_signal(signal.SIGHUP, running.daemons)
    writers = [*running.daemons, *(process for _, process in running.relays), *running.auxiliary]
    send_signal(signal.SIGUSR1, running.watchers)  # SIGHUP would make them read the configuration file
    return [*writers, *running.watchers]


def _holds_old_log(process: Process) -> bool:
    """Whether the process has a log file open that no longer has the name of one."""
    folder = f"/proc/{process.pid}/fd"
    try:
        files = [os.path.basename(os.readlink(f"{folder}/{each}")) for each in os.listdir(folder)]
    except OSError:  # it has ended, or has just closed one of them
        return os.path.exists(folder)
    # A file that was deleted ends in " (deleted)".
    return any(each.startswith(DAEMON_TITLE) and not each.endswith(".log") for each in files)
