"""Where metrics come from: asks the daemon for its figures, and looks at the processes of tproxy in /proc."""

from __future__ import annotations

import array
import json
import os
import socket
from contextlib import suppress
from typing import Any, NamedTuple

from tproxy.daemon.client import SOCKET
from tproxy.metrics.facts import Process
from tproxy.process import run_directory

# Seconds. The daemon answers within half a second, unless it is busy with a hook.
TIMEOUT = 5.0

# Workers at most, and those that finish after some restarts.
MOST_MEMORIES = 250  # SCM_MAX_FD of the kernel is 253

_PAGE = os.sysconf("SC_PAGE_SIZE")
_TICK = os.sysconf("SC_CLK_TCK")


class Reply(NamedTuple):
    """``answer`` is that of the daemon; None when none answers. ``fds`` are the counters of the workers."""

    answer: dict[str, Any] | None
    processes: list[Process]
    fds: list[int]


def read(known: str) -> Reply:
    """Return what there is now; the caller closes the descriptors. ``known`` is as in ``facts``."""
    answer, fds = _ask(known)
    return Reply(answer, _processes(answer), fds)


def _ask(known: str) -> tuple[dict[str, Any] | None, list[int]]:
    fds: list[int] = []
    room = socket.CMSG_SPACE(MOST_MEMORIES * array.array("i").itemsize)
    data = b""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            sock.settimeout(TIMEOUT)
            sock.connect(f"{run_directory.directory()}/{SOCKET}")
            sock.sendall(json.dumps({"op": "metrics", "known": known}).encode() + b"\n")
            while True:
                part, ancillary, _, _ = sock.recvmsg(256 * 1024, room, socket.MSG_CMSG_CLOEXEC)
                for level, kind, content in ancillary:
                    if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                        fds += array.array("i", content)
                if not part:
                    break
                data += part
        answer = json.loads(data)
        if "error" not in answer:
            return answer, fds
    except (OSError, ValueError):  # no daemon, or one that ends or hangs
        pass
    for fd in fds:
        os.close(fd)
    return None, []


def _processes(answer: dict[str, Any] | None) -> list[Process]:
    if answer is None:
        return []
    found = [_look(answer["pid"], Process("daemon"))]
    draining = []
    for place, pid in answer["workers"]:
        if place is None:
            draining.append(_look(pid, Process("draining")))
        else:
            found.append(_look(pid, Process("worker", worker=str(place))))
    for bridge, (pid, _) in answer["relays"].items():
        if pid is not None:
            found.append(_look(pid, Process("relay", bridge)))
    finishing = [each for each in draining if each is not None]
    if finishing:
        found.append(
            Process(
                "draining",
                memory=sum(each.memory for each in finishing),
                fds=sum(each.fds for each in finishing),
                cpu=sum(each.cpu for each in finishing),
            )
        )
    return [each for each in found if each is not None]


def _look(pid: int, process: Process) -> Process | None:
    """Return the process as proc(5) shows it; None when it has ended."""
    fds = most = 0
    try:
        with open(f"/proc/{pid}/statm") as file:
            memory = int(file.read().split()[1]) * _PAGE
        with open(f"/proc/{pid}/stat") as file:
            fields = file.read().rpartition(")")[2].split()
        with suppress(PermissionError):  # without CAP_DAC_READ_SEARCH
            fds = len(os.listdir(f"/proc/{pid}/fd"))
        with open(f"/proc/{pid}/limits") as file:
            for line in file:
                if line.startswith("Max open files"):
                    most = int(line.split()[3])  # the soft limit
    except (OSError, ValueError, IndexError):
        return None
    cpu = (int(fields[11]) + int(fields[12])) / _TICK
    return process._replace(memory=memory, fds=fds, most_fds=most, cpu=cpu)
