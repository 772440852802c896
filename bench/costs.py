"""CPU time and memory of processes in a stand-in hypervisor, from its /proc."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from tproxy.lab.hypervisor import Hypervisor

_TICKS = os.sysconf("SC_CLK_TCK")
_F_GETPIPE_SZ = 1032  # <linux/fcntl.h>

# Raised when a process ends while its files are read: it then counts for nothing.
_GONE = (FileNotFoundError, ProcessLookupError)


class Memory(NamedTuple):
    """Bytes. ``private`` would be free without these processes; ``pss`` adds their share of shared pages."""

    private: float
    pss: float


def titled(host: Hypervisor, *prefixes: str) -> list[int]:
    """The process ids, inside the stand-in, of processes whose title begins with one of the prefixes."""
    found = []
    for pid in _pids(host):
        with suppress(*_GONE):
            if _title(host, pid).startswith(prefixes):
                found.append(pid)
    return found


def called(host: Hypervisor, title: str) -> list[int]:
    """The process ids, inside the stand-in, of processes with exactly this title."""
    found = []
    for pid in titled(host, title):
        with suppress(*_GONE):
            if _title(host, pid) == title:
                found.append(pid)
    return found


def family(host: Hypervisor, roots: Iterable[int]) -> list[int]:
    """The process ids of these processes and of all their descendants."""
    parents = {}
    for pid in _pids(host):
        with suppress(*_GONE):
            parents[pid] = int(_stat(host, pid)[1])
    members = set(roots)
    while more := {pid for pid, parent in parents.items() if parent in members} - members:
        members |= more
    return sorted(members)


def cpu(host: Hypervisor, pids: Iterable[int]) -> float:
    """CPU seconds, user and system, of these processes and of their children that have ended."""
    ticks = 0
    for pid in pids:
        with suppress(*_GONE):
            ticks += sum(map(int, _stat(host, pid)[11:15]))
    return ticks / _TICKS


def memory(host: Hypervisor, pids: Iterable[int]) -> Memory:
    """The memory of these processes together (proc_pid_smaps(5))."""
    private = pss = 0
    for pid in pids:
        with suppress(*_GONE):
            for line in host.path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]:
                name, amount, *_ = line.split()
                if name in ("Private_Clean:", "Private_Dirty:"):
                    private += int(amount)
                elif name == "Pss:":
                    pss += int(amount)
    return Memory(private * 1024.0, pss * 1024.0)


def inside(host: Hypervisor, pids: Iterable[int], namespace: str) -> list[int]:
    """Return those of ``pids`` that run in the named network namespace."""
    wanted = host.path(f"/run/netns/{namespace}").stat().st_ino
    found = []
    for pid in pids:
        with suppress(*_GONE):
            if host.path(f"/proc/{pid}/ns/net").stat().st_ino == wanted:
                found.append(pid)
    return found


def pipes(host: Hypervisor, pids: Iterable[int]) -> int:
    """The capacity of all pipes of these processes, in bytes: kernel memory that bulk can fill."""
    sizes: dict[str, int] = {}
    for pid in pids:
        with suppress(*_GONE):
            for each in host.path(f"/proc/{pid}/fd").iterdir():
                with suppress(*_GONE):
                    if (name := os.readlink(each)).startswith("pipe:") and name not in sizes:
                        sizes[name] = _pipe_size(each)
    return sum(sizes.values())


def _pipe_size(path: Path) -> int:
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        return fcntl.fcntl(fd, _F_GETPIPE_SZ)
    finally:
        os.close(fd)


def _title(host: Hypervisor, pid: int) -> str:
    """The title of a process: its command line, without the zeros behind a title that was set."""
    return host.path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0 ").decode(errors="replace")


def _pids(host: Hypervisor) -> list[int]:
    return [int(each.name) for each in host.path("/proc").iterdir() if each.name.isdecimal()]


def _stat(host: Hypervisor, pid: int) -> list[str]:
    """Fields of proc_pid_stat(5) behind the name: state is [0], ppid [1], utime and what follows [11]."""
    return host.path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
