"""A connection to systemd's journal, for services of systemd.

systemd sets JOURNAL_STREAM for a service whose output goes to the journal. Processes that start from such a
service inherit it. So a daemon that is no service takes it out of its environment (``daemon.__main__``).

The socket stays connected when the journal's process is restarted: systemd keeps it. It is connected before a
relay or worker gives up its rights, and needs no right to be written to.
"""

from __future__ import annotations

import os
import socket
from contextlib import suppress

SOCKET = "/run/systemd/journal/socket"

# In the environment; see above.
STREAM = "JOURNAL_STREAM"


def connect() -> socket.socket | None:
    """Return a socket for entries; None where this process is no part of a service, or has no journal."""
    if STREAM not in os.environ:
        return None
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
    try:
        sock.connect(SOCKET)
    except OSError:
        sock.close()
        return None
    return sock


def send(sock: socket.SocketType, entry: bytes) -> None:
    """Send an entry; it is lost where the journal does not keep up: nobody waits for it."""
    with suppress(OSError):
        sock.send(entry, socket.MSG_DONTWAIT)
