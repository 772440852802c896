"""Tells whether names of network namespaces that one process mounts appear to another process.

A name in /run/netns is a mount. Processes in different mount namespaces see each other's mounts only when
propagation carries them (mount_namespaces(7), "Shared subtrees"): the mounts that hold /run/netns on both
sides are in one peer group (``shared:N`` in /proc/PID/mountinfo), or one of them is a slave of the other's
group (``master:N``), which carries mounts in one direction only.
"""

from __future__ import annotations

import os
from typing import NamedTuple

from tproxy.kernel import netns


class View(NamedTuple):
    """The mounts that a process sees: its mount namespace, and the peer groups of what holds /run/netns.

    ``namespace`` is the namespace's device and inode. ``groups`` are by the kind of relation.
    """

    namespace: tuple[int, int]
    groups: dict[str, str]


class Reach(NamedTuple):
    """Whether mounts in /run/netns of this process appear ``there``, and those of the other one ``here``."""

    there: bool
    here: bool


def view(process: str = "self") -> View:
    """Return what a process sees, by its id. Raises OSError when that is not known."""
    status = os.stat(f"/proc/{process}/ns/mnt")
    return View((status.st_dev, status.st_ino), _peer_groups(process))


def reach(ours: View, theirs: View) -> Reach:
    """Return how far mounts reach between two processes."""
    if ours.namespace == theirs.namespace:
        return Reach(True, True)
    shared = theirs.groups.get("shared")
    return Reach(
        there=shared is not None and ours.groups.get("shared") == shared,
        here=shared is not None and shared in ours.groups.values(),
    )


def _peer_groups(process: str) -> dict[str, str]:
    """The peer groups of the mount that holds /run/netns, as of proc_pid_mountinfo(5)."""
    mount = _mount_id(process)
    with open(f"/proc/{process}/mountinfo") as file:
        for line in file:
            fields = line.split()
            if fields[0] == mount:
                tags = fields[6 : fields.index("-", 6)]
                return dict(each.partition(":")[::2] for each in tags)
    return {}


def _mount_id(process: str) -> str:
    """The number of the mount that holds /run/netns, or would hold it."""
    folder = f"/proc/{process}/root{netns.DIRECTORY}"
    fd = os.open(folder if os.path.isdir(folder) else os.path.dirname(folder), os.O_PATH | os.O_CLOEXEC)
    try:
        with open(f"/proc/self/fdinfo/{fd}") as file:
            words = dict(line.split(":", 1) for line in file)
    finally:
        os.close(fd)
    return words["mnt_id"].strip()
