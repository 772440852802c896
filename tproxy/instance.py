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
from tproxy.errors import KernelError

ROOT = Path("/run/tproxy")


def directory() -> Path:
    """The directory of this network namespace's tproxy; it need not exist."""
    return ROOT / str(netns.current().inode)


def prepare() -> Path:
    """The directory, made if missing, closed to everybody but root."""
    path = directory()
    _make(ROOT)
    _make(path)
    return path


@contextmanager
def lock() -> Iterator[None]:
    """The host's one lock, under which links, namespaces, maps and the daemon's life change.

    It goes with its holder, however that ends (flock(2)), so there is no stale lock.
    """
    _make(ROOT)
    path = ROOT / "lock"
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise KernelError(f"cannot open {path}: {error.strerror}") from None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _make(path: Path) -> None:
    try:
        path.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise KernelError(f"cannot make directory {path}: {error.strerror}") from None
