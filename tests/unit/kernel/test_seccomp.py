"""The filter of system calls: what its program says of a call, on each machine, and its numbers."""

from __future__ import annotations

import errno
import re
import socket
import struct
from pathlib import Path

import pytest

from tproxy.kernel import seccomp
from tproxy.kernel.seccomp import program

X86, ARM = 0xC000003E, 0xC00000B7
ARCHITECTURES = {"x86_64": X86, "aarch64": ARM}
KINDS = {"relay": seccomp._BOTH + seccomp._RELAY, "worker": seccomp._BOTH + seccomp._WORKER}

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
            case 0x06:
                return int(value)
            case _:
                pytest.fail(f"unknown instruction {operation:#x}")


def allows(kind: str, machine: str, name: str, *arguments: int) -> bool:
    """Return whether a kind of process may make this call on this machine."""
    number = seccomp._NUMBERS[name][list(ARCHITECTURES).index(machine)]
    assert number is not None
    verdict = judge(program(KINDS[kind], machine), ARCHITECTURES[machine], number, *arguments)
    assert verdict in (0x7FFF0000, 0x00050000 | errno.EPERM)
    return verdict == 0x7FFF0000


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
    assert not allows("relay", machine, "socket", socket.AF_INET6, socket.SOCK_STREAM, 0)
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
    named = {numbers[place] for numbers in seccomp._NUMBERS.values()}
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
    for name, numbers in seccomp._NUMBERS.items():
        assert numbers[place] == known.get(name), name


def test_every_number_belongs_to_a_call_that_somebody_needs() -> None:
    rules = [rule for groups in KINDS.values() for _, rules in groups for rule in rules]
    assert {rule if isinstance(rule, str) else rule.name for rule in rules} == set(seccomp._NUMBERS)


def test_an_unknown_machine_has_no_filter_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seccomp, "_MACHINES", {})
    with pytest.raises(OSError, match="no list of system calls for this machine"):
        seccomp.Filter(KINDS["relay"]).apply()
