"""Makes sure that a process can wait for its children, and that they end with it."""

import ctypes
import os
import signal

_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>


def can_be_waited_for() -> None:
    """Restore the default handling of SIGCHLD.

    The program that started us may ignore the signal, and we inherit that (execve(2)). Then the kernel
    discards ended children, and waiting for one fails (wait(2)).
    """
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)


def end_with(parent: int) -> None:
    """Have this process killed when its parent ends, also after execve(2); end it if that has happened."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL))
    if os.getppid() != parent:
        os._exit(1)
