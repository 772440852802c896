"""Starts the daemon again after it has crashed. This is what a spawner does last.

A process of its own does it (``operations.revival``), as the command `tproxy start` does: under the host's
lock, so that twelve hooks that come meanwhile lead to one daemon. It is killed when the spawner is, which
`tproxy stop` ends. A daemon that dies young again is started later and later; the environment tells the
spawner of the next daemon how often that has happened.
"""

import os
import signal
import sys
import time

from tproxy.kernel import children

# The module that starts the daemon, with the settings of the one before, and a descriptor to write to when
# nothing more is to be done. A stable name, as this process may be of an older version.
MODULE = "tproxy.operations.revival"

# Counts the daemons in a row that have died young.
COUNT = "TPROXY_DAEMONS_LOST"

# Seconds. A daemon that lived this long has not failed at starting; the next one is started at once.
SETTLED = 60.0

# Seconds until the next attempt; doubled with each failure.
RETRY_FIRST, RETRY_MOST = 0.5, 60.0


def delay_after(lost: int) -> float:
    """Return how many seconds to wait when so many daemons in a row have died young."""
    return min(RETRY_FIRST * 2.0 ** (lost - 1), RETRY_MOST) if lost else 0.0


def revive(settings: str, lived: float) -> None:
    """Return when a daemon runs again, or none is wanted. ``lived`` is for how long the last one did."""
    lost = _lost_before() if lived < SETTLED else 0
    while True:
        time.sleep(delay_after(lost))
        lost += 1
        if _start(settings, lost):
            return


def _lost_before() -> int:
    known = os.environ.get(COUNT, "")
    return min(int(known), 100) if known.isdecimal() else 0


def _start(settings: str, lost: int) -> bool:
    """Run the module; return whether nothing more is to be done."""
    reader, writer = os.pipe()
    parent = os.getpid()
    if os.fork() == 0:
        try:
            children.end_with(parent)
            # The spawner ignores them, and has nothing to do with a terminal.
            for number in (signal.SIGINT, signal.SIGHUP, signal.SIGCHLD):
                signal.signal(number, signal.SIG_DFL)
            os.set_inheritable(writer, True)
            os.chdir("/")  # the run directory may be gone
            argv = [sys.executable, "-m", MODULE, settings, str(writer)]
            os.execve(sys.executable, argv, {**os.environ, COUNT: str(lost)})
        finally:
            os._exit(1)
    os.close(writer)
    done = os.read(reader, 1) == b"!"
    os.close(reader)
    return done
