"""Which tproxy is ours: the one of this network namespace, with a directory and a lock.

Everything that belongs together works in /run/tproxy/<inode of the network namespace>: the control
socket is there, and it is the working directory of daemon and relays, by which their processes are
told from processes that merely call themselves so. Two hosts that share a file system and a
process table (a lab, a container) stay apart.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tproxy import netns

ROOT = Path("/run/tproxy")


def directory() -> Path:
    """The directory of this network namespace's tproxy; it need not exist."""
    return ROOT / str(netns.current().inode)


def prepare() -> Path:
    """The directory, made if missing, closed to everybody but root."""
    path = directory()
    ROOT.mkdir(mode=0o700, exist_ok=True)
    path.mkdir(mode=0o700, exist_ok=True)
    return path


@contextmanager
def lock() -> Iterator[None]:
    """The host's one lock, under which links, namespaces, maps and the daemon's life change.

    It goes with its holder, however that ends (flock(2)), so there is no stale lock.
    """
    ROOT.mkdir(mode=0o700, exist_ok=True)
    fd = os.open(ROOT / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)
