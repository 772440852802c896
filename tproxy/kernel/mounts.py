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


class Reach(NamedTuple):
    """Whether mounts in /run/netns of this process appear ``there``, and those of the other one ``here``."""

    there: bool
    here: bool


def reach(pid: int) -> Reach:
    """Return how far mounts reach between this process and another. Raises OSError when that is not known."""
    if os.path.samestat(os.stat("/proc/self/ns/mnt"), os.stat(f"/proc/{pid}/ns/mnt")):
        return Reach(True, True)
    ours, theirs = _peer_groups("self"), _peer_groups(str(pid))
    shared = theirs.get("shared")
    return Reach(
        there=shared is not None and ours.get("shared") == shared,
        here=shared is not None and shared in ours.values(),
    )


def _peer_groups(process: str) -> dict[str, str]:
    """The peer groups of the mount that holds /run/netns, by how they are related: proc_pid_mountinfo(5)."""
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
    root = f"/proc/{process}/root"
    folder = root + netns.DIRECTORY
    fd = os.open(folder if os.path.isdir(folder) else os.path.dirname(folder), os.O_PATH | os.O_CLOEXEC)
    try:
        with open(f"/proc/self/fdinfo/{fd}") as file:
            words = dict(line.split(":", 1) for line in file)
    finally:
        os.close(fd)
    return words["mnt_id"].strip()
