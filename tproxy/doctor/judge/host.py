"""Judges what concerns the whole host."""

from __future__ import annotations

import shlex

from tproxy.doctor.finding import Finding, bad, good, warning
from tproxy.doctor.look.host import Host, Kernel
from tproxy.process import run_directory

# Of the neighbour table. The kernel discards unused entries from a part of that on (gc_thresh2).
_NEARLY_FULL = 0.8


def first(host: Host) -> list[Finding]:
    """What everything else needs."""
    found = [_mounts(host), _nftables(host)]
    found += _kernel(host.kernel) if host.kernel is not None else []
    return [*found, _directory(host)]


def last(host: Host, holder: int | None) -> list[Finding]:
    """What is scarce. ``holder`` is a process that held the host's lock all the time."""
    return [_neighbours(host), _lock(holder)]


def _mounts(host: Host) -> Finding:
    if host.links:
        return bad("mounts", host.links, "mount -t sysfs none /sys")
    if host.mounts:
        return bad("mounts", host.mounts, "nsenter --target 1 --mount tproxy doctor")
    return good("mounts", "/sys and /run/netns are those of the host")


def _nftables(host: Host) -> Finding:
    if not host.library:
        return bad("nftables", host.nftables, "apt install libnftables1")
    if host.nftables:
        return bad("nftables", host.nftables, "nft list ruleset")
    return good("nftables", "the tables can be read")


def _kernel(kernel: Kernel) -> list[Finding]:
    if kernel.bridge_tables:
        text = f"this kernel has no nftables bridge tables ({kernel.bridge_tables})"
        return [bad("kernel", text, "nft add table bridge try && nft delete table bridge try")]
    lacks = [each for each in (kernel.guards, kernel.walls) if each]
    if not kernel.cookies:
        lacks.append("SO_NETNS_COOKIE (Linux 5.14): the channel alone proves which bridge is calling")
    if not kernel.port_choice:
        lacks.append("IP_LOCAL_PORT_RANGE (Linux 6.3): dials take longer where local ports are scarce")
    if not lacks:
        return [good("kernel", "it has all that tproxy uses")]
    # Guards by port are as good while the daemon runs; without limits a guest can harm its neighbours.
    harmful = "limit" in kernel.guards or bool(kernel.walls)
    text = f"this kernel has no {'; no '.join(lacks)}"
    return [warning("kernel", text, "uname -r") if harmful else good("kernel", f"{text}. That does as well")]


def _directory(host: Host) -> Finding:
    if host.directory:
        path = shlex.quote(run_directory.ROOT)
        return bad("run-directory", host.directory, f"chown -R root {path} && chmod -R go-w {path}")
    return good("run-directory", f"only root can write to {run_directory.ROOT}")


def _neighbours(host: Host) -> Finding:
    if host.neighbours is None:
        return good("neighbours", "the size of the neighbour table is not shown in this network namespace")
    used, most = host.neighbours
    text = f"the neighbour table has {used} of {most} entries"
    more = f"sysctl -w net.ipv4.neigh.default.gc_thresh3={4 * most}"
    if used >= most:
        return bad("neighbours", f"{text}: the host and its guests lose each other's addresses", more)
    if used > _NEARLY_FULL * most:
        return warning("neighbours", f"{text}: it is nearly full", more)
    return good("neighbours", text)


def _lock(holder: int | None) -> Finding:
    if holder is None:
        return good("locks", "no command holds the host's lock for long")
    text = f"process {holder} holds the host's lock: hooks and commands wait for it"
    return warning("locks", text, f"ps -o pid,etime,args {holder}")
