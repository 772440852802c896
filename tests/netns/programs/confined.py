"""Give up all rights as a relay or a worker does, then try what neither may do: ``confined.py EMPTY``.

``EMPTY`` is an empty directory. The process tries on a child that it had before, and by descriptors that it
had before. Prints as JSON which stages failed, and for each attempt the name of the error, or ``done``.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import signal
import socket
import sys
from collections.abc import Callable

from tproxy.kernel import privileges

PTRACE_ATTACH, PTRACE_SEIZE = 16, 0x4206  # <linux/ptrace.h>
CLONE_NEWNET, CLONE_NEWUSER = 0x40000000, 0x10000000  # <linux/sched.h>
PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, CAP_SETUID = 47, 2, 7  # <linux/prctl.h>, <linux/capability.h>
MS_BIND = 4096  # <sys/mount.h>

libc = ctypes.CDLL(None, use_errno=True)


def call(name: str, *arguments: object) -> Callable[[], object]:
    """Return a function that makes a call of the C library, and raises OSError where it fails."""
    function = getattr(libc, name)

    def run() -> None:
        if function(*arguments) < 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))

    return run


def bind(port: int) -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", port))


def attempts(parent: int, victim: int, network: int) -> dict[str, Callable[[], object]]:
    return {
        "read a file": lambda: os.open("/etc/passwd", os.O_RDONLY),
        "read a file by a way up": lambda: os.open("../../../../etc/passwd", os.O_RDONLY),
        "read /proc": lambda: os.open("/proc/self/status", os.O_RDONLY),
        "make a file": lambda: os.open("/file", os.O_WRONLY | os.O_CREAT),
        "make a device": lambda: os.mknod("/device", 0o020666, os.makedev(1, 1)),
        "open a file again by its descriptor": lambda: os.open(f"/proc/self/fd/{network}", os.O_RDWR),
        "execute a program": lambda: os.execv("/bin/sh", ["sh", "-c", "exit"]),
        "execute this program": lambda: os.execv(sys.executable, ["python"]),
        "kill its parent, which is root": lambda: os.kill(parent, signal.SIGKILL),
        "kill one with other rights": lambda: os.kill(victim, signal.SIGKILL),
        "trace one with other rights": call("ptrace", PTRACE_ATTACH, victim, None, None),
        "seize one with other rights": call("ptrace", PTRACE_SEIZE, victim, None, None),
        "change the limits of another": call("prlimit", victim, 7, bytes(16), None),
        "enter a network namespace": call("setns", network, CLONE_NEWNET),
        "make a network namespace": call("unshare", CLONE_NEWNET),
        "make a user namespace": call("unshare", CLONE_NEWUSER),
        "be root again": lambda: os.setuid(0),
        "be another user": lambda: os.setresuid(1, 1, 1),
        "be in another group": lambda: os.setgroups([0]),
        "leave its root directory": lambda: os.chroot("/"),
        "mount something": call("mount", b"/", b"/", None, MS_BIND, None),
        "get a capability back": call("prctl", PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, CAP_SETUID, 0, 0),
        "bind a port below 1024": lambda: bind(22),
        "capture packets": lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW),
        "send raw packets": lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP),
        "change the scheduling of another": lambda: os.setpriority(os.PRIO_PROCESS, victim, -5),
    }


def tried(attempt: Callable[[], object]) -> str:
    try:
        attempt()
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, str(error))
    return "done"


def main() -> None:
    empty = sys.argv[1]
    parent = os.getpid()
    victim = os.fork()
    if victim == 0:
        signal.pause()
    network = os.open("/proc/self/ns/net", os.O_RDONLY)
    confined = os.fork()
    if confined == 0:
        failed = privileges.drop(empty)
        outcome = {name: tried(attempt) for name, attempt in attempts(parent, victim, network).items()}
        print(json.dumps({"failed": failed, "outcome": outcome}), flush=True)
        os._exit(0)
    os.waitpid(confined, 0)
    os.kill(victim, signal.SIGKILL)  # it is there


main()
