"""Limits which system calls a relay or a worker can make (seccomp(2)).

Theory of operation. A filter is a program of classic BPF, which the kernel runs before each system call. This
module makes it from a list of names, each with the reason why it is there; a call that is not in the list
fails with EPERM, and never kills the process: a call that was forgotten must not cost connections. Some calls
are allowed for some values of their arguments only. From Linux 5.11 on, the kernel runs the filter once for
each call that is allowed whatever its arguments are, and remembers that.

The program first compares the architecture, since the numbers of system calls differ between them. On other
machines than x86_64 and aarch64 there is no filter. On x86_64, calls of the x32 interface have numbers of
their own, so they are not in the list.
"""

import ctypes
import errno
import os
import struct
import sys

from tproxy.kernel.netns import LIBC
from tproxy.typed import NamedTuple

# Numbers on x86_64 (<asm/unistd_64.h>) and aarch64 (<asm-generic/unistd.h>), which lacks some older ones.
_NUMBERS = {
    "accept4": (288, 242),
    "bind": (49, 200),
    "brk": (12, 214),
    "clock_getres": (229, 114),
    "clock_gettime": (228, 113),
    "clock_nanosleep": (230, 115),
    "close": (3, 57),
    "connect": (42, 203),
    "epoll_create1": (291, 20),
    "epoll_ctl": (233, 21),
    "epoll_pwait": (281, 22),
    "epoll_wait": (232, None),
    "exit": (60, 93),
    "exit_group": (231, 94),
    "fcntl": (72, 25),
    "fstat": (5, 80),
    "ftruncate": (77, 46),
    "futex": (202, 98),
    "getegid": (108, 177),
    "geteuid": (107, 175),
    "getgid": (104, 176),
    "getpeername": (52, 205),
    "getpid": (39, 172),
    "getrandom": (318, 278),
    "getsockname": (51, 204),
    "getsockopt": (55, 209),
    "gettid": (186, 178),
    "gettimeofday": (96, 169),
    "getuid": (102, 174),
    "ioctl": (16, 29),
    "listen": (50, 201),
    "lseek": (8, 62),
    "madvise": (28, 233),
    "memfd_create": (319, 279),
    "mmap": (9, 222),
    "mprotect": (10, 226),
    "mremap": (25, 216),
    "munmap": (11, 215),
    "newfstatat": (262, 79),
    "pipe2": (293, 59),
    "poll": (7, None),
    "ppoll": (271, 73),
    "prctl": (157, 167),
    "prlimit64": (302, 261),
    "read": (0, 63),
    "recvfrom": (45, 207),
    "recvmsg": (47, 212),
    "restart_syscall": (219, 128),
    "rt_sigaction": (13, 134),
    "rt_sigprocmask": (14, 135),
    "rt_sigreturn": (15, 139),
    "sched_yield": (24, 124),
    "sendmsg": (46, 211),
    "sendto": (44, 206),
    "setsockopt": (54, 208),
    "shutdown": (48, 210),
    "sigaltstack": (131, 132),
    "socket": (41, 198),
    "socketpair": (53, 199),
    "splice": (275, 76),
    "write": (1, 64),
}

_MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}  # AUDIT_ARCH_..., <linux/audit.h>


class Only(NamedTuple):
    """A system call that is allowed if, for one of the ``cases``, all conditions are true.

    A condition is the number of an argument, a mask, and what the masked argument must be. Only the lower 32
    bits of an argument are looked at: the kernel uses no more of those that are named here.
    """

    name: str
    cases: tuple[tuple[tuple[int, int, int], ...], ...]


def _one_of(name: str, argument: int, *values: int) -> Only:
    return Only(name, tuple(((argument, 0xFFFFFFFF, value),) for value in values))


_AF_UNIX, _AF_INET, _AF_INET6 = 1, 2, 10
_STREAM, _DGRAM, _SEQPACKET = 1, 2, 5
_ANY_PROTOCOL_OF_TYPE, _TCP, _UDP = 0, 6, 17


