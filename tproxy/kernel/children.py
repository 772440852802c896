"""Makes sure that a process can wait for its children."""

import signal


def can_be_waited_for() -> None:
    """Restore the default handling of SIGCHLD.

    The program that started us may ignore the signal, and we inherit that (execve(2)). Then the kernel
    discards ended children, and waiting for one fails (wait(2)).
    """
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
