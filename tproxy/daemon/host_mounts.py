"""Requires that this process and the host see the same names in /run/netns.

A program that systemd runs with PrivateTmp=, ProtectHome= and the like has a mount namespace of its own. What
it mounts does not reach the host, and in some cases the host's mounts do not reach it. There, a bridge that
works can look as if it had no namespace. Such a process must not build or remove anything.

The host's mounts are those of process 1, if that is in this process's network namespace and can be looked at;
otherwise those of the daemon, as it says itself. Where neither can be told, nothing is required.
"""

from __future__ import annotations

import os

from tproxy.daemon import client
from tproxy.errors import KernelError, ProcessError
from tproxy.kernel import mounts, netns
from tproxy.kernel.mounts import Reach, View

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
    """How far mounts reach between this process and the host; None when that is not known."""
    theirs = _of_process_1() or _of_daemon()
    return mounts.reach(mounts.view(), theirs) if theirs else None


def _of_process_1() -> View | None:
    try:
        status = os.stat("/proc/1/ns/net")
        if netns.current() == (status.st_dev, status.st_ino):
            return mounts.view("1")
    except OSError:  # this process lacks CAP_SYS_PTRACE
        pass
    return None


def _of_daemon() -> View | None:
    try:
        said = client.ask({"op": "mounts"}, client.PING_TIMEOUT)["mounts"]
    except ProcessError:  # no daemon runs, or one of an older version
        return None
    return View(tuple(said["namespace"]), said["groups"])