def _socket(family: int, kind: int, *protocols: int) -> tuple[tuple[tuple[int, int, int], ...], ...]:
    """Return the cases of socket(2) for this family and type, whether close-on-exec and blocking or not."""
    return tuple(
        ((0, 0xFFFFFFFF, family), (1, 0xF, kind), (2, 0xFFFFFFFF, protocol)) for protocol in protocols
    )


_NO_EXEC = (((2, 4, 0),),)  # PROT_EXEC is not set in the third argument

Rule = str | Only
Group = tuple[str, tuple[Rule, ...]]

_BOTH: tuple[Group, ...] = (
    ("wait for events", ("epoll_wait", "epoll_pwait", "epoll_ctl", "epoll_create1", "poll", "ppoll")),
    ("use the sockets that it has", ("recvfrom", "sendto", "recvmsg", "sendmsg", "shutdown", "accept4")),
    ("ask and set options of sockets", ("getsockopt", "setsockopt", "getsockname", "getpeername")),
    ("connect: a relay to the one before it, a worker to endpoints", ("connect",)),
    ("write to its log, read signals", ("write", "read", "close", "lseek", "fstat", "newfstatat")),
    ("wake its own loop when a signal comes", ("socketpair",)),
    (
        "non-blocking sockets; what waits in a channel; the MAC behind an address",
        (_one_of("ioctl", 1, 0x5421, 0x5411, 0x541B, 0x8954),),
    ),
    # F_GETFD, F_SETFD, F_GETFL, F_SETFL, F_DUPFD_CLOEXEC
    ("flags of descriptors", (_one_of("fcntl", 1, 1, 2, 3, 4, 1030, *range(1031, 1035)),)),
    (
        "memory, and none that can be executed",
        ("brk", "munmap", "mremap", "madvise", Only("mmap", _NO_EXEC), Only("mprotect", _NO_EXEC)),
    ),
    ("signals for itself", ("rt_sigaction", "rt_sigprocmask", "rt_sigreturn", "sigaltstack")),
    ("time", ("clock_gettime", "clock_getres", "clock_nanosleep", "gettimeofday", "restart_syscall")),
    ("what it is", ("getpid", "gettid", "getuid", "geteuid", "getgid", "getegid")),
    ("let others run; locks of the C library", ("sched_yield", "futex", "getrandom")),
    ("its own limits", (_one_of("prlimit64", 0, 0),)),
    ("its own name", (_one_of("prctl", 0, 15, 16),)),  # PR_SET_NAME, PR_GET_NAME
    ("end", ("exit", "exit_group")),
)

_RELAY: tuple[Group, ...] = (
    (
        "listen; prove where it is; meet the relay before it or after it",
        (
            Only(
                "socket",
                _socket(_AF_INET, _STREAM, _ANY_PROTOCOL_OF_TYPE, _TCP)
                + _socket(_AF_INET, _DGRAM, _ANY_PROTOCOL_OF_TYPE)
                + _socket(_AF_UNIX, _SEQPACKET, _ANY_PROTOCOL_OF_TYPE),
            ),
            "bind",
            "listen",
        ),
    ),
)

_WORKER: tuple[Group, ...] = (
    (
        "dial endpoints; ask which address of the host leads there, which takes a socket for datagrams",
        (
            Only(
                "socket",
                _socket(_AF_INET, _STREAM, _ANY_PROTOCOL_OF_TYPE, _TCP)
                + _socket(_AF_INET, _DGRAM, _ANY_PROTOCOL_OF_TYPE, _UDP)
                + _socket(_AF_INET6, _STREAM, _ANY_PROTOCOL_OF_TYPE, _TCP)
                + _socket(_AF_INET6, _DGRAM, _ANY_PROTOCOL_OF_TYPE, _UDP),
            ),
        ),
    ),
    ("be found at another place, with a socket that the daemon has bound", ("listen",)),
    ("move bulk", ("splice", "pipe2")),
    ("counters that the daemon reads", ("memfd_create", "ftruncate")),
)

