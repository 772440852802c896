"""Sets back how the kernel favours a process: a child takes that over from whoever started it.

A hook may be called by a batch job that runs at low priority on one processor, or by a service that the
kernel must not kill when memory is short. The daemon that it starts serves all guests of the host for months.
"""

import os
import sys
from contextlib import suppress

# More processors than any kernel is built for (CONFIG_NR_CPUS).
_ALL_PROCESSORS = range(8192)

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
_CLASS_NONE = 0  # the class and level follow from the scheduling policy and the nice value, ioprio_set(2)


def reset() -> None:
    """Give this process the ordinary policy and nice value, all processors, and oom_score_adj 0.

    The kernel leaves out processors that the cgroup does not allow (sched_setaffinity(2)). What needs a
    capability that is missing stays as it is.
    """
    with suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
    with suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, 0)
    with suppress(OSError):
        os.sched_setaffinity(0, _ALL_PROCESSORS)
    with suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write("0")


def reset_io_class(*pids: int) -> None:
    """Give these processes the ordinary I/O class. On an unknown architecture, they keep what they have.

    It loads ``ctypes``, which is too large for the process that relays are forked from.
    """
    import ctypes

    number = _IOPRIO_SET.get(os.uname().machine)
    if number is not None and sys.maxsize > 1 << 32:
        syscall = ctypes.CDLL(None, use_errno=True).syscall
        for pid in pids:
            syscall(*map(ctypes.c_long, (number, _WHO_PROCESS, pid, _CLASS_NONE)))
