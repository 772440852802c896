"""``in.sock``: where a gateway of this host passes streams for routes.

The run directory is root's alone, so the socket is in a directory of its own. That directory says by its
group who may connect: `tproxy gateway up` gives it the gateway's group. Otherwise it is root's, and so is the
socket.
"""

from __future__ import annotations

import os
import socket
from contextlib import suppress

from tproxy.errors import KernelError
from tproxy.kernel import netns

ROOT = "/run/tproxy-in"
NAME = "in.sock"
# Beside it: where the process that holds tunnels of nodes takes streams for routes.
NODES = "nodes.sock"

# Streams that may wait while all workers are being replaced.
BACKLOG = 4096


def directory() -> str:
    """Return the directory of the socket of this network namespace's instance."""
    return f"{ROOT}/{netns.current().inode}"


def path() -> str:
    """Return the path of the socket."""
    return f"{directory()}/{NAME}"


def prepare() -> str:
    """Make the directory if it is missing, for root alone, and return it. Raises KernelError."""
    found = directory()
    for each, mode in ((ROOT, 0o711), (found, 0o750)):
        try:
            os.mkdir(each, mode)
            os.chmod(each, mode)
        except OSError as error:
            if not os.path.isdir(each):
                raise KernelError(f"cannot make directory {each}: {error.strerror}") from None
            status = os.lstat(each)
            if status.st_uid != os.geteuid() or status.st_mode & 0o022 or os.path.islink(each):
                raise KernelError(f"others than root can write to {each}: tproxy did not make it") from None
    return found


def admit(group: int) -> None:
    """Let the members of a group connect. Raises KernelError."""
    os.chown(prepare(), -1, group)
    with suppress(FileNotFoundError):
        _own(path())


def listen() -> socket.socket:
    """Return a new listening socket, in the place of the one that was there. Raises OSError, KernelError."""
    place = f"{prepare()}/{NAME}"
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    new = f"{place}.new"
    try:
        with suppress(FileNotFoundError):
            os.unlink(new)
        listener.bind(new)
        _own(new)
        listener.listen(BACKLOG)
        os.rename(new, place)
    except OSError:
        listener.close()
        raise
    return listener


def is_listener(sock: socket.socket) -> bool:
    """Whether a socket is the one that listens there: a worker has handed it over, and may say anything."""
    try:
        return (
            sock.family == socket.AF_UNIX
            and sock.type == socket.SOCK_STREAM
            and bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
            and sock.getsockname() == f"{path()}.new"  # the name that it was bound to
            and os.path.exists(path())
        )
    except OSError:
        return False


def remove() -> None:
    """Remove the socket's name, and the directory if nobody else uses it."""
    with suppress(OSError):
        os.unlink(path())
        os.rmdir(directory())


def _own(place: str) -> None:
    group = os.stat(os.path.dirname(place)).st_gid
    os.chown(place, -1, group)
    os.chmod(place, 0o660 if group else 0o600)
