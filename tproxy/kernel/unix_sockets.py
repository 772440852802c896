"""Connects to UNIX sockets for others, whose rights a server of the socket is to see.

A server can ask the kernel who has connected (SO_PEERCRED, unix(7)), and some give more to root. So this
process connects under another user id, and keeps of root's rights only that to pass the modes of files.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from tproxy.kernel import privileges
from tproxy.kernel.netns import LIBC

_KIND = socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
_PR_GET_DUMPABLE, _PR_SET_DUMPABLE = 3, 4  # <linux/prctl.h>


def connect(path: str, user: int) -> tuple[socket.socket | None, int]:
    """Connect to a UNIX socket as this user and group, at once.

    Return the socket, which never blocks, and 0; or None and the errno: EAGAIN while the server has no room
    for one more (listen(2), backlog).
    """
    try:
        sock = socket.socket(socket.AF_UNIX, _KIND)
    except OSError as error:
        return None, error.errno or errno.EMFILE
    try:
        with _as(user):
            number = sock.connect_ex(path)
    except BaseException:
        sock.close()
        raise
    if number:
        sock.close()
        return None, number
    return sock, 0


@contextmanager
def _as(user: int) -> Iterator[None]:
    """Have this user and group for a while; the own ones in a container that does not map them."""
    before, group = os.geteuid(), os.getegid()
    dumpable = LIBC.prctl(_PR_GET_DUMPABLE, 0, 0, 0, 0)
    try:
        with suppress(OSError):
            os.setresgid(-1, user, -1)
            os.setresuid(-1, user, -1)
            privileges.use_only(privileges.DAC_OVERRIDE)  # the kernel has taken all away (capabilities(7))
        yield
    finally:
        os.setresuid(-1, before, -1)  # with which all capabilities come back
        os.setresgid(-1, group, -1)
        # The change of users has shut other processes of root out of /proc/PID (prctl(2)).
        LIBC.prctl(_PR_SET_DUMPABLE, dumpable, 0, 0, 0)
