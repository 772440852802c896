"""Makes network namespaces without a name, which vanish with what held them: nothing has to be cleaned up.

``netns`` has those with a name. Relays load that module, and need not carry this one.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager

from tproxy.errors import KernelError
from tproxy.kernel.netns import CLONE_NEWNET, LIBC

_OWN = "/proc/thread-self/ns/net"


@contextmanager
def namespace() -> Iterator[int]:
    """Make a namespace and yield a descriptor of it; this thread stays where it is.

    The kernel removes the namespace, and both ends of each veth pair into it, when the body has ended and no
    socket of it is open; also when this process is killed. Raises KernelError.
    """
    home = os.open(_OWN, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if LIBC.unshare(CLONE_NEWNET) != 0:
            raise KernelError(f"cannot make a namespace: {os.strerror(ctypes.get_errno())}")
        try:
            fd = os.open(_OWN, os.O_RDONLY | os.O_CLOEXEC)
        finally:
            _enter(home)
    finally:
        os.close(home)
    try:
        yield fd
    finally:
        os.close(fd)


@contextmanager
def inside(fd: int) -> Iterator[None]:
    """Run the body in the namespace of a descriptor, on this thread, and return to the former one.

    Raises KernelError.
    """
    home = os.open(_OWN, os.O_RDONLY | os.O_CLOEXEC)
    try:
        _enter(fd)
        try:
            yield
        finally:
            _enter(home)
    finally:
        os.close(home)


def _enter(fd: int) -> None:
    if LIBC.setns(fd, CLONE_NEWNET) != 0:
        raise KernelError(f"cannot enter a namespace: {os.strerror(ctypes.get_errno())}")
