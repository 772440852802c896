"""Which tproxy is ours: the one of this network namespace, with a directory and a lock.

Everything that belongs together works in /run/tproxy/<inode of the network namespace>: the control
socket is there, and it is the working directory of daemon and relays, by which their processes are
told from processes that merely call themselves so. Two hosts that share a file system and a
process table (a lab, a container) stay apart.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from tproxy.errors import KernelError
from tproxy.kernel import netns

ROOT = "/run/tproxy"


def directory() -> str:
    """The directory of this network namespace's tproxy; it need not exist."""
    return f"{ROOT}/{netns.current().inode}"


def prepare() -> str:
    """The directory, made if missing, closed to everybody but root."""
    path = directory()
    _make(ROOT)
    _make(path)
    return path


def note_use(bridge: str) -> None:
    """Remember that a hook wanted the bridge just now: its guest may be about to start."""
    with suppress(OSError, KernelError):  # a hook does its work without
        folder = f"{prepare()}/used"
        _make(folder)
        path = f"{folder}/{bridge}"
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))
        os.utime(path, (_now(), _now()))


def last_use(bridge: str) -> float | None:
    """How long ago a hook wanted the bridge last, in seconds; None where none did."""
    try:
        return _now() - os.stat(f"{directory()}/used/{bridge}").st_mtime
    except FileNotFoundError:
        return None


def _now() -> float:
    """Seconds since boot, as long as /run lives: no step of the clock makes a bridge look unused."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def used() -> list[str]:
    """The bridges that hooks brought up and nobody took down, as far as that was noted."""
    try:
        return os.listdir(f"{directory()}/used")
    except FileNotFoundError:
        return []


def forget_use(bridge: str) -> None:
    with suppress(FileNotFoundError):
        os.unlink(f"{directory()}/used/{bridge}")


def claim(name: str) -> int | None:
    """Take a place that one process of the instance can have; None when it is taken.

    It goes with the returned descriptor, and so with its holder.
    """
    fd = os.open(f"{prepare()}/{name}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        return None
    return fd


class Lock:
    """The host's lock while it is held; a process that inherits the descriptor holds it too (flock(2))."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def fileno(self) -> int:
        return self._fd

    def release(self) -> None:
        os.close(self._fd)


@contextmanager
def lock() -> Iterator[Lock]:
    """Hold the host's one lock, under which links, namespaces, maps and the daemon's life change.

    The kernel releases it when its last holder ends, so there is no stale lock.
    """
    held = take_lock()
    try:
        yield held
    finally:
        held.release()


def take_lock() -> Lock:
    """Wait for the lock and take it, until it is released. Raises KernelError."""
    _make(ROOT)
    path = f"{ROOT}/lock"
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise KernelError(f"cannot open {path}: {error.strerror}") from None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
    except BaseException:
        os.close(fd)
        raise
    return Lock(fd)


def _make(path: str) -> None:
    try:
        os.mkdir(path, 0o700)
    except OSError as error:
        if os.path.isdir(path):
            return
        raise KernelError(f"cannot make directory {path}: {error.strerror}") from None
