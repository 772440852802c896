"""The instance of tproxy in this network namespace: its directory, and the lock of the host.

The processes of an instance share the directory /run/tproxy/<inode of the network namespace>. It holds the
control socket, and it is the working directory of daemon and relays: a process that has their title but
another working directory is not one of them. Two hosts that share a file system and a process table, such as
a lab or a container and its host, have different directories.
"""

from __future__ import annotations

import fcntl
import os
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from tproxy.errors import KernelError
from tproxy.kernel import netns

ROOT = "/run/tproxy"

# The empty directory in the run directory (kernel/privileges.py).
EMPTY = "empty"


def directory() -> str:
    """Return the directory of this network namespace's instance, which need not exist."""
    return f"{ROOT}/{netns.current().inode}"


def prepare() -> str:
    """Make the directory if it is missing, for root alone, and return it. Raises KernelError."""
    path = directory()
    _make(ROOT)
    _make(path)
    return path


_MAP_STAYS = b"map stays\n"


def note_use(bridge: str, *, map_stays: bool | None = None) -> None:
    """Note that a hook brought the bridge up just now: its guest may be about to start.

    ``map_stays`` says whether another program made the service map; None leaves that as it was noted.
    """
    with suppress(OSError, KernelError):  # the hook works without the note
        folder = f"{prepare()}/used"
        _make(folder)
        path = f"{folder}/{bridge}"
        truncate = 0 if map_stays is None else os.O_TRUNC
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | truncate, 0o600)
        try:
            if map_stays:
                os.write(fd, _MAP_STAYS)
        finally:
            os.close(fd)
        os.utime(path, (_now(), _now()))


def last_use(bridge: str) -> float | None:
    """Return how many seconds ago a hook last brought the bridge up; None if none did."""
    try:
        return _now() - os.stat(f"{directory()}/used/{bridge}").st_mtime
    except FileNotFoundError:
        return None


def map_stays(bridge: str) -> bool:
    """Whether another program had made the bridge's service map before the first hook."""
    try:
        with open(f"{directory()}/used/{bridge}", "rb") as file:
            return file.read() == _MAP_STAYS
    except FileNotFoundError:
        return False


def _now() -> float:
    """Return the seconds since boot: a step of the wall clock must not make a bridge look unused."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def used() -> list[str]:
    """Return the bridges that a hook noted with ``note_use``, and that were not taken down since."""
    try:
        return os.listdir(f"{directory()}/used")
    except FileNotFoundError:
        return []


def forget_use(bridge: str) -> None:
    """Remove the note of ``note_use``, if there is one."""
    with suppress(FileNotFoundError):
        os.unlink(f"{directory()}/used/{bridge}")


def claim(name: str) -> int | None:
    """Take a place that only one process of the instance can have. Return None when another one has it.

    The place is free again when the returned descriptor is closed, and so when its holder ends.
    """
    fd = os.open(f"{prepare()}/{name}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        return None
    return fd


class Lock:
    """The host's lock while it is held. A process that inherits the descriptor holds it too, flock(2).

    The same descriptor holds the lock of a bridge, or of all bridges (``lock``), until ``close``.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._held = True

    def fileno(self) -> int:
        return self._fd

    def release(self) -> None:
        """Let others have the host's lock, if it is held; the locks of bridges stay."""
        if self._held:
            fcntl.flock(self._fd, fcntl.LOCK_UN)
            self._held = False

    def take(self) -> None:
        """Wait for the host's lock, if it was released, and take it again."""
        if not self._held:
            fcntl.flock(self._fd, fcntl.LOCK_EX)
            self._held = True

    def close(self) -> None:
        """Let all locks go, unless another process has inherited the descriptor."""
        os.close(self._fd)


# What to lock in the lock file besides the host's lock: start and length of a range, 0 for all that follow.
Range = tuple[int, int]

ALL_BRIDGES: Range = (0, 0)

# A prime: names of bridges are spread over all places.
_PLACES = 2**61 - 1


def of_bridge(bridge: str) -> Range:
    """Return the range for one bridge."""
    return int.from_bytes(bridge.encode(), "big") % _PLACES, 1


@contextmanager
def lock(bridges: Range | None = None) -> Iterator[Lock]:
    """Hold the host's lock. Links, namespaces and maps change, and daemons start and end, only under it.

    ``bridges`` is ``of_bridge`` of one, or ALL_BRIDGES. Whoever changes a bridge locks that bridge first.
    While the daemon brings it in order, the host's lock can be released (``Lock.release``): then the hooks of
    other bridges go on, those of this one wait, and so do the commands for all bridges.

    The kernel releases all locks when their last holder ends, so a stale lock is impossible.
    """
    held = take_lock(bridges)
    try:
        yield held
    finally:
        held.close()


def take_lock(bridges: Range | None = None) -> Lock:
    """Wait for the locks and take them, as ``lock``; the caller closes the result. Raises KernelError."""
    _make(ROOT)
    path = f"{ROOT}/lock"
    while True:
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise KernelError(f"cannot open {path}: {error.strerror}") from None
        try:
            if bridges is not None:
                # Of the open file description, as flock(2) is, and apart from that one (fcntl(2)).
                fcntl.fcntl(fd, fcntl.F_OFD_SETLKW, _write_lock(*bridges))
            fcntl.flock(fd, fcntl.LOCK_EX)
            if os.fstat(fd).st_nlink:
                return Lock(fd)
            # Somebody has removed the file meanwhile, and others lock a new one.
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)
        _make(ROOT)


def _write_lock(start: int, length: int) -> bytes:
    """Return a ``struct flock`` (fcntl(2)): type, whence, start, length, and 0 for the process id."""
    return struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, start, length, 0)


def _make(path: str) -> None:
    try:
        os.mkdir(path, 0o700)
    except OSError as error:
        if not os.path.isdir(path):
            raise KernelError(f"cannot make directory {path}: {error.strerror}") from None
        found = os.lstat(path)
        if found.st_uid != os.geteuid() or found.st_mode & 0o022 or os.path.islink(path):
            raise KernelError(f"others than root can write to {path}: tproxy did not make it") from None
