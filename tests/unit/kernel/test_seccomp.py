"""The filter of system calls: what its program says of a call, on each machine, and its numbers."""

from __future__ import annotations

import errno
import re
import socket
import struct
from pathlib import Path

import pytest

from tproxy.kernel import seccomp
from tproxy.kernel.seccomp import answer, program
from tproxy.kernel.system_calls import NUMBERS

X86, ARM = 0xC000003E, 0xC00000B7
ARCHITECTURES = {"x86_64": X86, "aarch64": ARM}
KINDS = {"relay": seccomp._BOTH + seccomp._RELAY, "worker": seccomp._BOTH + seccomp._WORKER}
ALLOW, DENY, MISSING = 0x7FFF0000, 0x00050000 | errno.EPERM, 0x00050000 | errno.ENOSYS

HEADERS = {
    "x86_64": Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h"),
    "aarch64": Path("/usr/include/asm-generic/unistd.h"),
}


def judge(code: bytes, architecture: int, number: int, *arguments: int) -> int:
    """Run a program of classic BPF on struct seccomp_data, as the kernel does; return its verdict."""
    arguments += (0,) * (6 - len(arguments))
    data = struct.pack("<IIQ6Q", number & 0xFFFFFFFF, architecture, 0, *arguments)
    instructions = list(struct.iter_unpack("HBBI", code))
    accumulator = place = 0
    while True:
        operation, true, false, value = instructions[place]
        place += 1
        match operation:
            case 0x20:
                accumulator = int.from_bytes(data[value : value + 4], "little")
            case 0x54:
                accumulator &= value
            case 0x15:
                place += true if accumulator == value else false
            case 0x35:
                place += true if accumulator >= value else false
            case 0x06:
                return int(value)
            case _:
                pytest.fail(f"unknown instruction {operation:#x}")


def allows(kind: str, machine: str, name: str, *arguments: int) -> bool:
    """Return whether a kind of process may make this call on this machine."""
    number = NUMBERS[name][list(ARCHITECTURES).index(machine)]
    assert number is not None
    verdict = judge(program(KINDS[kind], machine), ARCHITECTURES[machine], number, *arguments)
    assert verdict in (0x7FFF0000, 0x00050000 | errno.EPERM)
    return verdict == 0x7FFF0000


def of_daemon(machine: str, name: str, *arguments: int) -> int:
    """Return what the filter of daemon, spawner and watcher says of a call on this machine."""
    number = NUMBERS[name][list(ARCHITECTURES).index(machine)]
    assert number is not None
    code = program(seccomp._DAEMON, machine, denies=True, says=1500)
    return judge(code, ARCHITECTURES[machine], number, *arguments)


both = pytest.mark.parametrize("machine", ["x86_64", "aarch64"])


@both
def test_sockets_are_those_that_each_kind_of_process_needs(machine: str) -> None:
    tcp = (socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    assert allows("relay", machine, "socket", *tcp, 0)
    assert allows("worker", machine, "socket", *tcp, socket.IPPROTO_TCP)
    meeting = (socket.AF_UNIX, socket.SOCK_SEQPACKET)
    assert allows("relay", machine, "socket", *meeting)
    assert not allows("worker", machine, "socket", *meeting)
    assert allows("worker", machine, "socket", socket.AF_INET6, socket.SOCK_STREAM, 0)
    assert allows("relay", machine, "socket", socket.AF_INET6, socket.SOCK_STREAM, 0)
    assert allows("relay", machine, "socket", socket.AF_INET6, socket.SOCK_DGRAM, 0)
    assert not allows("relay", machine, "socket", socket.AF_INET6, socket.SOCK_DGRAM, socket.IPPROTO_ICMPV6)
    for kind in KINDS:
        for family, type_, protocol in (
            (socket.AF_INET, socket.SOCK_RAW, 6),
            (socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_ICMP),
            (socket.AF_INET, socket.SOCK_STREAM, 262),
            (socket.AF_INET6, socket.SOCK_RAW, 58),
            (socket.AF_NETLINK, socket.SOCK_RAW, 0),
            (socket.AF_PACKET, socket.SOCK_DGRAM, 0),
            (socket.AF_UNIX, socket.SOCK_STREAM, 0),
        ):
            assert not allows(kind, machine, "socket", family, type_, protocol)


@both
def test_memory_with_code_is_refused_and_other_memory_is_not(machine: str) -> None:
    for name in ("mmap", "mprotect"):
        for kind in KINDS:
            assert allows(kind, machine, name, 0, 4096, 1 | 2)
            assert not allows(kind, machine, name, 0, 4096, 1 | 4)


@both
def test_ioctl_does_only_what_sockets_need(machine: str) -> None:
    assert allows("relay", machine, "ioctl", 5, 0x5421)  # FIONBIO
    assert not allows("relay", machine, "ioctl", 0, 0x5412)  # TIOCSTI
    assert allows("worker", machine, "ioctl", 5, 0x8954)  # SIOCGARP
    assert not allows("worker", machine, "ioctl", 5, 0x8955)  # SIOCSARP
    # The kernel looks at the lower half only, and so does the program.
    assert not allows("relay", machine, "ioctl", 0, 0x5421_0000_5412)


@both
def test_only_its_own_limits_are_in_reach(machine: str) -> None:
    assert allows("worker", machine, "prlimit64", 0, 7, 0, 0)
    assert not allows("worker", machine, "prlimit64", 1, 7, 0, 0)


def test_numbers_of_another_architecture_are_refused() -> None:
    """32-bit programs have other numbers: 1 is exit there, and 11 is execve."""
    code = program(KINDS["worker"], "x86_64")
    assert judge(code, X86, 1) == 0x7FFF0000
    assert judge(code, 0x40000003, 1) == 0x00050000 | errno.EPERM  # AUDIT_ARCH_I386
    assert judge(code, X86, 1 | 0x40000000) == 0x00050000 | errno.EPERM  # x32
    assert judge(code, X86, -1) == 0x00050000 | errno.EPERM


@both
def test_no_call_that_is_not_in_the_list_is_allowed(machine: str) -> None:
    place = list(ARCHITECTURES).index(machine)
    named = {numbers[place] for numbers in NUMBERS.values()}
    for groups in KINDS.values():
        code = program(groups, machine)
        allowed = {
            number for number in range(600) if judge(code, ARCHITECTURES[machine], number) == 0x7FFF0000
        }
        assert allowed <= named
        assert len(allowed) < 75


@both
def test_numbers_are_those_of_the_kernels_headers(machine: str) -> None:
    header = HEADERS[machine]
    if not header.exists():
        pytest.skip("no headers of the kernel")
    pattern = r"#define __NR(?:3264)?_([a-z0-9_]+)\s+(\d+)\n"
    known = {name: int(number) for name, number in re.findall(pattern, header.read_text())}
    known.setdefault("newfstatat", known.get("fstatat", -1))
    place = list(ARCHITECTURES).index(machine)
    for name, numbers in NUMBERS.items():
        assert numbers[place] == known.get(name), name


def test_every_number_belongs_to_a_call_that_somebody_needs() -> None:
    all_groups = (*KINDS.values(), seccomp._DAEMON)
    rules = [rule for groups in all_groups for _, rules in groups for rule in rules]
    assert {rule if isinstance(rule, str) else rule.name for rule in rules} == set(NUMBERS)


def test_an_unknown_machine_has_no_filter_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seccomp, "_MACHINES", {})
    with pytest.raises(OSError, match="no list of system calls for this machine"):
        seccomp.Filter(KINDS["relay"]).apply()


