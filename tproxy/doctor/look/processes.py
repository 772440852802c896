"""Reads what runs: our processes, what the daemon says, limits, logs, and processes that look like ours."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from contextlib import suppress
from types import MappingProxyType
from typing import Any, NamedTuple

from tproxy.daemon import client
from tproxy.doctor.finding import UNKNOWN
from tproxy.errors import ProcessError
from tproxy.kernel import limits, netns
from tproxy.log.file import DIRECTORY
from tproxy.log.output import DAEMON_LOG
from tproxy.model import Network
from tproxy.names import DAEMON_TITLE, BridgeNames
from tproxy.process import table
from tproxy.process.table import AUXILIARY_PREFIX, RELAY_PREFIX

WORKER_TITLE = AUXILIARY_PREFIX + "worker"

_STOPPED = ("T", "t")  # proc_pid_stat(5): by a signal, by a debugger


class Agent(NamedTuple):
    """A process with a title of ours that is not ours. ``bridge`` is "" for one that plays the daemon."""

    pid: int
    title: str
    bridge: str = ""


class Log(NamedTuple):
    """A log file: what is wrong with it, and which processes write to another one in its place."""

    path: str
    fault: str = ""
    strays: tuple[int, ...] = ()


class Processes(NamedTuple):
    """The processes of this instance, and what the daemon says. The defaults are those without any."""

    daemons: tuple[int, ...] = ()
    relays: Mapping[str, int] = MappingProxyType({})
    watchers: tuple[int, ...] = ()
    workers: tuple[int, ...] = ()  # without those that finish what is open
    stopped: frozenset[int] = frozenset()
    status: dict[str, Any] | None = None
    silent: str = ""  # why the daemon does not answer
    watch_file: str = ""  # the configuration file for which the daemon keeps a watcher
    descriptors: Mapping[int, tuple[int, int]] = MappingProxyType({})  # open ones and the limit, by process
    own_limit: int = -1  # of this process, and so of a daemon that it would start; -1: none
    logs: tuple[Log, ...] = ()
    agents: tuple[Agent, ...] = ()

    def network(self, bridge: str) -> Network:
        """The network of a bridge as the daemon knows it."""
        known = (self.status or {}).get("bridges", {}).get(bridge)
        return Network(known["network"], known["network_id"]) if known else UNKNOWN


def look() -> Processes:
    """Look at the processes. A daemon that is stopped is not asked, since it cannot answer."""
    found = table.find()
    daemons = tuple(each.pid for each in found.daemons)
    relays = {bridge: each.pid for bridge, each in found.relays}
    watchers = tuple(each.pid for each in found.watchers)
    ours = {*daemons, *relays.values(), *watchers, *(each.pid for each in found.auxiliary)}
    stopped = frozenset(filter(_is_stopped, ours))
    workers = tuple(each.pid for each in found.auxiliary if _title(each.pid) == WORKER_TITLE)
    status, silent, watch_file = None, "", ""
    # A daemon that waits for a worker gives no status meanwhile.
    if daemons and not stopped.intersection({*daemons, *workers}):
        try:
            status = client.status()
            watch_file = str((client.ping() or {}).get("watch") or "")
        except ProcessError as error:
            silent = str(error)
    return Processes(
        daemons,
        relays,
        watchers,
        workers,
        stopped,
        status,
        silent,
        watch_file,
        {pid: each for pid in (*daemons, *workers) if (each := _descriptors(pid))},
        limits.hard_limit(),
        tuple(_logs(daemons + watchers, relays)),
        tuple(_agents(ours)),
    )


def _title(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return file.read().rstrip(b"\0 ").decode(errors="replace")
    except OSError:
        return ""  # it has ended


def _is_stopped(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] in _STOPPED
    except OSError:
        return False  # it has ended


def _descriptors(pid: int) -> tuple[int, int] | None:
    try:
        with open(f"/proc/{pid}/limits") as file:
            soft = next(line.split()[3] for line in file if line.startswith("Max open files"))
        return len(os.listdir(f"/proc/{pid}/fd")), int(soft) if soft.isdigit() else 1 << 30
    except (OSError, StopIteration):
        return None


def _logs(pids: tuple[int, ...], relays: Mapping[str, int]) -> list[Log]:
    files = {DAEMON_LOG: pids} | {
        BridgeNames(bridge).relay_log: (pid,) for bridge, pid in sorted(relays.items())
    }
    return [_log(f"{DIRECTORY}/{name}", writers) for name, writers in files.items()]


def _log(path: str, writers: tuple[int, ...]) -> Log:
    try:
        status = os.stat(path)
        space = os.statvfs(path)
    except FileNotFoundError:
        fault = "" if not writers else "it is missing, or its folder is"
        if not writers and not os.access(DIRECTORY, os.W_OK):
            fault = f"{DIRECTORY} cannot be written to"
        return Log(path, fault)
    except OSError as error:
        return Log(path, error.strerror or str(error))
    if not stat.S_ISREG(status.st_mode):
        return Log(path, "it is no file")
    if space.f_flag & os.ST_RDONLY:
        return Log(path, "its file system is read-only")
    if space.f_bavail == 0 and space.f_blocks:
        return Log(path, "its file system is full")
    return Log(path, "", tuple(pid for pid in writers if _strays(pid, path, status.st_ino)))


def _strays(pid: int, path: str, inode: int) -> bool:
    """Whether the process has a file open that was once at this path, and not the one that is there now."""
    folder = f"/proc/{pid}/fd"
    with suppress(OSError):
        for fd in os.listdir(folder):
            with suppress(OSError):
                name = os.readlink(f"{folder}/{fd}")
                if name.startswith(path.removesuffix(".log")) and os.stat(f"{folder}/{fd}").st_ino != inode:
                    return True
    return False


def _agents(ours: set[int]) -> list[Agent]:
    """Processes in this host's namespaces that have a title of ours: an older tproxy, or OpenNebula's own."""
    import psutil

    here, found = netns.current(), []
    for pid in psutil.pids():
        try:
            title = " ".join(psutil.Process(pid).cmdline()).rstrip("\0 ")
            if pid in ours or not (title == DAEMON_TITLE or title.startswith(RELAY_PREFIX)):
                continue
            where = netns.of_process(pid)
        except (psutil.Error, OSError):
            continue
        bridge = title.removeprefix(RELAY_PREFIX) if title != DAEMON_TITLE else ""
        if where == here or (bridge and where == netns.identify(f"{RELAY_PREFIX}{bridge}")):
            found.append(Agent(pid, title, bridge))
    return found
