"""Takes from this process, for good, all rights that it does not need.

Theory of operation. Relays and workers handle what guests send, so a fault in them must not be worth much to
a guest. They start as root, because some of their first steps need it, and then pass these stages in this
order, as the unprivileged processes of OpenSSH and passt do:

1. an empty directory as root directory: no file can be opened any more, and no program executed;
2. a user id of their own (``uid_of``): no signal and no ptrace(2) reaches another process, and the kernel
   counts its pipes, and the descriptors that it has in flight, apart from those of the others;
3. no capabilities, and none that could come back (capabilities(7));
4. no_new_privs (prctl(2)): an executed program could not gain any either;
5. only the system calls that a relay or a worker makes (``seccomp``).

Before that, the spawner closes all descriptors but the process's own (``keep_only``).

Daemon, spawner and watcher, and what they start, stay root, and pass ``limit``: they keep the capabilities
that they need, get no_new_privs, and cannot make some system calls that none of them needs.

A stage that is not possible, as in a container that maps few user ids, is left out, and the caller says so.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Container, Iterable

from tproxy.kernel import seccomp
from tproxy.kernel.netns import LIBC

# User ids from here on are ours: 1,900,000,000 and the process id. Neither distributions nor systemd give out
# ids in this range (systemd's "Users, Groups, UIDs and GIDs": 1,879,048,192 to 2,147,483,647 is unused), and
# a process id is at most 4,194,304 (proc(5), pid_max).
FIRST_UID = 1_900_000_000

_PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS = 24, 38  # <linux/prctl.h>
_CAPABILITY_VERSION_3 = 0x20080522  # <linux/capability.h>
_EINVAL = 22

# How far above a process's own descriptors others are looked for: the spawner has a handful. Linux before 5.9
# tries one number after the other, and a million of them take a tenth of a second.
_ABOVE = 1024


def uid_of(pid: int) -> int:
    """Return the user and group id of the relay or worker that is process ``pid``."""
    return FIRST_UID + pid


# What the daemon, its spawner and a watcher keep of root's capabilities (capabilities(7)), by number. The
# units for systemd say the same.
_KEPT = {
    1: "DAC_OVERRIDE: files of another user, and those whose mode shuts their owner out, such as logs",
    5: "KILL: relays and workers, which have users of their own",
    6: "SETGID: relays and workers get groups of their own",
    7: "SETUID: and users",
    8: "SETPCAP: relays and workers empty their bounding set",
    12: "NET_ADMIN: links, rules and sysctls",
    13: "NET_RAW: iptables-legacy-save, by which a watcher sees whether the host's firewall drops",
    18: "SYS_CHROOT: relays and workers have an empty root directory",
    19: "SYS_PTRACE: to find processes of tproxy that have other rights",
    21: "SYS_ADMIN: to enter and make network namespaces",
    23: "SYS_NICE: relays are batch processes, also in a service with another scheduling policy",
}


DAC_OVERRIDE = 1

# DAC_READ_SEARCH: to count the descriptors of processes of other users.
_READING = frozenset({2})


def limit() -> list[str]:
    """Keep what the daemon needs of root's rights, for good, also in what this process starts.

    Return a line for each stage that failed. What this process may have already is not extended.
    """
    return _pass(
        ("its capability bounding set stays", _limit_bounding_set),
        ("it keeps its capabilities", _limit_capabilities),
        ("it may gain privileges", _forbid_gains),
        ("it can make any system call", seccomp.DAEMON.apply),
    )


def _pass(*stages: tuple[str, Callable[[], None]]) -> list[str]:
    """Pass these stages; return a line for each that failed."""
    failed = []
    for what, stage in stages:
        try:
            stage()
        except OSError as error:
            failed.append(f"{what}: {error.strerror}")
    return failed


def limit_to_reading() -> list[str]:
    """Keep only the right to read what belongs to other users, for good. Return as ``limit``."""
    return _pass(
        ("its capability bounding set stays", lambda: _limit_bounding_set(_READING)),
        ("it keeps its capabilities", lambda: _limit_capabilities(_READING)),
        ("it may gain privileges", _forbid_gains),
        ("it can make any system call", seccomp.DAEMON.apply),
    )


def _limit_bounding_set(kept: Container[int] = _KEPT) -> None:
    for capability in range(64):
        if capability not in kept and _prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0):
            if ctypes.get_errno() == _EINVAL:
                return
            _raise()


def _limit_capabilities(kept_ones: Iterable[int] = _KEPT) -> None:
    """Take all others from the three sets, of which the kernel has the lower and then the upper halves."""
    held = (ctypes.c_uint32 * 6)()
    if _capget(_HEADER, held):
        _raise()
    kept = sum(1 << number for number in kept_ones)
    # effective, permitted and inheritable, capset(2)
    limited = (ctypes.c_uint32 * 6)(*(held[place] & (kept if place < 3 else 0) for place in range(6)))
    if _capset(_HEADER, limited):
        _raise()


def use_only(capability: int) -> None:
    """Have one capability in effect, of those that this process is permitted. Raises OSError."""
    held = (ctypes.c_uint32 * 6)()
    if _capget(_HEADER, held):
        _raise()
    # effective, permitted and inheritable, each the lower half first
    held[0], held[3] = held[1] & 1 << capability, 0
    if _capset(_HEADER, held):
        _raise()


def keep_only(*fds: int) -> None:
    """Close all descriptors but these, in a process that has few."""
    start = 0
    for fd in sorted(fds):
        if start < fd:  # os.closerange(0, 0) would close all of them
            os.closerange(start, fd)
        start = fd + 1
    os.closerange(start, start + _ABOVE)


def drop(empty: str, calls: seccomp.Filter) -> list[str]:
    """Pass all stages; ``empty`` is the path of an empty directory, ``calls`` are the system calls to keep.

    Return a line for each stage that failed.
    """
    return _pass(
        ("it keeps the host's files in sight", lambda: _confine(empty)),
        ("its capability bounding set stays", _empty_bounding_set),
        ("it has no user id of its own", _change_user),
        ("it keeps its capabilities", _clear_capabilities),
        ("it may gain privileges", _forbid_gains),
        ("it can make any system call", calls.apply),
    )


def _confine(empty: str) -> None:
    os.chroot(empty)
    os.chdir("/")


def _change_user() -> None:
    own = uid_of(os.getpid())
    os.setgroups([])
    os.setresgid(own, own, own)
    os.setresuid(own, own, own)


def _empty_bounding_set() -> None:
    """Drop all capabilities from the bounding set. The kernel says EINVAL after its last one."""
    for capability in range(64):
        if _prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0):
            if ctypes.get_errno() == _EINVAL:
                return
            _raise()


def _clear_capabilities() -> None:
    """Empty the effective, permitted and inheritable sets, capset(2). The ambient set goes with them."""
    if _capset(_HEADER, _NO_CAPABILITY):
        _raise()


def _forbid_gains() -> None:
    if _prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        _raise()


def _raise() -> None:
    number = ctypes.get_errno()
    raise OSError(number, os.strerror(number))


# Functions and structures are made here, before relays are forked: a library that is opened and a type that
# is made in each of them take some 300 KB of its own.
_prctl = LIBC.prctl
_prctl.argtypes = (ctypes.c_int, *(ctypes.c_ulong,) * 4)
_capset = LIBC.capset
_capset.argtypes = (ctypes.c_void_p, ctypes.c_void_p)
_capget = LIBC.capget
_capget.argtypes = (ctypes.c_void_p, ctypes.c_void_p)
_HEADER = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
_NO_CAPABILITY = (ctypes.c_uint32 * 6)()
