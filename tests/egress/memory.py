"""A control group with a limit of memory, of version 2 or 1, whichever this machine has (cgroups(7))."""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

# A namespace of its own has the mount, so that none is left when the test is killed.
_MOUNT = """
mount -t cgroup2 cgroup2 "$1"
if grep -qw memory "$1/cgroup.controllers"; then
    echo +memory >"$1/cgroup.subtree_control"
else
    umount "$1" && mount -t cgroup -o memory cgroup "$1"
fi && echo ready && exec sleep infinity
"""


class Group:
    """A control group. A process that writes its id to ``procs`` is in it, with all that it starts."""

    def __init__(self, directory: Path, limit: int) -> None:
        self._directory = directory
        self.procs = directory / "cgroup.procs"
        self._first = (directory / "memory.max").exists()
        (directory / ("memory.max" if self._first else "memory.limit_in_bytes")).write_text(str(limit))

    def killed(self) -> int:
        """Return how many processes the kernel ended because the group had no memory left."""
        name = "memory.events" if self._first else "memory.oom_control"
        fields = dict(line.split() for line in (self._directory / name).read_text().splitlines())
        return int(fields["oom_kill"])

    def entering(self, *command: str) -> list[str]:
        """Return the command that runs another one in the group."""
        return ["sh", "-c", f'echo $$ >"{self.procs}" && exec "$@"', "entering", *command]


@contextmanager
def memory_group(limit: int) -> Iterator[Group]:
    """Make a group, and remove it. What runs in it has to end before. Skips where there is no such thing."""
    with tempfile.TemporaryDirectory() as folder:
        command = ["unshare", "--mount", "setpriv", "--pdeathsig=KILL", "sh", "-c", _MOUNT, "mount", folder]
        holder = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        try:
            assert holder.stdout is not None
            if holder.stdout.readline() != "ready\n":
                pytest.skip("control groups of memory cannot be mounted here")
            directory = Path(f"/proc/{holder.pid}/root{folder}/tproxy-test-{os.getpid()}-{time.time_ns()}")
            directory.mkdir()
            try:
                yield Group(directory, limit)
            finally:
                directory.rmdir()
        finally:
            holder.kill()
            with holder:
                pass
