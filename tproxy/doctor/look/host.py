"""Reads what concerns the whole host: kernel, nftables, mounts, run directory, neighbour table, lock."""

from __future__ import annotations

import os
import socket
import stat
from contextlib import suppress
from typing import NamedTuple

from tproxy.bridge import guards, nftables, wall
from tproxy.bridge.guards import Guard, ObservedGuard
from tproxy.daemon import host_mounts
from tproxy.datapath.local_ports import IP_LOCAL_PORT_RANGE
from tproxy.errors import KernelError, NftError
from tproxy.kernel import links, nameless, netns
from tproxy.process import run_directory

_ENTRIES = "/proc/net/stat/arp_cache"  # the first column of each line: entries of all namespaces
_MOST = "/proc/sys/net/ipv4/neigh/default/gc_thresh3"  # only the kernel's first namespace shows it
_LOCKS = "/proc/locks"


_SOME = 8  # links by which it shows whether /sys is that of this network namespace


class Kernel(NamedTuple):
    """What this kernel lacks of what tproxy uses, in words; "" for nothing."""

    bridge_tables: str = ""  # why bridges cannot be guarded
    guards: str = ""
    walls: str = ""
    cookies: bool = True  # Linux 5.14
    port_choice: bool = True  # Linux 6.3


class Host(NamedTuple):
    """The host as it was found. The defaults are those of a host in order."""

    links: str = ""  # why /sys cannot be used
    mounts: str = ""  # why this process and the host do not see the same names in /run/netns
    nftables: str = ""  # why nftables cannot be read
    library: bool = True  # libnftables is installed
    kernel: Kernel | None = None  # None where nftables cannot be used
    directory: str = ""  # what is wrong with /run/tproxy
    neighbours: tuple[int, int] | None = None  # entries and the most there can be; None where not shown


def host(found: dict[str, ObservedGuard] | None, problem: NftError | None) -> Host:
    """Look at the host. ``found`` are the guards of all bridges, or ``problem`` is why they are not known."""
    return Host(
        links=_links(),
        mounts=_mounts(),
        nftables=str(problem) if problem is not None else "",
        library=problem is None or "not installed" not in str(problem),
        kernel=_try_kernel(found) if found is not None else None,
        directory=_directory(),
        neighbours=_neighbours(),
    )


def lock_holder() -> int | None:
    """The process that holds the host's lock now; None when nobody does."""
    try:
        inode = os.stat(f"{run_directory.ROOT}/lock").st_ino
        with open(_LOCKS) as file:
            rows = [line.split() for line in file]
    except OSError:
        return None
    for row in rows:  # 1: FLOCK ADVISORY WRITE 14694 00:29:6 0 EOF, as of proc_locks(5)
        if row[1] == "FLOCK" and row[5].rpartition(":")[2] == str(inode):
            return int(row[4])
    return None


def _links() -> str:
    try:
        for name in os.listdir("/sys/class/net")[:_SOME]:
            links.exists(name)
    except KernelError as error:
        return str(error)
    return ""


def _mounts() -> str:
    try:
        host_mounts.require_reach()
        host_mounts.require_sight()
    except KernelError as error:
        return str(error)
    return ""


def _try_kernel(found: dict[str, ObservedGuard]) -> Kernel | None:
    try:
        return _kernel(found)
    except (KernelError, OSError):
        return None  # no namespace can be made, or no descriptor is left


def _kernel(found: dict[str, ObservedGuard]) -> Kernel:
    lack, tables = _of_loaded(found), ""
    walls = ""
    with nameless.namespace() as fd, nameless.inside(fd):
        inner = nftables.Inner()
        if lack is None:
            lack, tables = _of_trial(inner)
        for kind in wall.KINDS:
            walls = kind.lacks
            if not _refusal(inner, [wall.load(kind, ())]):
                break
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
        return Kernel(tables, lack, walls, netns.cookie(sock) is not None, _chooses_ports(sock))


def _kinds() -> tuple[Guard, ...]:
    by_bridge, by_port = Guard("try", None, {}), Guard("try", frozenset(), {})
    return by_bridge, by_port, by_bridge._replace(limited=False), by_port._replace(limited=False)


def _of_loaded(found: dict[str, ObservedGuard]) -> str | None:
    """What the guards that are loaded do without; None where none are."""
    shared = next(iter(found.values()), None)
    if shared is None:
        return None
    return next((each.lacks for each in _kinds() if each.rules_are_in(shared)), None)


def _of_trial(inner: nftables.Inner) -> tuple[str, str]:
    """What guards would do without, and why there can be none, by a trial in a namespace that nobody has."""
    for kind in _kinds():
        refused = _refusal(inner, guards.load(kind, ObservedGuard("try")))
        if not refused:
            return kind.lacks, ""
    return "", refused


def _refusal(inner: nftables.Inner, commands: list[str]) -> str:
    try:
        inner.transaction(commands)
    except NftError as error:
        return str(error)
    return ""


def _chooses_ports(sock: socket.socket) -> bool:
    with suppress(OSError):
        sock.getsockopt(socket.IPPROTO_IP, IP_LOCAL_PORT_RANGE, 4)
        return True
    return False


def _directory() -> str:
    for path in (run_directory.ROOT, run_directory.directory()):
        try:
            status = os.stat(path)
        except FileNotFoundError:
            return ""  # whoever needs it makes it
        except OSError as error:
            return f"{path}: {error.strerror}"
        if not stat.S_ISDIR(status.st_mode):
            return f"{path} is not a directory"
        if status.st_uid != 0 or status.st_mode & 0o022:
            return f"others than root can write to {path}"
    return ""


def _neighbours() -> tuple[int, int] | None:
    try:
        with open(_ENTRIES) as file:
            entries = int(file.readlines()[1].split()[0], 16)
        with open(_MOST) as file:
            return entries, int(file.read())
    except (OSError, IndexError, ValueError):
        return None
