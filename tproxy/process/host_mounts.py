"""Requires that this process and the host see the same names in /run/netns.

A program that systemd runs with PrivateTmp=, ProtectHome= and the like has a mount namespace of its own. What
it mounts does not reach the host, and in some cases the host's mounts do not reach it. There, a bridge that
works can look as if it had no namespace. Such a process must not build or remove anything.

The host's mounts are those of process 1, if that is in this process's network namespace and can be looked at;
otherwise those of the daemon. Where neither can be told, nothing is required.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

from tproxy.errors import KernelError
from tproxy.kernel import mounts, netns
from tproxy.kernel.mounts import Reach
from tproxy.process import table

_HINT = (
    "this process has a mount namespace of its own (systemd: PrivateTmp=, ProtectHome= and the like), {}: "
    "nothing was changed; run it in the host's, for example with `nsenter --target 1 --mount tproxy ...`"
)


def require_reach() -> None:
    """Raise KernelError when namespaces that this process makes or removes stay as they were for the host."""
    if (found := _reach()) and not found.there:
        raise KernelError(_HINT.format("and what it mounts in /run/netns does not reach the host"))


def require_sight() -> None:
    """Raise KernelError when namespaces that the host makes or removes stay as they were for this process."""
    if (found := _reach()) and not found.here:
        raise KernelError(_HINT.format("and what the host mounts in /run/netns does not appear in it"))


def _reach() -> Reach | None:
    for pid in _of_the_host():
        try:
            return mounts.reach(pid)
        except OSError:  # it has ended, or this process lacks CAP_SYS_PTRACE
            continue
    return None


def _of_the_host() -> Iterator[int]:
    """The processes whose mounts are the host's, best first."""
    try:
        status = os.stat("/proc/1/ns/net")
    except OSError:
        pass
    else:
        if netns.current() == (status.st_dev, status.st_ino):
            yield 1
    yield from (process.pid for process in table.find().daemons)
