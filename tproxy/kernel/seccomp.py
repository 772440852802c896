"""Limits which system calls a process can make (seccomp(2)).

Theory of operation. A filter is a program of classic BPF, which the kernel runs before each system call. This
module makes it from a list of names, each with the reason why it is there. A relay and a worker have a list
of what they may call. Daemon, spawner and watcher, which are root and need much more, have a list of what
none of them ever calls. What is denied fails with EPERM, and never kills the process: a call that was
forgotten must not cost connections. Some calls are allowed for some values of their arguments only. From
Linux 5.11 on, the kernel runs the filter once for each call that is allowed whatever its arguments are, and
remembers that.

The program first compares the architecture, since the numbers of system calls differ between them. On other
machines than x86_64 and aarch64 there is no filter. On x86_64, calls of the x32 interface have numbers of
their own, and are denied.

A filter stays for good, and goes to all children and programs that the process starts. So the daemon's is on
each process of ours, and an executed daemon or a watcher has it already. A second copy would cost time, and
the kernel bounds the length of all filters of a process: after some hundred restarts there would be no room
for a relay's. So the daemon's filter answers a question, a keyctl(2) that does not exist, with an error
number that no other program gives, and hardly any other version of the list.
"""

import ctypes
import errno
import os
import struct
import sys

from tproxy.kernel.netns import LIBC
from tproxy.kernel.system_calls import NUMBERS
from tproxy.typed import NamedTuple

_MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}  # AUDIT_ARCH_..., <linux/audit.h>


class Only(NamedTuple):
    """A system call that is allowed if, for one of the ``cases``, all conditions are true.

    A condition is the number of an argument, a mask, and what the masked argument must be. Only the lower 32
    bits of an argument are looked at: the kernel uses no more of those that are named here.
    """

    name: str
    cases: tuple[tuple[tuple[int, int, int], ...], ...]


class Missing(NamedTuple):
    """A system call that is to look as if the kernel did not have it, so that the C library uses another."""

    name: str


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


_CLONE_NEWNET = 0x40000000  # <linux/sched.h>
_NO_EXEC = (((2, 4, 0),),)  # PROT_EXEC is not set in the third argument

Rule = str | Only | Missing
Instruction = tuple[int, int, int, int]
Group = tuple[str, tuple[Rule, ...]]

