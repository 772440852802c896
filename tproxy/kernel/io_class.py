"""The I/O class of processes, which a child takes over from its parent (ioprio_set(2))."""

from __future__ import annotations

import ctypes
import os
import sys

# The number of the system call ioprio_set(2), which the C library has no function for, by the machine of a
# 64-bit program. It is 30 in <asm-generic/unistd.h>, which new architectures use.
_IOPRIO_SET = {
    "x86_64": 251,
    "aarch64": 30,
    "riscv64": 30,
    "loongarch64": 30,
    "ppc64le": 273,
    "s390x": 282,
}
_WHO_PROCESS = 1
_CLASS_NONE = 0  # the class and level follow from the scheduling policy and the nice value


def reset_io_class(*pids: int) -> None:
    """Give these processes the ordinary I/O class. On an unknown machine they keep what they have."""
    number = _IOPRIO_SET.get(os.uname().machine)
    if number is not None and sys.maxsize > 1 << 32:
        syscall = ctypes.CDLL(None).syscall
        for pid in pids:
            syscall(*map(ctypes.c_long, (number, _WHO_PROCESS, pid, _CLASS_NONE)))
