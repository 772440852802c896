"""Give up all rights as a relay or a worker does, then try what neither may do: ``confined.py EMPTY KIND``.

``EMPTY`` is an empty directory, and ``KIND`` is RELAY or WORKER. The process tries on a child that it had
before, and by descriptors that it had before. Prints as JSON which stages failed, and for each attempt the
name of the error, or ``done``.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import json
import mmap
import os
import signal
import socket
import sys
import termios
from _thread import start_new_thread
from collections.abc import Callable

from tproxy.kernel import privileges, seccomp

PTRACE_ATTACH, PTRACE_SEIZE = 16, 0x4206  # <linux/ptrace.h>
CLONE_NEWNET, CLONE_NEWUSER = 0x40000000, 0x10000000  # <linux/sched.h>
PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, CAP_SETUID = 47, 2, 7  # <linux/prctl.h>, <linux/capability.h>
MS_BIND = 4096  # <sys/mount.h>

X86 = os.uname().machine == "x86_64"

libc = ctypes.CDLL(None, use_errno=True)


def call(name: str, *arguments: object) -> Callable[[], object]:
    """Return a function that makes a call of the C library, and raises OSError where it fails."""
    function = getattr(libc, name)

    def run() -> None:
        if function(*arguments) < 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))

    return run


def system_call(number: int, *arguments: object) -> Callable[[], object]:
    """Return a function that makes a system call which the C library has no function for."""
    return call("syscall", ctypes.c_long(number), *arguments)


def listen() -> None:
    with socket.socket() as sock:
        sock.listen()


def map_code() -> None:
    mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC).close()


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
        "start a process": os.fork,
        "start a thread": lambda: start_new_thread(str, ()),
        "see another process": lambda: os.pidfd_open(parent),
        "read the memory of another": call("process_vm_readv", parent, None, 0, None, 0, 0),
        "ask if another process is there": lambda: os.kill(parent, 0),
        "load a program into the kernel": system_call(321 if X86 else 280, 0, bytes(128), 128),
        "use io_uring": system_call(425, 1, bytes(128)),
        "use the kernel's keys": system_call(250 if X86 else 219, 0, 0, 0, 0, 0),
        "handle page faults": system_call(323 if X86 else 282, 1),
        "measure events": system_call(298 if X86 else 241, bytes(128), 0, -1, -1, 0),
        "be traced": call("ptrace", 0, 0, None, None),
        "map memory that can be executed": map_code,
        "make memory executable": call("mprotect", None, 4096, 4),
        "push a letter into a terminal": lambda: fcntl.ioctl(0, termios.TIOCSTI, b"x"),
        "talk to the kernel's netlink": lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0),
        "use IPv6": lambda: socket.socket(socket.AF_INET6, socket.SOCK_STREAM),
        "use a UNIX socket for streams": lambda: socket.socket(socket.AF_UNIX, socket.SOCK_STREAM),
        "use the kernel's ciphers": lambda: socket.socket(socket.AF_ALG, socket.SOCK_SEQPACKET),
        "use multipath TCP": lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262),
        "list a directory": lambda: os.listdir("/"),
        "change the scheduling of another": lambda: os.setpriority(os.PRIO_PROCESS, victim, -5),
    }


# A relay listens, in its bridge's namespace.
WORKER_ONLY: dict[str, Callable[[], object]] = {
    "take a port of the host": lambda: bind(50000),
    "meet others by a UNIX socket": lambda: socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET),
}

# And what a kind of process must be able to do.
NEEDED: dict[str, dict[str, Callable[[], object]]] = {
    "RELAY": {"listen": listen, "meet": lambda: socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)},
    "WORKER": {"dial": socket.socket, "pipe": lambda: os.pipe2(os.O_NONBLOCK)},
}


def tried(attempt: Callable[[], object]) -> str:
    try:
        attempt()
    except RuntimeError as error:
        return str(error)  # a thread: Python does not say why
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, str(error))
    return "done"


def main() -> None:
    empty, kind = sys.argv[1:]
    parent = os.getpid()
    victim = os.fork()
    if victim == 0:
        signal.pause()
    network = os.open("/proc/self/ns/net", os.O_RDONLY)
    confined = os.fork()
    if confined == 0:
        failed = privileges.drop(empty, getattr(seccomp, kind))
        tries = attempts(parent, victim, network) | (WORKER_ONLY if kind == "WORKER" else {})
        outcome = {name: tried(attempt) for name, attempt in tries.items()}
        needed = {name: tried(attempt) for name, attempt in NEEDED[kind].items()}
        print(json.dumps({"failed": failed, "outcome": outcome, "needed": needed}), flush=True)
        os._exit(0)
    os.waitpid(confined, 0)
    os.kill(victim, signal.SIGKILL)  # it is there


main()
