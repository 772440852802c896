"""Has a running daemon make its control socket again, when somebody removed the run directory.

The daemon is found by its process (``process.table``): its title, and its working directory, whose name the
kernel keeps. A signal tells it to look after its directory.
"""

from __future__ import annotations

import signal
import socket
import time

from tproxy.process import run_directory
from tproxy.process.table import find, send_signal

# Seconds. A daemon that does not come back in this time hangs.
RETURN_TIMEOUT = 5.0
_POLL_INTERVAL = 0.01

# The daemon also reopens its logs then. A daemon of an older version does nothing else, and is replaced.
LOOK_SIGNAL = signal.SIGHUP


def bring_back(name: str) -> bool:
    """Return whether somebody listens at the socket ``name`` in the run directory, after asking for it.

    Returns at once when no daemon runs.
    """
    path = f"{run_directory.directory()}/{name}"
    daemons = find().daemons
    send_signal(LOOK_SIGNAL, daemons)
    deadline = time.monotonic() + RETURN_TIMEOUT
    while any(each.is_running() for each in daemons) and time.monotonic() < deadline:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as sock:
            if sock.connect_ex(path) == 0:
                return True
        time.sleep(_POLL_INTERVAL)
    return False