_LOAD, _AND, _EQUAL, _RETURN = 0x20, 0x54, 0x15, 0x06  # BPF_LD|W|ABS, ALU|AND|K, JMP|JEQ|K, RET|K
_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16  # offsets in struct seccomp_data, <linux/seccomp.h>
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000
_DENY = _ERRNO | errno.EPERM

_SET_MODE_FILTER = 1  # SECCOMP_SET_MODE_FILTER
# Before Linux 5.16, a filter would also make the processor guess less (SSBD), which slows all of the process.
# That protects those who run foreign code, which we do not.
_SPEC_ALLOW = 1 << 2


class Filter:
    """The system calls that a kind of process may make."""

    def __init__(self, groups: tuple[Group, ...]) -> None:
        self._program: ctypes.Array[ctypes.c_char] | None = None
        machine = os.uname().machine
        if machine in _MACHINES and sys.maxsize > 1 << 32:
            code = program(groups, machine)
            self._code = ctypes.create_string_buffer(code, len(code))
            # struct sock_fprog: the number of instructions, padding, and a pointer to them
            header = struct.pack("HxxxxxxQ", len(code) // 8, ctypes.addressof(self._code))
            self._program = ctypes.create_string_buffer(header, len(header))

    def apply(self) -> None:
        """Limit this process, for good. It must have no_new_privs already. Raises OSError."""
        if self._program is None:
            raise OSError(errno.ENOTSUP, "no list of system calls for this machine")
        for flags in (_SPEC_ALLOW, 0):  # Linux before 4.17 does not know the flag
            if _seccomp(_SECCOMP, _SET_MODE_FILTER, flags, self._program) == 0:
                return
            number = ctypes.get_errno()
            if number != errno.EINVAL:
                break
        raise OSError(number, os.strerror(number))


def program(groups: tuple[Group, ...], machine: str) -> bytes:
    """Return the BPF program that allows these calls; each instruction has eight bytes."""
    column, architecture = _MACHINES[machine]
    code = [
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_EQUAL, 1, 0, architecture),
        (_RETURN, 0, 0, _DENY),
        (_LOAD, 0, 0, _NUMBER),
    ]
    for _, rules in groups:
        for rule in rules:
            name = rule if isinstance(rule, str) else rule.name
            number = _NUMBERS[name][column]
            if number is not None:
                body = [(_RETURN, 0, 0, _ALLOW)] if isinstance(rule, str) else _cases(rule)
                code += [(_EQUAL, 0, len(body), number), *body]
    code.append((_RETURN, 0, 0, _DENY))
    return b"".join(struct.pack("HBBI", *instruction) for instruction in code)


def _cases(rule: Only) -> list[tuple[int, int, int, int]]:
    """Return the instructions that allow a call for one of the cases, and deny it otherwise."""
    body: list[tuple[int, int, int, int]] = []
    for conditions in rule.cases:
        rest = 3 * len(conditions) + 1  # instructions of this case that are still to come
        for argument, mask, value in conditions:
            rest -= 3
            body += [
                (_LOAD, 0, 0, _ARGUMENTS + 8 * argument),  # the lower half: both machines are little-endian
                (_AND, 0, 0, mask),
                (_EQUAL, 0, rest, value),
            ]
        body.append((_RETURN, 0, 0, _ALLOW))
    return [*body, (_RETURN, 0, 0, _DENY)]


# Made here, before relays are forked, like the functions of ``privileges``.
_SECCOMP = {"x86_64": 317, "aarch64": 277}.get(os.uname().machine, -1)
_seccomp = LIBC["syscall"]  # a function of its own, with its own types of arguments
_seccomp.argtypes = (ctypes.c_long, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_void_p)
RELAY = Filter(_BOTH + _RELAY)
WORKER = Filter(_BOTH + _WORKER)


def of_metrics() -> Filter:
    """Return the filter of the process that serves metrics, which makes no socket of its own."""
    return Filter(_BOTH)
