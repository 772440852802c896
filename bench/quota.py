"""Holds processes to a share of one core, by a control group for each, with version 2 or 1 of cgroups(7)."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from tproxy.lab.hypervisor import Hypervisor

# The kernel gives processor time anew after each period. A long one lets a process work for long and then
# stands it still for long; the quota of a short one is below the 1 ms that the kernel allows.
PERIOD = 20_000  # microseconds

_PLACE = "/run/quota"

# Version 1 has a controller when version 2 has not got it. A stand-in has a /sys of its own, without either.
_MOUNT = """
mkdir -p {place}
mountpoint -q {place} && exit
mount -t cgroup2 cgroup2 {place}
if grep -qw cpu {place}/cgroup.controllers; then
    echo +cpu >{place}/cgroup.subtree_control
else
    umount {place} && mount -t cgroup -o cpu cgroup {place}
fi
"""

_HOLD = """
mkdir {group}
if [ -e {group}/cpu.max ]; then
    echo {quota} {period} >{group}/cpu.max
else
    echo {period} >{group}/cpu.cfs_period_us
    echo {quota} >{group}/cpu.cfs_quota_us
fi
echo {pid} >{group}/cgroup.procs
"""

# A group can be removed when it is empty.
_RELEASE = """
[ -e {group} ] || exit 0
while read -r pid; do echo "$pid" >{place}/cgroup.procs; done <{group}/cgroup.procs
rmdir {group}
"""


@contextmanager
def held(host: Hypervisor, pids: Sequence[int], share: float) -> Iterator[None]:
    """Hold each process of a stand-in to that share of a core. Raises ProcessError where that cannot be."""
    _shell(host, _MOUNT.format(place=_PLACE))
    # The groups are those of the whole machine, so their names are of this run and this stand-in.
    groups = {pid: f"{_PLACE}/tproxy-bench-{os.getpid()}-{host.pid}-{pid}" for pid in pids}
    try:
        for pid, group in groups.items():
            _shell(host, _HOLD.format(group=group, pid=pid, period=PERIOD, quota=round(PERIOD * share)))
        yield
    finally:
        for group in groups.values():
            _shell(host, _RELEASE.format(group=group, place=_PLACE))


def _shell(host: Hypervisor, script: str) -> None:
    # A process of the stand-in writes process ids: the kernel reads them in the writer's process namespace.
    host.run("sh", "-ec", script)