_BOTH: tuple[Group, ...] = (
    ("wait for events", ("epoll_wait", "epoll_pwait", "epoll_ctl", "epoll_create1", "poll", "ppoll")),
    ("use the sockets that it has", ("recvfrom", "sendto", "recvmsg", "sendmsg", "shutdown", "accept4")),
    ("ask and set options of sockets", ("getsockopt", "setsockopt", "getsockname", "getpeername")),
    ("connect: a relay to the one before it, a worker to endpoints", ("connect",)),
    ("write to its log, read signals", ("write", "read", "close", "lseek", "fstat", "newfstatat")),
    ("wake its own loop when a signal comes", ("socketpair",)),
    (
        "non-blocking sockets; what waits in a channel; the MAC behind an address; the index of a link",
        (_one_of("ioctl", 1, 0x5421, 0x5411, 0x541B, 0x8954, 0x8933),),
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
                + _socket(_AF_INET6, _STREAM, _ANY_PROTOCOL_OF_TYPE, _TCP)
                + _socket(_AF_INET, _DGRAM, _ANY_PROTOCOL_OF_TYPE)
                + _socket(_AF_INET6, _DGRAM, _ANY_PROTOCOL_OF_TYPE)
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

# CLONE_NEWNS, _NEWCGROUP, _NEWUTS, _NEWIPC, _NEWUSER, _NEWPID and _NEWNET, <linux/sched.h>
_NEW_NAMESPACES = 0x7E020000

# In groups by what the calls reach. A name alone is denied, and the others are for what they say.
_DAEMON: tuple[Group, ...] = (
    ("other processes", ("ptrace", "process_vm_readv", "process_vm_writev", "process_madvise", "kcmp")),
    ("descriptors and pages of other processes", ("pidfd_getfd", "migrate_pages", "move_pages")),
    ("programs in the kernel", ("bpf", "perf_event_open", "lookup_dcookie")),
    ("another kernel", ("init_module", "finit_module", "delete_module", "kexec_load", "kexec_file_load")),
    ("what many attacks on the kernel begin with", ("userfaultfd", "vmsplice", "remap_file_pages")),
    ("io_uring(7), for the same reason", ("io_uring_setup", "io_uring_enter", "io_uring_register")),
    ("keys", ("add_key", "request_key", "keyctl")),
    ("the clock", ("settimeofday", "clock_settime", "clock_adjtime", "adjtimex")),
    ("the whole host", ("reboot", "swapon", "swapoff", "acct", "quotactl", "sethostname", "setdomainname")),
    ("its messages, its terminal", ("syslog", "vhangup")),
    ("hardware", ("iopl", "ioperm", "modify_ldt", "mknod", "mknodat")),
    ("mounts in ways that mount(2) is not", ("fsopen", "fsconfig", "fsmount", "fspick", "open_tree")),
    ("the same", ("move_mount", "mount_setattr", "pivot_root")),
    ("files without a path", ("open_by_handle_at", "fanotify_init")),
    ("what is left from older times", ("personality", "uselib", "_sysctl", "sysfs", "ustat", "nfsservctl")),
    (
        "namespaces: those of networks only",
        (
            _one_of("setns", 1, _CLONE_NEWNET),
            _one_of("unshare", 0, _CLONE_NEWNET),
            Only("clone", (((0, _NEW_NAMESPACES, 0),),)),
            Missing("clone3"),  # has its flags in memory, which a filter cannot read
        ),
    ),
    (
        "memory that can be written and executed, or could be written before",
        (
            Only("mmap", (*_NO_EXEC, ((2, 2, 0),))),  # PROT_WRITE
            Only("mprotect", _NO_EXEC),
            Only("pkey_mprotect", _NO_EXEC),
            Only("shmat", (((2, 0o100000, 0),),)),  # SHM_EXEC
        ),
    ),
)

# BPF_LD|W|ABS, ALU|AND|K, JMP|JEQ|K, JMP|JGE|K, RET|K
_LOAD, _AND, _EQUAL, _AT_LEAST, _RETURN = 0x20, 0x54, 0x15, 0x35, 0x06
_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16  # offsets in struct seccomp_data, <linux/seccomp.h>
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000
_DENY = _ERRNO | errno.EPERM
_MISSING = _ERRNO | errno.ENOSYS
_X32 = 0x40000000  # __X32_SYSCALL_BIT, <asm/unistd.h>

_SET_MODE_FILTER = 1  # SECCOMP_SET_MODE_FILTER
# Before Linux 5.16, a filter would also make the processor guess less (SSBD), which slows all of the process.
# That protects those who run foreign code, which we do not.
_SPEC_ALLOW = 1 << 2


# The question whether a filter is there. Its first argument is no operation of keyctl(2): without a filter
# the kernel says EOPNOTSUPP, or ENOSYS where it has no keys. Other filters say less than _FIRST_ANSWER.
_QUESTION = 0x74707879
_FIRST_ANSWER, _ANSWERS = 1024, 2039  # at most 4095, MAX_ERRNO


class Filter:
    """The system calls that a kind of process may make: those of ``groups``, or all others (``denies``)."""

    def __init__(self, groups: tuple[Group, ...], *, denies: bool = False) -> None:
        self._program: ctypes.Array[ctypes.c_char] | None = None
        self._answer = 0
        machine = os.uname().machine
        if machine in _MACHINES and sys.maxsize > 1 << 32:
            code = program(groups, machine, denies=denies)
            if denies:
                self._answer = answer(code)
                code = program(groups, machine, denies=True, says=self._answer)
            self._code = ctypes.create_string_buffer(code, len(code))
            # struct sock_fprog: the number of instructions, padding, and a pointer to them
            header = struct.pack("HxxxxxxQ", len(code) // 8, ctypes.addressof(self._code))
            self._program = ctypes.create_string_buffer(header, len(header))

    def apply(self) -> None:
        """Limit this process, for good. It must have no_new_privs already. Raises OSError."""
        if self._program is None:
            raise OSError(errno.ENOTSUP, "no list of system calls for this machine")
        if self._is_there():
            return
        for flags in (_SPEC_ALLOW, 0):  # Linux before 4.17 does not know the flag
            if _call(_SECCOMP, _SET_MODE_FILTER, flags, self._program) == 0:
                return
            number = ctypes.get_errno()
            if number != errno.EINVAL:
                break
        raise OSError(number, os.strerror(number))

    def _is_there(self) -> bool:
        return self._answer > 0 > _call(_KEYCTL, _QUESTION, 0, None) and ctypes.get_errno() == self._answer


def answer(code: bytes) -> int:
    """Return an error number for this program, which hardly any other program has."""
    number = 0
    for byte in code:
        number = (31 * number + byte) % _ANSWERS
    return _FIRST_ANSWER + number


def program(groups: tuple[Group, ...], machine: str, *, denies: bool = False, says: int = 0) -> bytes:
    """Return the BPF program that allows these calls, or ``denies`` them; an instruction has eight bytes.

    ``says`` is the error number that a program which denies gives as its answer to the question.
    """
    column, architecture = _MACHINES[machine]
    keyctl = NUMBERS["keyctl"][column]
    assert keyctl is not None
    named, others = (_DENY, _ALLOW) if denies else (_ALLOW, _DENY)
    code = [
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_EQUAL, 1, 0, architecture),
        (_RETURN, 0, 0, _DENY),
        (_LOAD, 0, 0, _NUMBER),
        (_AT_LEAST, 0, 1, _X32),
        (_RETURN, 0, 0, _DENY),
    ]
    if denies:
        code += [
            (_EQUAL, 0, 4, keyctl),
            (_LOAD, 0, 0, _ARGUMENTS),
            (_EQUAL, 0, 1, _QUESTION),
            (_RETURN, 0, 0, _ERRNO | says),
            (_LOAD, 0, 0, _NUMBER),
        ]
    for _, rules in groups:
        for rule in rules:
            number = NUMBERS[rule if isinstance(rule, str) else rule.name][column]
            if number is None:
                continue
            if isinstance(rule, Only):
                body = _cases(rule)
            else:
                body = [(_RETURN, 0, 0, _MISSING if isinstance(rule, Missing) else named)]
            code += [(_EQUAL, 0, len(body), number), *body]
    code.append((_RETURN, 0, 0, others))
    return b"".join(struct.pack("HBBI", *instruction) for instruction in code)


def _cases(rule: Only) -> list[Instruction]:
    """Return the instructions that allow a call for one of the cases, and deny it otherwise."""
    body: list[Instruction] = []
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
_KEYCTL = {"x86_64": 250, "aarch64": 219}.get(os.uname().machine, -1)
_call = LIBC["syscall"]  # a function of its own, with its own types of arguments
_call.argtypes = (ctypes.c_long, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_void_p)
RELAY = Filter(_BOTH + _RELAY)
WORKER = Filter(_BOTH + _WORKER)
DAEMON = Filter(_DAEMON, denies=True)


def of_metrics() -> Filter:
    """Return the filter of the process that serves metrics, which makes no socket of its own."""
    return Filter(_BOTH)