@both
def test_a_daemon_may_make_every_call_but_those_of_its_list(machine: str) -> None:
    place = list(ARCHITECTURES).index(machine)
    code = program(seccomp._DAEMON, machine, denies=True)
    denied = {number for number in range(600) if judge(code, ARCHITECTURES[machine], number) != ALLOW}
    named = {rule if isinstance(rule, str) else rule.name for _, rules in seccomp._DAEMON for rule in rules}
    # These are allowed when all arguments are 0.
    harmless = {NUMBERS[name][place] for name in ("clone", "mmap", "mprotect", "pkey_mprotect", "shmat")}
    assert denied == {NUMBERS[name][place] for name in named} - harmless - {None}


@both
def test_a_daemon_makes_and_enters_network_namespaces_and_no_others(machine: str) -> None:
    network, user, mounts = 0x40000000, 0x10000000, 0x00020000
    assert of_daemon(machine, "unshare", network) == ALLOW
    assert of_daemon(machine, "setns", 3, network) == ALLOW
    for flags in (0, user, mounts, network | user):
        assert of_daemon(machine, "unshare", flags) == DENY
        assert of_daemon(machine, "setns", 3, flags) == DENY
    assert of_daemon(machine, "clone", 0x01200011) == ALLOW  # fork(3)
    assert of_daemon(machine, "clone", 0x003D0F00) == ALLOW  # pthread_create(3)
    for flags in (network, user, mounts):
        assert of_daemon(machine, "clone", flags | 17) == DENY
    assert of_daemon(machine, "clone3", 1, 88) == MISSING  # the C library then uses clone(2)


@both
def test_a_daemon_has_no_memory_that_can_be_written_and_executed(machine: str) -> None:
    read, write, execute = 1, 2, 4
    assert of_daemon(machine, "mmap", 0, 4096, read | write) == ALLOW
    assert of_daemon(machine, "mmap", 0, 4096, read | execute) == ALLOW  # a library
    assert of_daemon(machine, "mmap", 0, 4096, read | write | execute) == DENY
    assert of_daemon(machine, "mprotect", 0, 4096, read | write) == ALLOW
    assert of_daemon(machine, "mprotect", 0, 4096, read | execute) == DENY


def test_no_call_of_another_architecture_is_left_to_a_daemon() -> None:
    code = program(seccomp._DAEMON, "x86_64", denies=True)
    assert judge(code, X86, 1) == ALLOW
    assert judge(code, 0x40000003, 1) == DENY  # AUDIT_ARCH_I386
    assert judge(code, X86, 1 | 0x40000000) == DENY  # x32
    assert judge(code, ARM, 1) == DENY


@both
def test_the_filter_of_a_daemon_answers_the_question_whether_it_is_there(machine: str) -> None:
    assert of_daemon(machine, "keyctl", seccomp._QUESTION) == 0x00050000 | 1500
    assert of_daemon(machine, "keyctl", 0) == DENY


def test_another_list_has_another_answer_which_no_system_call_gives() -> None:
    codes = [
        program(seccomp._DAEMON[number:], "x86_64", denies=True) for number in range(len(seccomp._DAEMON))
    ]
    answers = [answer(code) for code in codes]
    assert len(set(answers)) == len(answers)
    assert all(max(errno.errorcode) < each <= 4095 for each in answers)  # MAX_ERRNO, <linux/err.h>
